//! Embeddings, or logits of a classification head, of many texts.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use super::TaskError;
use super::batch::Batch;
use super::task::{Engines, Events, Progress, Task, run};
use crate::engine::{Output, TextEncoder};

/// The results of an encoder for many texts, in their order.
#[derive(Clone, Debug, Default)]
pub struct Encodings {
    /// The embedding of each text, or its logits, one per label.
    pub values: Vec<Vec<f32>>,
    /// Tokens of each text, including those around it.
    pub n_tokens: Vec<usize>,
    /// Tokens that were cut from each text because it is longer than the model's maximum.
    pub n_cut: Vec<usize>,
}

impl Encodings {
    /// The number of texts that were cut, and of tokens that were cut in total.
    pub fn cut(&self) -> (usize, usize) {
        (self.n_cut.iter().filter(|n| **n > 0).count(), self.n_cut.iter().sum())
    }
}

/// Computes the embeddings of `texts`, or the logits of the encoder's classification head, and waits for them. Calls
/// `progress` with the number of finished texts.
///
/// # Errors
/// Those of [`EncodeTask::new`] and [`EncodeTask::finish`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an
/// adopted device, where only the host submits.
pub fn encode(
    encoder: &mut TextEncoder,
    texts: &[impl AsRef<str>],
    output: Output,
    progress: &mut dyn FnMut(usize),
) -> Result<Encodings, TaskError> {
    let task = EncodeTask::new(encoder, texts, output)?;
    run_to_end(task, encoder, progress)
}

/// As [`encode`], for texts that are already token ids.
///
/// # Errors
/// As [`encode`].
pub fn encode_tokens(
    encoder: &mut TextEncoder,
    token_ids: Vec<Vec<u32>>,
    output: Output,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<f32>>, TaskError> {
    Ok(run_to_end(EncodeTask::from_tokens(token_ids, output), encoder, progress)?.values)
}

fn run_to_end(
    mut task: EncodeTask,
    encoder: &mut TextEncoder,
    on: &mut dyn FnMut(usize),
) -> Result<Encodings, TaskError> {
    run(&mut task, &mut Engines::from(encoder), |progress| {
        if let Some(Progress::Done { n_done, .. }) = progress {
            on(n_done);
        }
        ControlFlow::Continue(())
    })
}

/// Computes embeddings of many texts, or logits of a classification head.
pub struct EncodeTask {
    batch: Batch<(Vec<u32>, Output)>,
    /// The index of each request's text.
    order: Vec<usize>,
    encodings: Encodings,
    n_done: usize,
    /// Number of finished texts that have been reported.
    n_reported: usize,
}

impl EncodeTask {
    /// Tokenizes the texts.
    ///
    /// # Errors
    /// Those of [`TextEncoder::tokenize`].
    pub fn new(
        encoder: &TextEncoder,
        texts: &[impl AsRef<str>],
        output: Output,
    ) -> Result<EncodeTask, TaskError> {
        let tokenized = texts.iter().map(|text| encoder.tokenize(text.as_ref()));
        let tokenized = tokenized.collect::<Result<Vec<_>, _>>()?;
        let (token_ids, n_cut): (Vec<Vec<u32>>, Vec<usize>) = tokenized.into_iter().unzip();
        let task = EncodeTask::from_tokens(token_ids, output);
        Ok(EncodeTask { encodings: Encodings { n_cut, ..task.encodings }, ..task })
    }

    /// A task for texts that are already token ids.
    pub fn from_tokens(mut token_ids: Vec<Vec<u32>>, output: Output) -> EncodeTask {
        let n_tokens: Vec<usize> = token_ids.iter().map(Vec::len).collect();
        // Longest first: texts of a batch have similar lengths, and a text that is too long fails immediately.
        let mut order: Vec<usize> = (0..token_ids.len()).collect();
        order.sort_by_key(|i| Reverse(n_tokens[*i]));
        let batch = Batch::new(order.iter().map(|i| (std::mem::take(&mut token_ids[*i]), output)));
        let (values, n_cut) = (vec![Vec::new(); order.len()], vec![0; order.len()]);
        EncodeTask {
            batch,
            order,
            encodings: Encodings { values, n_tokens, n_cut },
            n_done: 0,
            n_reported: 0,
        }
    }
}

impl Task for EncodeTask {
    type Output = Encodings;
    type Error = TaskError;
    type Progress = Progress;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        match engines.encoder() {
            Ok(encoder) => self.batch.advance(encoder),
            Err(error) => self.batch.give_up(error),
        }
    }

    fn observe(&mut self, events: &mut Events) {
        self.batch.observe_encoded(events, |i, values| {
            self.encodings.values[self.order[i]] = values;
            self.n_done += 1;
        });
    }

    /// [`Progress::Done`] for each text.
    fn progress(&mut self) -> Option<Progress> {
        if self.n_reported == self.n_done {
            return None;
        }
        self.n_reported += 1;
        Some(Progress::Done { n_done: self.n_reported, n_pieces: self.order.len() })
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(encoder) = engines.encoder() {
            self.batch.cancel(encoder);
        }
    }

    fn is_done(&self) -> bool {
        self.batch.is_done()
    }

    /// The values of all texts.
    ///
    /// # Errors
    /// Those of [`TextEncoder::submit`], [`EngineError::OutputNotFinite`](crate::engine::EngineError::OutputNotFinite),
    /// [`TaskError::Stopped`].
    fn finish(&mut self) -> Result<Encodings, TaskError> {
        self.batch.result()?;
        Ok(std::mem::take(&mut self.encodings))
    }
}

/// A temperature for [`label_scores`]: sentence embeddings are trained with cosines times 20 as logits (the `scale` of
/// sentence-transformers' `MultipleNegativesRankingLoss`).
pub const COSINE_TEMPERATURE: f64 = 0.05;

/// Scores of labels for texts, `[n_texts][n_labels]`: the cosines of their embeddings, divided by `temperature`. The
/// softmax of a text's scores gives the probabilities of the labels.
///
/// Radford et al. 2021, section 3.1.2, where the inputs are pictures.
///
/// # Panics
/// If the embeddings differ in length.
pub fn label_scores(texts: &[Vec<f32>], labels: &[Vec<f32>], temperature: f64) -> Vec<Vec<f64>> {
    let score = |text: &[f32], label: &[f32]| f64::from(cosine(text, label)) / temperature;
    texts.iter().map(|text| labels.iter().map(|label| score(text, label)).collect()).collect()
}

/// The cosine of the angle between two embeddings of the same model; 0 if one is all zeros.
///
/// # Panics
/// If their lengths differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "embeddings of one model have one length");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths) as f32 } else { 0.0 }
}
