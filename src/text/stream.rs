//! Text while the ids are still arriving.

use super::{TextError, Tokenizer};

/// Tokens kept while the text ends in an unfinished character: such a character has at most three of its
/// bytes, hence at most three tokens, and one more tells it from whatever came before.
const KEPT_UNFINISHED: usize = 4;

/// Decodes one sequence token by token; the pieces together are what [`Tokenizer::decode`] gives for all ids.
///
/// A piece never ends inside a character. Characters that are spelled in byte tokens (`<0xE2>`) come out when
/// the next other token arrives, because one wrong byte still changes how that whole run is decoded. Apart
/// from such a run, the memory held and the time for a token do not depend on how many came before.
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The last tokens; the first of them is context, so that a word's leading space survives.
    window: Vec<u32>,
    /// How many bytes of the window's text have been returned.
    emitted: usize,
}

impl StreamDecoder {
    /// A decoder for one sequence that leaves special tokens out if `skip_special`.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), skip_special, window: Vec::new(), emitted: 0 }
    }

    /// Takes the next id and returns the text that has become certain, often one word, sometimes nothing.
    ///
    /// # Errors
    /// An id that the tokenizer's decoder refuses.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        // What `decode` leaves out must not become the context either.
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(String::new()) };
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        if self.tokenizer.is_byte(&token) {
            return Ok(String::new());
        }

        let text = self.tokenizer.decode(&self.window, false)?;
        let certain = certain(&text);
        let piece = text.get(self.emitted..certain).unwrap_or_default().to_string();
        self.emitted = self.emitted.max(certain);

        let finished = certain == text.len();
        let kept = if finished { 1 } else { KEPT_UNFINISHED };
        if self.window.len() > kept {
            self.window.drain(..self.window.len() - kept);
            let text = self.tokenizer.decode(&self.window, false)?;
            // A last token that completed a character is no character by itself, yet all of it has been
            // returned.
            self.emitted = if finished { text.len() } else { self::certain(&text) };
        }
        Ok(piece)
    }

    /// Returns the text still held back, and makes the decoder ready for another sequence.
    ///
    /// # Errors
    /// Ids that the tokenizer's decoder refuses.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let window = std::mem::take(&mut self.window);
        let emitted = std::mem::take(&mut self.emitted);
        let text = self.tokenizer.decode(&window, false)?;
        Ok(text.get(emitted..).unwrap_or_default().to_string())
    }
}

/// The length of the part of `text` that no later token can change: all but an unfinished last character,
/// which decodes to one replacement character.
fn certain(text: &str) -> usize {
    text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(text).len()
}
