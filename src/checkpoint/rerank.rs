//! Rerankers: models that score texts for a query.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::{CheckpointError, EmbeddingConfig, ModelFiles};
use crate::models::{self, Architecture, Labels, ModelKind, Problem, SCORE};
use crate::ops::Pooling;

/// How a model scores a text for a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// A cross-encoder reads both as a pair. The score is its only logit.
    Logit,
    /// As [`Scoring::Logit`], but the score is the logistic function of the logit: from 0 to 1.
    Logistic,
    /// A language model answers yes or no (Qwen3-Reranker). The score is the probability of yes.
    Judgement,
}

/// The labels of a model that judges, each a token.
const ANSWERS: [&str; 2] = ["yes", "no"];

impl Scoring {
    /// Of a cross-encoder: a classification head with one label. sentence-transformers names its activation in the
    /// `config` of a model, and takes the logistic function if it does not.
    pub(super) fn of(
        architecture: &dyn Architecture,
        path: &Path,
        config: &str,
    ) -> Result<Option<Scoring>, CheckpointError> {
        if architecture.labels().is_none_or(|labels| labels.names.len() != 1) {
            return Ok(None);
        }
        let config: Value = serde_json::from_str(config).unwrap_or_default();
        let (key, activation) = match &config["sentence_transformers"]["activation_fn"] {
            Value::Null => {
                ("sbert_ce_default_activation_function", &config["sbert_ce_default_activation_function"])
            }
            found => ("sentence_transformers.activation_fn", found),
        };
        match activation.as_str().map(|class| class.rsplit('.').next().unwrap_or_default()) {
            None if activation.is_null() => Ok(Some(Scoring::Logistic)),
            Some("Sigmoid") => Ok(Some(Scoring::Logistic)),
            Some("Identity") => Ok(Some(Scoring::Logit)),
            _ => {
                let message = format!("`{key}` is `{activation}`, expected `Sigmoid` or `Identity` of torch");
                Err(CheckpointError::config(path, message))
            }
        }
    }
}

/// The head of a model that judges.
pub(super) fn answers() -> Labels {
    Labels { names: ANSWERS.map(String::from).into(), problem: Problem::SingleLabel }
}

impl ModelFiles {
    /// The model as a reranker. A Qwen3 language model becomes one that judges, as Qwen3-Reranker does: nothing in its
    /// files says that it was trained for it.
    ///
    /// # Errors
    /// [`CheckpointError::NotAReranker`]; [`CheckpointError::Weights`] if a language model has no row for an answer;
    /// [`CheckpointError::SharedWeights`] if a language model's `weights` have other owners, as its head is added to them.
    pub fn into_reranker(mut self) -> Result<ModelFiles, CheckpointError> {
        if self.scoring.is_some() {
            return Ok(self);
        }
        let shape = self.architecture.shape();
        let not_one = |found: String| CheckpointError::NotAReranker { name: self.name.clone(), found };
        if shape.kind == ModelKind::Encoder {
            return Err(not_one(match &self.labels {
                Some(labels) => format!("{} labels", labels.names.len()),
                None => "an embedder".into(),
            }));
        }
        if shape.architecture != "qwen3" {
            return Err(not_one(format!("`{}`, a model that generates", shape.architecture)));
        }
        let tokenizer = self.tokenizer.as_ref().map_err(Clone::clone)?;
        let rows = ANSWERS.map(|answer| tokenizer.token_to_id(answer));
        let [Some(yes), Some(no)] = rows else {
            return Err(not_one("a language model without tokens `yes` and `no`".into()));
        };
        let Some(weights) = Arc::get_mut(&mut self.weights) else {
            return Err(CheckpointError::SharedWeights { name: self.name });
        };
        let root = self.architecture.names().root(weights);
        let embedding = format!("{root}embed_tokens.weight");
        let head = if weights.get("lm_head.weight").is_some() { "lm_head.weight" } else { &embedding };
        weights.add_rows(&format!("{SCORE}.weight"), head, &[yes as usize, no as usize])?;
        Ok(self.judging())
    }

    /// The model as one that judges; its head is among the weights.
    pub(super) fn judging(self) -> ModelFiles {
        let embedding = EmbeddingConfig { pooling: vec![Pooling::Last], ..EmbeddingConfig::default() };
        ModelFiles {
            architecture: models::embedder(self.architecture, Some(answers())),
            labels: Some(answers()),
            embedding: Some(embedding),
            scoring: Some(Scoring::Judgement),
            ..self
        }
    }
}
