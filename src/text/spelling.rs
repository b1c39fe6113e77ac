//! A conversation's text with the tokens that the model read and wrote.

use std::ops::Range;

use super::{TextError, Tokenizer};

/// A rendered conversation with its tokens. A model may spell its answers with other tokens than the tokenizer, and the
/// KV cache holds what it wrote: a conversation that goes on keeps the tokens it has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spelling {
    /// The text.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The ranges of the model's answers in `ids`, oldest first. Their keys and values are those of generated tokens.
    pub generated: Vec<Range<usize>>,
}

impl Spelling {
    /// The tokens of `text`. If it continues one of `earlier`, that part keeps its tokens; the longest of them counts.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn of<'a>(
        tokenizer: &Tokenizer,
        text: String,
        earlier: impl IntoIterator<Item = &'a Spelling>,
    ) -> Result<Spelling, TextError> {
        let is_begun = |said: &&Spelling| !said.ids.is_empty() && text.starts_with(&said.text);
        if let Some(said) = earlier.into_iter().filter(is_begun).max_by_key(|said| said.text.len()) {
            let new = tokenizer.encode(&text[said.text.len()..], false)?;
            // No word crosses a special token, so the two parts can be encoded separately there.
            if new.first().is_some_and(|id| tokenizer.is_special(*id)) {
                let mut generated = said.generated.clone();
                // The model drew the token that ended its answer, too.
                if let (Some(answer), true) = (generated.last_mut(), tokenizer.eos().contains(&new[0])) {
                    answer.end += 1;
                }
                let ids = said.ids.iter().copied().chain(new).collect();
                return Ok(Spelling { text, ids, generated });
            }
        }
        let ids = tokenizer.encode(&text, false)?;
        Ok(Spelling { text, ids, generated: Vec::new() })
    }

    /// The conversation with the model's answer, its text and its tokens. `None` if they differ: a text at which an
    /// answer ends is cut from the text, but not from the tokens.
    pub fn answered(mut self, tokenizer: &Tokenizer, text: &str, ids: &[u32]) -> Option<Spelling> {
        if !tokenizer.decode(ids, true).is_ok_and(|decoded| decoded == text) {
            return None;
        }
        self.text.push_str(text);
        self.generated.push(self.ids.len()..self.ids.len() + ids.len());
        self.ids.extend(ids);
        Some(self)
    }
}
