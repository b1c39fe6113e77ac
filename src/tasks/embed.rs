//! Many texts through an encoder, in batches.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use super::TaskError;
use super::batch::Batch;
use super::task::{Engines, Events, Progress, Task, run};
use crate::engine::{Output, TextEncoder};

/// What an encoder made of many texts, in their order.
#[derive(Clone, Debug, Default)]
pub struct Encodings {
    /// The embedding of each text, or its logits, one a label.
    pub values: Vec<Vec<f32>>,
    /// Tokens of each text, those around it included.
    pub n_tokens: Vec<usize>,
    /// Tokens that were cut from each text because the model reads no more.
    pub n_cut: Vec<usize>,
}

impl Encodings {
    /// How many texts were cut, and how many tokens they lost together.
    pub fn cut(&self) -> (usize, usize) {
        (self.n_cut.iter().filter(|n| **n > 0).count(), self.n_cut.iter().sum())
    }
}

/// Computes the embeddings of `texts`, or the logits of the encoder's classification head, and waits for them. `progress`
/// hears how many of them are done.
///
/// # Errors
/// As [`EncodeTask::new`] and [`EncodeTask::finish`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted
/// device, whose host submits.
pub fn encode(
    encoder: &mut TextEncoder,
    texts: &[impl AsRef<str>],
    output: Output,
    progress: &mut dyn FnMut(usize),
) -> Result<Encodings, TaskError> {
    let task = EncodeTask::new(encoder, texts, output)?;
    run_to_end(task, encoder, progress)
}

/// As [`encode`], for texts that are token ids already.
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

/// Embeddings of many texts on their way, or logits of a classification head.
pub struct EncodeTask {
    batch: Batch<(Vec<u32>, Output)>,
    /// The text of each request of the batch.
    order: Vec<usize>,
    encodings: Encodings,
    n_done: usize,
    /// Of the texts that are done, how many were reported.
    n_reported: usize,
}

impl EncodeTask {
    /// Tokenizes the texts.
    ///
    /// # Errors
    /// What [`TextEncoder::tokenize`] refuses.
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

    /// For texts that are token ids already.
    pub fn from_tokens(mut token_ids: Vec<Vec<u32>>, output: Output) -> EncodeTask {
        let n_tokens: Vec<usize> = token_ids.iter().map(Vec::len).collect();
        // Longest first: texts of a batch are about as long as each other, and what is too large shows at once.
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
    /// What [`TextEncoder::submit`] refuses, [`EngineError::OutputNotFinite`](crate::engine::EngineError::OutputNotFinite),
    /// [`TaskError::Stopped`].
    fn finish(&mut self) -> Result<Encodings, TaskError> {
        self.batch.result()?;
        Ok(std::mem::take(&mut self.encodings))
    }
}

/// A temperature for [`label_scores`]: sentence embeddings are trained with cosines times 20 as logits (the `scale` of
/// sentence-transformers' `MultipleNegativesRankingLoss`).
pub const COSINE_TEMPERATURE: f64 = 0.05;

/// How well each label describes each text, by the embeddings of both from an embedder that was not trained for it: their
/// cosine over `temperature`, `[n_texts][n_labels]`. The softmax of a text's scores is the probability of each label.
///
/// Radford et al. 2021, section 3.1.2, whose labels are texts and whose inputs are pictures.
///
/// # Panics
/// If the embeddings differ in length.
pub fn label_scores(texts: &[Vec<f32>], labels: &[Vec<f32>], temperature: f64) -> Vec<Vec<f64>> {
    let score = |text: &[f32], label: &[f32]| f64::from(cosine(text, label)) / temperature;
    texts.iter().map(|text| labels.iter().map(|label| score(text, label)).collect()).collect()
}

/// The cosine of the angle between two embeddings of the same model; 0 where one is all zeros.
///
/// # Panics
/// If their lengths differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "embeddings of one model have one length");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths) as f32 } else { 0.0 }
}
