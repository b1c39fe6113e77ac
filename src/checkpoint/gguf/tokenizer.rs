//! The tokenizer of the metadata (`tokenizer.ggml.*`), as the files of a folder that is built from it.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::super::CheckpointError;
use super::pre::{Alphabet, Pre};
use super::vocabulary::{CONTROL, MODEL, NORMAL, TOKENS, UNKNOWN, USER_DEFINED, Vocabulary};
use crate::text::{TextError, Tokenizer, TokenizerFiles};
use crate::weights::WeightsError;
use crate::weights::gguf::Metadata;

/// The tokenizer, or the reason why there is none.
pub(super) fn read(metadata: &Metadata) -> Result<Result<Tokenizer, TextError>, CheckpointError> {
    let wrong = |key: &str, expected: String| {
        let found = metadata.values().get(key).map_or("nothing".into(), |value| value.to_string());
        Ok(Err(TextError::Metadata { key: key.into(), expected, found }))
    };
    let Some(vocabulary) = Vocabulary::read(metadata)? else {
        let missing = if metadata.has(MODEL) { TOKENS } else { MODEL };
        return wrong(missing, "the parts of a tokenizer".into());
    };
    const PRE: &str = "tokenizer.ggml.pre";
    let json = match vocabulary.model {
        "gpt2" | "gemma4" => {
            let name = match vocabulary.model {
                "gemma4" => "gemma4",
                _ => metadata.text(PRE)?.unwrap_or("default"),
            };
            match Pre::named(name) {
                Some(pre) => vocabulary.merging(pre)?,
                None => return wrong(PRE, format!("one of {}", Pre::names())),
            }
        }
        "llama" => vocabulary.sentence_piece()?,
        "bert" => vocabulary.word_piece()?,
        "t5" => vocabulary.unigram()?,
        _ => return wrong(MODEL, "`gpt2`, `gemma4`, `llama`, `bert` or `t5`".into()),
    };
    let config = Value::Object(vocabulary.config(&json.tokens)?).to_string();
    let generation_config = json!({ "eos_token_id": vocabulary.ends()? }).to_string();
    Ok(Tokenizer::from_files(&TokenizerFiles {
        tokenizer: json.text.as_bytes(),
        tokenizer_config: Some(config.as_bytes()),
        generation_config: Some(generation_config.as_bytes()),
        ..TokenizerFiles::default()
    }))
}

/// `tokenizer.json`.
struct Json<'a> {
    text: String,
    /// The tokens as it has them.
    tokens: Cow<'a, [String]>,
}

/// The tokens before a text and after it.
struct Around {
    first: Option<usize>,
    last: Option<usize>,
    /// How many of the last tokens are between the texts of a pair, of models that take pairs. With one, as in BERT, the
    /// second text has a type of its own.
    n_between: Option<usize>,
}

impl<'a> Vocabulary<'a> {
    /// `tokenizer.json` of a model and its steps (`normalizer` and others).
    fn json(
        &self,
        tokens: Cow<'a, [String]>,
        model: Value,
        steps: Value,
        Around { first, last, n_between }: Around,
    ) -> Json<'a> {
        let added = self.types.iter().zip(tokens.iter()).enumerate().filter_map(|(id, (kind, token))| {
            let special = *kind == CONTROL || *kind == UNKNOWN;
            let is_added = (special || *kind == USER_DEFINED) && !token.is_empty();
            is_added.then(|| json!({ "id": id, "content": token, "special": special, "normalized": false }))
        });
        let mut tokenizer = json!({ "added_tokens": added.collect::<Vec<_>>(), "model": model });
        if let (Value::Object(tokenizer), Value::Object(steps)) = (&mut tokenizer, steps) {
            tokenizer.extend(steps);
        }
        let mut special = Map::new();
        for id in [first, last].into_iter().flatten() {
            let token = &tokens[id];
            special.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        }
        let text = |name: &str, kind: usize| Some(json!({ "Sequence": { "id": name, "type_id": kind } }));
        let token = |id: Option<usize>, kind: usize| {
            id.map(|id| json!({ "SpecialToken": { "id": &tokens[id], "type_id": kind } }))
        };
        let single: Vec<Value> =
            [token(first, 0), text("A", 0), token(last, 0)].into_iter().flatten().collect();
        let pair = n_between.map(|n| {
            let second = usize::from(n == 1);
            let begin = [token(first, 0), text("A", 0)].into_iter();
            let between = std::iter::repeat_n(token(last, 0), n);
            begin.chain(between).chain([text("B", second), token(last, second)]).flatten().collect()
        });
        let pair: Vec<Value> = pair.unwrap_or_default();
        tokenizer["post_processor"] = json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special });
        Json { text: tokenizer.to_string(), tokens }
    }

    /// The tokens around a text, unless the metadata says otherwise of them.
    fn around(&self, [adds_bos, adds_eos]: [bool; 2]) -> Result<Around, WeightsError> {
        let adds_bos = self.flag("add_bos_token", adds_bos)?;
        let adds_eos = self.flag("add_eos_token", adds_eos)?;
        let first = self.named("bos_token")?.filter(|_| adds_bos);
        let last = self.named("eos_token")?.filter(|_| adds_eos);
        // RoBERTa and XLM-R.
        let n_between = (first.is_some() && last.is_some()).then_some(2);
        Ok(Around { first, last, n_between })
    }

    /// The tokens with their ids.
    fn ids(tokens: &[String]) -> Map<String, Value> {
        let ids = tokens.iter().enumerate().filter(|(_, token)| !token.is_empty());
        ids.map(|(id, token)| (token.clone(), json!(id))).collect()
    }

    /// Byte pair encoding with a list of merges: GPT-2 and most others.
    fn merging(&self, pre: &Pre) -> Result<Json<'a>, WeightsError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let merges = self.metadata.texts(MERGES)?;
        let merges = merges.ok_or_else(|| self.metadata.wrong(MERGES, "a list of texts"))?;
        let mut model = json!({
            "type": "BPE", "vocab": Self::ids(self.tokens), "merges": merges, "ignore_merges": pre.ignore_merges,
        });
        let split = |expression: &&str| json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
        let mut cuts: Vec<Value> = pre.expressions.iter().map(split).collect();
        let mut steps = Map::new();
        match pre.alphabet {
            Alphabet::Bytes => {
                let prefix = self.flag("add_space_prefix", false)?;
                let bytes = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": false });
                cuts.push(bytes(prefix));
                steps.insert("decoder".into(), bytes(true));
            }
            Alphabet::Characters => {
                model["byte_fallback"] = json!(true);
                steps.insert("normalizer".into(), spaces_to_marks());
                steps.insert("decoder".into(), marks_to_spaces(false));
            }
        }
        steps.insert("pre_tokenizer".into(), json!({ "type": "Sequence", "pretokenizers": cuts }));
        let around = self.around([pre.add_bos, false])?;
        Ok(self.json(self.tokens.into(), model, steps.into(), around))
    }

    /// SentencePiece's BPE with byte tokens: Llama 1 and 2, Mistral, Gemma. The pair that makes the token of the highest
    /// score is joined first.
    fn sentence_piece(&self) -> Result<Json<'a>, WeightsError> {
        let scores = self.scores()?;
        // Tokens of this many bytes and more are never joined: there would be too many ways to cut them.
        const MOST: usize = 256;
        let is_joined = |id: usize| self.types[id] == NORMAL || self.types[id] == USER_DEFINED;
        let ids = (0..self.tokens.len()).filter(|id| is_joined(*id)).map(|id| (self.tokens[id].as_str(), id));
        let ids: HashMap<&str, usize> = ids.collect();
        let mut merges = Vec::new();
        for (token, id) in ids.iter().filter(|(token, _)| token.len() < MOST) {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                    merges.push((scores[*id], *id, *l, *r));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
        let token = |id: usize| &self.tokens[id];
        let merges: Vec<Value> =
            merges.iter().map(|(_, _, left, right)| json!([token(*left), token(*right)])).collect();
        let unknown = self.named("unk_token")?.map(token);
        let model = json!({
            "type": "BPE", "vocab": Self::ids(self.tokens), "merges": merges, "unk_token": unknown, "fuse_unk": true,
            "byte_fallback": true,
        });
        let prefix = self.flag("add_space_prefix", true)?;
        let mut normalizers = vec![spaces_to_marks()];
        if prefix {
            normalizers.insert(0, mark_before());
        }
        let steps = json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "decoder": marks_to_spaces(prefix),
        });
        let around = self.around([true, false])?;
        Ok(self.json(self.tokens.into(), model, steps, around))
    }

    /// BERT's WordPiece. ggml marks the beginnings of words with `▁`; the models mark what continues one with `##`.
    fn word_piece(&self) -> Result<Json<'a>, WeightsError> {
        let spelled = |(token, kind): (&String, &f64)| match token.strip_prefix('▁') {
            Some(begins) => begins.to_string(),
            None if *kind == CONTROL || token.is_empty() => token.clone(),
            None => format!("##{token}"),
        };
        let tokens: Vec<String> = self.tokens.iter().zip(&self.types).map(spelled).collect();
        let unknown = self.named("unk_token")?.map_or("[UNK]", |id| tokens[id].as_str());
        let model = json!({
            "type": "WordPiece", "vocab": Self::ids(&tokens), "unk_token": unknown,
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        });
        let lowercase = self.flag("normalizer.lowercase", true)?;
        let steps = json!({
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": self.flag("normalizer.strip_accents", lowercase)?, "lowercase": lowercase,
            },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        });
        let around =
            Around { first: self.named("cls_token")?, last: self.named("sep_token")?, n_between: Some(1) };
        Ok(self.json(tokens.into(), model, steps, around))
    }

    /// SentencePiece's Unigram: T5, XLM-R. The pieces with the largest sum of scores are taken.
    fn unigram(&self) -> Result<Json<'a>, WeightsError> {
        let scores = self.scores()?;
        let unknown = self.named("unk_token")?.ok_or_else(|| {
            self.metadata
                .wrong("tokenizer.ggml.unknown_token_id", "the id of a token, for unknown characters")
        })?;
        let is_normal = |id: &usize| self.types[*id] == NORMAL;
        let least = (0..self.tokens.len()).filter(is_normal).map(|id| scores[id]).fold(0.0, f64::min);
        // Ids are places. An unknown character costs more than the least score of all, so that tokens that stand in no
        // text must not have less, as some files' do.
        let piece = |id: usize| {
            let token = &self.tokens[id];
            let token = if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() };
            json!([token, if is_normal(&id) { scores[id] } else { least }])
        };
        let pieces: Vec<Value> = (0..self.tokens.len()).map(piece).collect();
        let model = json!({ "type": "Unigram", "vocab": pieces, "unk_id": unknown, "byte_fallback": false });
        let replace = |pattern: &str, content: &str| json!({ "type": "Replace", "pattern": { "Regex": pattern }, "content": content });
        let mut normalizers = Vec::new();
        if let Some(map) = self.metadata.numbers("tokenizer.ggml.precompiled_charsmap")? {
            let map: Vec<u8> = map.iter().map(|byte| *byte as i64 as u8).collect();
            // The library takes `\r\n` for one character, which becomes what `\r` becomes.
            if let Some(alone) = mapped(&map, "\r") {
                normalizers.push(replace("\r(?=\n)", &alone));
            }
            normalizers.push(json!({ "type": "Precompiled", "precompiled_charsmap": base64(&map) }));
        }
        let merges_spaces = self.flag("remove_extra_whitespaces", false)?;
        let prefix = self.flag("add_space_prefix", false)? || merges_spaces;
        if merges_spaces {
            normalizers.extend([replace("^ +| +$", ""), replace(" {2,}", " ")]);
        }
        if prefix {
            // Spaces alone get no mark.
            normalizers.extend([mark_before(), replace("^▁(?= *$)", "")]);
        }
        normalizers.push(spaces_to_marks());
        let steps = json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "decoder": marks_to_spaces(prefix),
        });
        let around = self.around([false, true])?;
        Ok(self.json(self.tokens.into(), model, steps, around))
    }
}

fn spaces_to_marks() -> Value {
    json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })
}

fn mark_before() -> Value {
    json!({ "type": "Prepend", "prepend": "▁" })
}

/// The decoder of tokens with `▁` for spaces, which drops the first if `prefix`.
fn marks_to_spaces(prefix: bool) -> Value {
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": decoders })
}

/// What `text` becomes by a compiled map of characters; `None` if it has no entry. The map is the size of a trie, the trie
/// in units of 32 bits (a double array, as in Darts), and the texts, each ended by a zero.
fn mapped(map: &[u8], text: &str) -> Option<String> {
    let (size, rest) = map.split_first_chunk::<4>()?;
    let (trie, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
    let unit = |at: u32| trie.as_chunks::<4>().0.get(at as usize).map(|unit| u32::from_le_bytes(*unit));
    let offset = |unit: u32| (unit >> 10) << ((unit & 1 << 9) >> 6);
    let mut at = offset(unit(0)?);
    let mut has_text = false;
    for byte in text.bytes() {
        at ^= u32::from(byte);
        let found = unit(at)?;
        if found & (1 << 31 | 0xff) != u32::from(byte) {
            return None;
        }
        has_text = found >> 8 & 1 == 1;
        at ^= offset(found);
    }
    let begin = (unit(at).filter(|_| has_text)? & !(1 << 31)) as usize;
    let text = texts.get(begin..)?.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

/// Bytes in Base64.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        let digit = |i: usize| char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]);
        text.extend((0..4).map(|i| if i <= three.len() { digit(i) } else { '=' }));
    }
    text
}
