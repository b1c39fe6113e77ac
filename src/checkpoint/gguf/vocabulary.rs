//! The tokens of the metadata (`tokenizer.ggml.*`): texts, types, and those with a name.

use serde_json::{Map, Value, json};

use crate::weights::WeightsError;
use crate::weights::gguf::Metadata;

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";

/// ggml's types of tokens (`enum llama_token_type`).
pub(super) const NORMAL: f64 = 1.0;
pub(super) const UNKNOWN: f64 = 2.0;
pub(super) const CONTROL: f64 = 3.0;
pub(super) const USER_DEFINED: f64 = 4.0;

/// Texts that end a turn, whatever the metadata says of them: most files name only one of a model's.
const ENDS: [&str; 16] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|flush|>",
    "<|calls|>",
];

/// A named token: its name in `tokenizer_config.json`, its keys, the first of which counts, and the ids that ggml takes
/// where no key is.
struct Named {
    name: &'static str,
    keys: &'static [&'static str],
    /// By the kind of tokenizer.
    defaults: &'static [(&'static str, usize)],
}

/// Where BERT's first token has no key of its own, it is the beginning of the text.
static NAMED: &[Named] = &[
    Named { name: "bos_token", keys: &["bos_token_id"], defaults: &[("llama", 1)] },
    Named { name: "eos_token", keys: &["eos_token_id"], defaults: &[("llama", 2), ("t5", 1)] },
    Named {
        name: "unk_token",
        keys: &["unknown_token_id"],
        defaults: &[("llama", 0), ("bert", 100), ("t5", 2)],
    },
    // ggml spells the key so.
    Named {
        name: "sep_token",
        keys: &["seperator_token_id", "separator_token_id"],
        defaults: &[("bert", 102)],
    },
    Named { name: "pad_token", keys: &["padding_token_id"], defaults: &[("bert", 0), ("t5", 0)] },
    Named { name: "cls_token", keys: &["cls_token_id", "bos_token_id"], defaults: &[("bert", 101)] },
    Named { name: "mask_token", keys: &["mask_token_id"], defaults: &[("bert", 103)] },
];

/// The tokens of the metadata.
pub(super) struct Vocabulary<'a> {
    pub metadata: &'a Metadata,
    /// The kind of tokenizer: `tokenizer.ggml.model`.
    pub model: &'a str,
    pub tokens: &'a [String],
    /// ggml's type of each token.
    pub types: Vec<f64>,
}

impl<'a> Vocabulary<'a> {
    pub fn read(metadata: &'a Metadata) -> Result<Option<Self>, WeightsError> {
        let (Some(model), Some(tokens)) = (metadata.text(MODEL)?, metadata.texts(TOKENS)?) else {
            return Ok(None);
        };
        let types = Self::numbers_of(metadata, "tokenizer.ggml.token_type", tokens.len())?;
        let types = types.map_or_else(|| vec![NORMAL; tokens.len()], <[f64]>::to_vec);
        Ok(Some(Vocabulary { metadata, model, tokens, types }))
    }

    /// A list with a number for each of `n` tokens.
    fn numbers_of(metadata: &'a Metadata, key: &str, n: usize) -> Result<Option<&'a [f64]>, WeightsError> {
        match metadata.numbers(key)? {
            Some(numbers) if numbers.len() < n => {
                Err(metadata.wrong(key, format!("a list of {n}, as many as tokens")))
            }
            numbers => Ok(numbers),
        }
    }

    /// The score of each token.
    pub fn scores(&self) -> Result<&'a [f64], WeightsError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let n = self.tokens.len();
        let scores = Self::numbers_of(self.metadata, SCORES, n)?;
        scores.ok_or_else(|| self.metadata.wrong(SCORES, format!("a list of {n}, as many as tokens")))
    }

    /// A switch of the tokenizer.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, WeightsError> {
        Ok(self.metadata.flag(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default))
    }

    /// The token that a key of the tokenizer names. The inner `None` names none.
    fn id(&self, key: &str) -> Result<Option<Option<usize>>, WeightsError> {
        let key = format!("tokenizer.ggml.{key}");
        let n = self.tokens.len();
        match self.metadata.whole(&key)? {
            // 2^32 − 1 is ggml's id of no token.
            Some(id) if id == u64::from(u32::MAX) => Ok(Some(None)),
            Some(id) if id < n as u64 => Ok(Some(Some(id as usize))),
            Some(_) => Err(self.metadata.wrong(&key, format!("the id of one of the {n} tokens"))),
            None => Ok(None),
        }
    }

    /// The token with a name of `tokenizer_config.json`.
    pub fn named(&self, name: &str) -> Result<Option<usize>, WeightsError> {
        let Some(named) = NAMED.iter().find(|named| named.name == name) else { return Ok(None) };
        for key in named.keys {
            if let Some(id) = self.id(key)? {
                return Ok(id);
            }
        }
        let default = named.defaults.iter().find(|(model, _)| *model == self.model);
        Ok(default.map(|(_, id)| *id).filter(|id| *id < self.tokens.len()))
    }

    /// The tokens that end a text.
    pub fn ends(&self) -> Result<Vec<usize>, WeightsError> {
        let mut ends: Vec<usize> = self.named("eos_token")?.into_iter().collect();
        for key in ["eot_token_id", "eom_token_id"] {
            ends.extend(self.id(key)?.flatten());
        }
        let is_special = |id: &usize| [CONTROL, USER_DEFINED].contains(&self.types[*id]);
        let is_end = |id: &usize| is_special(id) && ENDS.contains(&self.tokens[*id].as_str());
        ends.extend((0..self.tokens.len()).filter(is_end));
        // gpt-oss ends a message with the first one, and a turn with the others.
        let has = |ends: &[usize], text: &str| ends.iter().any(|id| self.tokens[*id] == text);
        if has(&ends, "<|return|>") && has(&ends, "<|call|>") {
            ends.retain(|id| self.tokens[*id] != "<|end|>");
        }
        Ok(ends)
    }

    /// `tokenizer_config.json`: the named tokens, by their texts in `tokens`, and the chat templates.
    pub fn config(&self, tokens: &[String]) -> Result<Map<String, Value>, WeightsError> {
        let mut config = Map::new();
        for Named { name, .. } in NAMED {
            if let Some(id) = self.named(name)? {
                config.insert(name.to_string(), json!(tokens[id]));
            }
        }
        const TEMPLATE: &str = "tokenizer.chat_template";
        let mut templates = Vec::new();
        if let Some(template) = self.metadata.text(TEMPLATE)? {
            templates.push(json!({ "name": "default", "template": template }));
        }
        for name in self.metadata.texts("tokenizer.chat_templates")?.unwrap_or_default() {
            if let Some(template) = self.metadata.text(&format!("{TEMPLATE}.{name}"))? {
                templates.push(json!({ "name": name, "template": template }));
            }
        }
        if !templates.is_empty() {
            config.insert("chat_template".into(), templates.into());
        }
        Ok(config)
    }
}
