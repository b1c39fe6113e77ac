//! Sequence classification: the labels, and the classification head.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{LayerNorm, Linear, Target};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::settings::{LABELS, Read, Settings};
use crate::models::{Capacity, LabelScratch, Labels, Loader, ModelError, ModelShape, Problem, Scratch};
use crate::ops::{self, Act, Pooling, Rows};

/// Reads the labels, if the checkpoint has a sequence-classification head. Default names: `LABEL_0`, `LABEL_1` …, as in
/// transformers' `configuration_utils.py`.
pub(crate) fn read_labels(s: &Settings<'_>) -> Read<Option<Labels>> {
    let architectures = s.texts("architectures")?.unwrap_or_default();
    if !architectures.iter().any(|name| name.ends_with("ForSequenceClassification")) {
        return Ok(None);
    }
    let names = match s.object("id2label")? {
        Some(by_id) => names_by_id(s, &by_id)?,
        None => (0..s.whole("num_labels", LABELS, 2)?).map(|i| format!("LABEL_{i}")).collect(),
    };
    let problems = [
        ("single_label_classification", Problem::SingleLabel),
        ("multi_label_classification", Problem::MultiLabel),
        ("regression", Problem::Regression),
    ];
    let problem = s.some_one_of("problem_type", &problems)?.unwrap_or(match names.len() {
        1 => Problem::Regression,
        _ => Problem::SingleLabel,
    });
    Ok(Some(Labels { names, problem }))
}

/// The names in `id2label`, whose keys must be 0, 1, 2 …. A name may be written as a number.
fn names_by_id(s: &Settings<'_>, by_id: &Settings<'_>) -> Read<Vec<String>> {
    let mut names = BTreeMap::new();
    for (id, written) in by_id.entries() {
        let Ok(number) = id.trim().parse::<usize>() else {
            return Err(by_id.wrong_value(id, written, "a whole number as its key"));
        };
        let name = match serde_json::from_str(written) {
            Ok(Value::String(name)) => name,
            Ok(Value::Number(_)) => written.to_string(),
            _ => return Err(by_id.wrong(id, "the name of a label")),
        };
        names.insert(number, name);
    }
    let n = names.len();
    if n == 0 {
        return Err(s.wrong("id2label", "a label or more"));
    }
    if names.keys().copied().ne(0..n) {
        let found = names.keys().map(usize::to_string).collect::<Vec<_>>().join(", ");
        return Err(s.wrong_value("id2label", found, format!("the ids 0 to {}", n - 1)));
    }
    Ok(names.into_values().collect())
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
    dense: Option<(Linear, Act)>,
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
            dense: Some((Linear::load_as_stored(loader, names.dense, [n, n], names.dense_bias)?, act)),
            norm: match names.norm {
                Some((name, bias, eps)) => Some(LayerNorm::load(loader, name, n, bias, eps)?),
                None => None,
            },
            out: Linear::load_as_stored(loader, names.out, [n_labels, n], true)?,
        })
    }

    /// Loads the head of a decoder: `out` alone, without a bias, after the row of the last token.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn of_last(
        loader: &mut Loader,
        out: &str,
        [hidden_size, n_labels]: [usize; 2],
    ) -> Result<Self, ModelError> {
        let out = Linear::load_as_stored(loader, out, [n_labels, hidden_size], false)?;
        Ok(ClassificationHead { pooling: Pooling::Last, dense: None, norm: None, out })
    }

    /// Number of labels.
    pub fn n_labels(&self) -> usize {
        self.out.w.n_rows()
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
            |head: &Self| LabelScratch::new(gpu, shape.hidden_size, head.n_labels(), capacity.max_seqs);
        let labels = head.map(labels).transpose()?;
        Ok(Scratch { labels, ..Scratch::new(gpu, shape, capacity.without_logits())? })
    }

    /// Records the logits of sequences, and returns their tensor `[max_seqs, n_labels]` F32.
    pub fn record(&self, rec: &mut Recorder, sequences: Sequences<'_>, s: &LabelScratch) -> Tensor {
        let Sequences { x, spans, n_seqs } = sequences;
        let n = Rows { n_decode: n_seqs, n_prompt: 0 };
        ops::pool(rec, self.pooling, spans, x, &s.pooled, 0, n_seqs);
        let mut last = &s.pooled;
        if let Some((dense, act)) = &self.dense {
            ops::gate_up(rec, *act, dense.of(last), &s.up, &s.act, n);
            last = &s.act;
        }
        if let Some(norm) = &self.norm {
            last = norm.record(rec, last, &s.normed, n_seqs);
        }
        self.out.record(rec, n, last, Target::Set(&s.logits));
        s.logits.clone()
    }
}
