//! The tokenizer of the metadata (`tokenizer.ggml.*`), as the files of a folder that is built from it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::super::CheckpointError;
use super::pre::Pre;
use crate::text::{TextError, Tokenizer, TokenizerFiles};
use crate::weights::WeightsError;
use crate::weights::gguf::Metadata;

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";

/// ggml's types of tokens (`enum llama_token_type`).
const NORMAL: f64 = 1.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

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
    let tokenizer = match metadata.text(MODEL)?.unwrap_or_default() {
        "gpt2" => {
            let name = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
            match Pre::named(name) {
                Some(pre) => vocabulary.byte_level(pre)?,
                None => return wrong("tokenizer.ggml.pre", format!("one of {}", Pre::names())),
            }
        }
        "llama" => vocabulary.sentence_piece()?,
        _ => return wrong(MODEL, "`gpt2` or `llama`".into()),
    };
    let config = Value::Object(vocabulary.config()?).to_string();
    let generation_config = json!({ "eos_token_id": vocabulary.ends()? }).to_string();
    Ok(Tokenizer::from_files(&TokenizerFiles {
        tokenizer: tokenizer.to_string().as_bytes(),
        tokenizer_config: Some(config.as_bytes()),
        generation_config: Some(generation_config.as_bytes()),
        ..TokenizerFiles::default()
    }))
}

/// The tokens of the metadata.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    /// ggml's type of each token.
    types: Vec<f64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Option<Self>, WeightsError> {
        let (Some(_), Some(tokens)) = (metadata.text(MODEL)?, metadata.texts(TOKENS)?) else {
            return Ok(None);
        };
        const TYPES: &str = "tokenizer.ggml.token_type";
        let types = match metadata.numbers(TYPES)? {
            Some(types) if types.len() < tokens.len() => {
                return Err(metadata.wrong(TYPES, format!("a list of {}, as many as tokens", tokens.len())));
            }
            Some(types) => types.to_vec(),
            None => vec![NORMAL; tokens.len()],
        };
        Ok(Some(Vocabulary { metadata, tokens, types }))
    }

    /// The token with the id that a key has, `default` if it has none.
    fn named(&self, key: &str, default: Option<usize>) -> Result<Option<usize>, WeightsError> {
        let key = format!("tokenizer.ggml.{key}");
        let n = self.tokens.len();
        match self.metadata.whole(&key)? {
            // 2^32 − 1 is ggml's id of no token.
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) if id < n as u64 => Ok(Some(id as usize)),
            Some(_) => Err(self.metadata.wrong(&key, format!("the id of one of the {n} tokens"))),
            None => Ok(default.filter(|id| *id < n)),
        }
    }

    fn is_sentence_piece(&self) -> Result<bool, WeightsError> {
        Ok(self.metadata.text(MODEL)? == Some("llama"))
    }

    fn bos(&self) -> Result<Option<usize>, WeightsError> {
        let default = self.is_sentence_piece()?.then_some(1);
        self.named("bos_token_id", default)
    }

    fn eos(&self) -> Result<Option<usize>, WeightsError> {
        let default = self.is_sentence_piece()?.then_some(2);
        self.named("eos_token_id", default)
    }

    /// The tokens that end a text.
    fn ends(&self) -> Result<Vec<usize>, WeightsError> {
        let mut ends: Vec<usize> = self.eos()?.into_iter().collect();
        for key in ["eot_token_id", "eom_token_id"] {
            ends.extend(self.named(key, None)?);
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

    /// `tokenizer_config.json`: the named tokens and the chat templates.
    fn config(&self) -> Result<Map<String, Value>, WeightsError> {
        let mut config = Map::new();
        let unknown = self.is_sentence_piece()?.then_some(0);
        for (name, id) in [
            ("bos_token", self.bos()?),
            ("eos_token", self.eos()?),
            ("unk_token", self.named("unknown_token_id", unknown)?),
            ("pad_token", self.named("padding_token_id", None)?),
        ] {
            if let Some(id) = id {
                config.insert(name.into(), json!(self.tokens[id]));
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

    /// `tokenizer.json` with this model and these steps.
    fn json(&self, model: Value, steps: Value, [add_bos, add_eos]: [bool; 2]) -> Result<Value, WeightsError> {
        let added = self.types.iter().zip(self.tokens).enumerate().filter_map(|(id, (kind, token))| {
            let special = *kind == CONTROL;
            let is_added = (special || *kind == USER_DEFINED) && !token.is_empty();
            is_added.then(|| json!({ "id": id, "content": token, "special": special, "normalized": false }))
        });
        let mut tokenizer = json!({ "added_tokens": added.collect::<Vec<_>>(), "model": model });
        if let (Value::Object(tokenizer), Value::Object(steps)) = (&mut tokenizer, steps) {
            tokenizer.extend(steps);
        }
        let adds = |key: &str, default: bool| {
            Ok::<_, WeightsError>(self.metadata.flag(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default))
        };
        let mut around = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
        let mut special = Map::new();
        for (id, is_added, place) in [
            (self.bos()?, adds("add_bos_token", add_bos)?, 0),
            (self.eos()?, adds("add_eos_token", add_eos)?, usize::MAX),
        ] {
            let Some(id) = id.filter(|_| is_added) else { continue };
            let token = &self.tokens[id];
            special.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
            around.insert(place.min(around.len()), json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
        }
        tokenizer["post_processor"] =
            json!({ "type": "TemplateProcessing", "single": around, "pair": [], "special_tokens": special });
        Ok(tokenizer)
    }

    /// The tokens with their ids.
    fn ids(&self) -> Map<String, Value> {
        let ids = self.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty());
        ids.map(|(id, token)| (token.clone(), json!(id))).collect()
    }

    /// Byte-level BPE: GPT-2 and most others.
    fn byte_level(&self, pre: &Pre) -> Result<Value, WeightsError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let merges = self.metadata.texts(MERGES)?;
        let merges = merges.ok_or_else(|| self.metadata.wrong(MERGES, "a list of texts"))?;
        let model = json!({
            "type": "BPE", "vocab": self.ids(), "merges": merges, "ignore_merges": pre.ignore_merges,
        });
        let split = |expression: &&str| json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false });
        let prefix = self.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
        let bytes = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": false });
        let mut cuts: Vec<Value> = pre.expressions.iter().map(split).collect();
        cuts.push(bytes(prefix));
        let steps = json!({
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": cuts },
            "decoder": bytes(true),
        });
        self.json(model, steps, [pre.add_bos, false])
    }

    /// SentencePiece's BPE with byte tokens: Llama 1 and 2, Mistral. The pair that makes the token of the highest score is
    /// joined first.
    fn sentence_piece(&self) -> Result<Value, WeightsError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let scores = self.metadata.numbers(SCORES)?.filter(|scores| scores.len() >= self.tokens.len());
        let Some(scores) = scores else {
            return Err(self
                .metadata
                .wrong(SCORES, format!("a list of {}, as many as tokens", self.tokens.len())));
        };
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
        let unknown = self.named("unknown_token_id", Some(0))?.map(token);
        let model = json!({
            "type": "BPE", "vocab": self.ids(), "merges": merges, "unk_token": unknown, "fuse_unk": true,
            "byte_fallback": true,
        });
        let prefix = self.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let mut normalizers =
            vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let steps = json!({
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "decoder": { "type": "Sequence", "decoders": decoders },
        });
        self.json(model, steps, [true, false])
    }
}
