//! Sequence classification: the labels, and the classification head.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{LayerNorm, Linear, Target};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::{Capacity, LabelScratch, Labels, Loader, ModelError, ModelShape, Problem, Scratch};
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
    /// The labels, if the checkpoint has a sequence-classification head. Default names: `LABEL_0`, `LABEL_1` …, as in
    /// transformers' `configuration_utils.py`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the ids are not 0, 1, 2 …; [`ModelError::Unsupported`] if the kind of problem is
    /// unknown.
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

/// The rows of whole sequences, one sequence after the other.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// `[max_rows, hidden_size]` F32.
    pub x: &'a Tensor,
    /// (first row, rows) of each sequence: `[_, 2]`.
    pub spans: &'a Tensor,
    /// Number of sequences.
    pub n_seqs: usize,
}

/// `out(norm(act(dense(pooled))))`, one row per sequence.
#[derive(Debug)]
pub struct ClassificationHead {
    pooling: Pooling,
    dense: Linear,
    act: Act,
    norm: Option<LayerNorm>,
    out: Linear,
}

impl ClassificationHead {
    /// Loads the head.
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
        Ok(ClassificationHead {
            pooling,
            // Not quantised: an error in the last two products affects the result directly.
            dense: Linear::load_as_stored(loader, names.dense, [n, n], names.dense_bias)?,
            act,
            norm: match names.norm {
                Some((name, bias, eps)) => Some(LayerNorm::load(loader, name, n, bias, eps)?),
                None => None,
            },
            out: Linear::load_as_stored(loader, names.out, [n_labels, n], true)?,
        })
    }

    /// Allocates the buffers of an encoder of this `shape`, and of its classification head if it has one.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn scratch(
        head: Option<&Self>,
        gpu: &Gpu,
        shape: &ModelShape,
        capacity: Capacity,
    ) -> Result<Scratch, GpuError> {
        let labels =
            |head: &Self| LabelScratch::new(gpu, shape.hidden_size, head.out.w.n_rows(), capacity.max_seqs);
        let labels = head.map(labels).transpose()?;
        Ok(Scratch { labels, ..Scratch::new(gpu, shape, capacity.without_logits())? })
    }

    /// Records the logits of sequences, and returns their tensor `[max_seqs, n_labels]` F32.
    pub fn record(&self, rec: &mut Recorder, sequences: Sequences<'_>, s: &LabelScratch) -> Tensor {
        let Sequences { x, spans, n_seqs } = sequences;
        let n = Rows { n_decode: n_seqs, n_prompt: 0 };
        ops::pool(rec, self.pooling, spans, x, &s.pooled, 0, n_seqs);
        let Linear { w, b } = &self.dense;
        ops::gate_up(rec, self.act, (&s.pooled).into(), w, b.as_ref(), &s.up, &s.act, n);
        let last = match &self.norm {
            Some(norm) => norm.record(rec, &s.act, &s.normed, n_seqs),
            None => &s.act,
        };
        self.out.record(rec, n, last, Target::Set(&s.logits));
        s.logits.clone()
    }
}
