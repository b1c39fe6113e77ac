//! A streaming decoder: text from ids as they arrive.

use super::{TextError, Tokenizer};

/// Tokens kept while the text ends in an unfinished character. Such a character has at most three of its bytes, hence
/// at most three tokens; one more token separates it from the text before.
const KEPT_UNFINISHED: usize = 4;

/// Decodes one sequence token by token. The pieces together equal [`Tokenizer::decode`] of all ids.
///
/// A piece never ends inside a character. Characters spelled in byte tokens (`<0xE2>`) are returned when the next token
/// of another kind arrives, because one wrong byte changes how the whole run of bytes is decoded. Except for such a
/// run, memory and time per token do not depend on the number of tokens before.
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Special tokens that it does not omit.
    shown: Vec<u32>,
    /// The last tokens. The first of them is context, so that a word keeps its leading space.
    window: Vec<u32>,
    /// Bytes of the window's text that have been returned.
    emitted: usize,
}

impl StreamDecoder {
    /// A decoder for one sequence. If `skip_special`, it omits special tokens.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), skip_special, shown: Vec::new(), window: Vec::new(), emitted: 0 }
    }

    /// A decoder for an answer to `prompt`, whose text it does not return.
    ///
    /// Some decoders drop a space at the beginning of a text. An answer is not the beginning of a text, except after a
    /// special token (a turn of a chat): it keeps its space.
    ///
    /// # Errors
    /// [`TextError::Decode`] for a prompt whose last token the tokenizer's decoder refuses.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Result<Self, TextError> {
        let mut decoder = Self::new(tokenizer, skip_special);
        let mut tokens = prompt.iter().rev().filter_map(|id| Some((*id, tokenizer.id_to_token(*id)?)));
        let Some((last, token)) = tokens.next().filter(|(id, _)| !tokenizer.is_special(*id)) else {
            return Ok(decoder);
        };
        // The bytes of an unfinished run or character would become part of the answer's first one, so another token
        // stands for them.
        let is_open = tokenizer.is_byte(&token)
            || tokenizer.decode(&[last], false)?.ends_with(char::REPLACEMENT_CHARACTER);
        if let Some(context) = if is_open { tokenizer.filler() } else { Some(last) } {
            decoder.window.push(context);
            decoder.emitted = tokenizer.decode(&decoder.window, false)?.len();
        }
        Ok(decoder)
    }

    /// Does not omit these special tokens.
    pub fn showing(self, shown: Vec<u32>) -> Self {
        Self { shown, ..self }
    }

    /// Takes the next id and returns the text that has become certain: often one word, sometimes nothing.
    ///
    /// # Errors
    /// [`TextError::Decode`] for an id that the tokenizer's decoder refuses.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        // Tokens that `decode` omits must not become context.
        let Some(token) = self.tokenizer.id_to_token(id) else { return Ok(String::new()) };
        if self.skip_special && self.tokenizer.is_special(id) && !self.shown.contains(&id) {
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
            // If the last token completed a character, it is no character by itself, but all of it has been returned.
            self.emitted = if finished { text.len() } else { self::certain(&text) };
        }
        Ok(piece)
    }

    /// The text held back so far, as [`StreamDecoder::finish`] would return it now. A later token may change it.
    ///
    /// # Errors
    /// [`TextError::Decode`] for ids that the tokenizer's decoder refuses.
    pub fn pending(&self) -> Result<String, TextError> {
        let text = self.tokenizer.decode(&self.window, false)?;
        Ok(text.get(self.emitted..).unwrap_or_default().to_string())
    }

    /// Returns the text held back so far, and resets the decoder for another sequence.
    ///
    /// # Errors
    /// [`TextError::Decode`] for ids that the tokenizer's decoder refuses.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = self.pending();
        self.window.clear();
        self.emitted = 0;
        text
    }
}

/// Length in bytes of the part of `text` that no later token can change: all but an unfinished last character, which
/// decodes to one replacement character.
fn certain(text: &str) -> usize {
    text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(text).len()
}
