//! The last conversations with a model.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use wginfer::text::{Spelling, TextError, Tokenizer};

/// The last conversations with a model, so that the next turn of one keeps its tokens, and finds them in the KV cache.
#[derive(Default)]
pub struct Kept(Mutex<VecDeque<Spelling>>);

/// Most conversations that are kept, and most bytes of the text of each.
const MOST_KEPT: usize = 64;
const MOST_KEPT_BYTES: usize = 1 << 20;

impl Kept {
    /// The tokens of a conversation.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn spell(&self, tokenizer: &Tokenizer, text: String) -> Result<Spelling, TextError> {
        let kept: Vec<Spelling> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter(|said| text.starts_with(&said.text)).cloned().collect()
        };
        Spelling::of(tokenizer, text, &kept)
    }

    /// Keeps a conversation with its answer, in place of what it continues.
    pub fn keep(&self, said: Spelling) {
        if said.text.len() > MOST_KEPT_BYTES {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| !said.text.starts_with(&other.text));
        all.truncate(MOST_KEPT - 1);
        all.push_front(said);
    }
}
