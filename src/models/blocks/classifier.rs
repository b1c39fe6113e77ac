//! Sequence classification: what the labels are, and the head that tells them apart.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::LayerNorm;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::{LabelScratch, Labels, Loader, ModelError, Problem};
use crate::ops::{self, Act, Pooling, Rows};

/// The keys of `config.json` that describe a classification head.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LabelKeys {
    architectures: Option<Vec<String>>,
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    problem_type: Option<String>,
}

impl LabelKeys {
    /// The labels, if the checkpoint has a sequence-classification head. Without names they are `LABEL_0`, `LABEL_1` …,
    /// as in transformers' `configuration_utils.py`.
    ///
    /// # Errors
    /// [`ModelError::Config`]: the ids are not 0, 1, 2 …; [`ModelError::Unsupported`]: the kind of problem is unknown.
    pub fn labels(&self) -> Result<Option<Labels>, ModelError> {
        let mut architectures = self.architectures.iter().flatten();
        if !architectures.any(|name| name.ends_with("ForSequenceClassification")) {
            return Ok(None);
        }
        let names: Vec<String> = match &self.id2label {
            None => (0..self.num_labels.unwrap_or(2)).map(|i| format!("LABEL_{i}")).collect(),
            Some(by_id) => {
                let name = |i: usize| by_id.get(&i.to_string()).cloned();
                (0..by_id.len()).map(name).collect::<Option<_>>().ok_or_else(|| {
                    let found = by_id.keys().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
                    let message =
                        format!("`id2label` has the ids {found}, expected 0 to {}", by_id.len() - 1);
                    ModelError::Config { message }
                })?
            }
        };
        if names.is_empty() {
            return Err(ModelError::Config {
                message: "`id2label` is empty, expected a label or more".into(),
            });
        }
        let problem = match self.problem_type.as_deref() {
            Some("single_label_classification") => Problem::SingleLabel,
            Some("multi_label_classification") => Problem::MultiLabel,
            Some("regression") => Problem::Regression,
            None if names.len() == 1 => Problem::Regression,
            None => Problem::SingleLabel,
            Some(found) => {
                let expected =
                    "`single_label_classification`, `multi_label_classification` or `regression`".into();
                return Err(ModelError::Unsupported { key: "problem_type", found: found.into(), expected });
            }
        };
        Ok(Some(Labels { names, problem }))
    }
}

/// Names and options of a head's weights.
#[derive(Clone, Copy, Debug)]
pub struct HeadNames<'a> {
    /// The dense layer.
    pub dense: &'a str,
    /// Whether it has a bias.
    pub dense_bias: bool,
    /// The norm after it and its activation: name, whether it has a bias, epsilon.
    pub norm: Option<(&'a str, bool, f32)>,
    /// The last layer.
    pub out: &'a str,
}

/// `out(norm(act(dense(pooled))))`, one row a sequence.
#[derive(Debug)]
pub struct ClassificationHead {
    pooling: Pooling,
    act: Act,
    dense: Tensor,
    dense_bias: Option<Tensor>,
    norm: Option<LayerNorm>,
    out: Tensor,
    out_bias: Tensor,
}

impl ClassificationHead {
    /// Loads it.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        names: HeadNames<'_>,
        pooling: Pooling,
        act: Act,
        [hidden_size, n_labels]: [usize; 2],
    ) -> Result<Self, ModelError> {
        let n = hidden_size;
        let name = |layer: &str, part: &str| format!("{layer}.{part}");
        Ok(ClassificationHead {
            pooling,
            act,
            // What is lost in the last two products is lost for the result.
            dense: loader.as_stored(&name(names.dense, "weight"), [n, n])?,
            dense_bias: match names.dense_bias {
                true => Some(loader.vector(&name(names.dense, "bias"), n)?),
                false => None,
            },
            norm: match names.norm {
                Some((name, bias, eps)) => Some(LayerNorm::load(loader, name, n, bias, eps)?),
                None => None,
            },
            out: loader.as_stored(&name(names.out, "weight"), [n_labels, n])?,
            out_bias: loader.vector(&name(names.out, "bias"), n_labels)?,
        })
    }

    /// Allocates what it writes for up to `max_seqs` sequences.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn scratch(&self, gpu: &Gpu, max_seqs: usize) -> Result<LabelScratch, GpuError> {
        LabelScratch::new(gpu, self.dense.n_rows(), self.out.n_rows(), max_seqs)
    }

    /// Records the logits `[max_seqs, n_labels]` F32 of `n_seqs` sequences, whose rows of `x` are in `spans`
    /// `[n_seqs, 2]`, and returns where they will be.
    pub fn record(
        &self,
        rec: &mut Recorder,
        x: &Tensor,
        spans: &Tensor,
        n_seqs: usize,
        s: &LabelScratch,
    ) -> Tensor {
        let n = Rows { n_decode: n_seqs, n_prompt: 0 };
        ops::pool(rec, self.pooling, spans, x, &s.pooled, 0, n_seqs);
        let (input, bias) = ((&s.pooled).into(), self.dense_bias.as_ref());
        ops::gate_up(rec, self.act, input, &self.dense, bias, &s.up, &s.act, n);
        let last = match &self.norm {
            Some(norm) => {
                norm.record(rec, &s.act, &s.normed, n_seqs);
                &s.normed
            }
            None => &s.act,
        };
        ops::linear(rec, last, &self.out, Some(&self.out_bias), false, &s.logits, n);
        s.logits.clone()
    }
}
