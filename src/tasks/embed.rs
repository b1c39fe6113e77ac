//! Embeddings, or logits of a classification head, of many texts.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use super::TaskError;
use super::batch::Batch;
use super::task::{Engines, Events, Progress, Task, run};
use crate::engine::{Output, TextEncoder};

/// The result of an encoder for a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoding {
    /// The embedding, or the logits, one per label.
    pub values: Vec<f32>,
    /// Tokens of the text, including those around it.
    pub n_tokens: usize,
    /// Tokens that were cut from the text because it is longer than the model's maximum.
    pub n_cut: usize,
}

/// Computes the embeddings of `texts`, or the logits of the encoder's classification head, and waits for them. Calls
/// `progress` with the number of finished texts. Returns the result or the error of each text, in their order.
///
/// # Errors
/// Those of [`EncodeTask::new`] and [`EncodeTask::finish`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an
/// adopted device, where only the host submits.
pub fn encode(
    encoder: &mut TextEncoder,
    texts: &[impl AsRef<str>],
    output: Output,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Result<Encoding, TaskError>>, TaskError> {
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
) -> Result<Vec<Result<Encoding, TaskError>>, TaskError> {
    run_to_end(EncodeTask::from_tokens(token_ids, output), encoder, progress)
}

fn run_to_end(
    mut task: EncodeTask,
    encoder: &mut TextEncoder,
    on: &mut dyn FnMut(usize),
) -> Result<Vec<Result<Encoding, TaskError>>, TaskError> {
    run(&mut task, &mut Engines::from(encoder), |progress| {
        if let Some(Progress::Done { n_done, .. }) = progress {
            on(n_done);
        }
        ControlFlow::Continue(())
    })
}

/// Computes embeddings of many texts, or logits of a classification head. A text that fails does not stop the others.
pub struct EncodeTask {
    batch: Batch<(Vec<u32>, Output)>,
    /// The index of each request's text.
    order: Vec<usize>,
    /// Of each text: its result, once there is one.
    encodings: Vec<Result<Encoding, TaskError>>,
    n_done: usize,
    /// Number of finished texts that have been reported.
    n_reported: usize,
}

impl EncodeTask {
    /// Tokenizes the texts. A text that cannot be tokenized, is blank or has no tokens of its own is an error of its own
    /// in the result.
    ///
    /// # Errors
    /// Those of [`TextEncoder::tokenize`] if the checkpoint has no tokenizer.
    pub fn new(
        encoder: &TextEncoder,
        texts: &[impl AsRef<str>],
        output: Output,
    ) -> Result<EncodeTask, TaskError> {
        let n_around = encoder.tokenize("")?.0.len();
        let tokenize = |text: &str| {
            if text.trim().is_empty() {
                return Err(TaskError::Empty { what: "text" });
            }
            let (token_ids, n_cut) = encoder.tokenize(text)?;
            // A normalizer may remove all of a text.
            if token_ids.len() <= n_around {
                return Err(TaskError::TooShort { what: "text", found: 0, expected: 1 });
            }
            Ok((token_ids, n_cut))
        };
        Ok(EncodeTask::of(texts.iter().map(|text| tokenize(text.as_ref())), output))
    }

    /// A task for texts that are already token ids.
    pub fn from_tokens(token_ids: Vec<Vec<u32>>, output: Output) -> EncodeTask {
        EncodeTask::of(token_ids.into_iter().map(|ids| Ok((ids, 0))), output)
    }

    /// A task for token ids, with the number of ids that were cut, or errors.
    fn of(texts: impl Iterator<Item = Result<(Vec<u32>, usize), TaskError>>, output: Output) -> EncodeTask {
        let (mut encodings, mut requests) = (Vec::new(), Vec::new());
        for (i, text) in texts.enumerate() {
            encodings.push(text.map(|(token_ids, n_cut)| {
                let n_tokens = token_ids.len();
                requests.push((i, token_ids));
                Encoding { values: Vec::new(), n_tokens, n_cut }
            }));
        }
        // Longest first: texts of a batch have similar lengths, and little is lost at the end.
        requests.sort_by_key(|(_, token_ids)| Reverse(token_ids.len()));
        let order = requests.iter().map(|(i, _)| *i).collect();
        let batch = Batch::independent(requests.into_iter().map(|(_, token_ids)| (token_ids, output)));
        EncodeTask { batch, order, encodings, n_done: 0, n_reported: 0 }
    }
}

impl Task for EncodeTask {
    type Output = Vec<Result<Encoding, TaskError>>;
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
            if let Ok(encoding) = &mut self.encodings[self.order[i]] {
                encoding.values = values;
            }
            self.n_done += 1;
        });
    }

    /// [`Progress::Done`] for each text.
    fn progress(&mut self) -> Option<Progress> {
        let n_refused = self.encodings.len() - self.order.len();
        if self.n_reported >= n_refused + self.n_done + self.batch.n_errors() {
            return None;
        }
        self.n_reported += 1;
        Some(Progress::Done { n_done: self.n_reported, n_pieces: self.encodings.len() })
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(encoder) = engines.encoder() {
            self.batch.cancel(encoder);
        }
    }

    fn is_done(&self) -> bool {
        self.batch.is_done()
    }

    /// The result or the error of each text, in their order. An error of a text is [`TaskError::Empty`],
    /// [`TaskError::TooShort`], one of the tokenizer, one with which [`TextEncoder::submit`] refuses token ids, or
    /// [`EngineError::OutputNotFinite`](crate::engine::EngineError::OutputNotFinite).
    ///
    /// # Errors
    /// Those of the device and of the model, [`TaskError::Stopped`].
    fn finish(&mut self) -> Result<Vec<Result<Encoding, TaskError>>, TaskError> {
        self.batch.result()?;
        for (i, error) in self.batch.take_errors() {
            self.encodings[self.order[i]] = Err(error.into());
        }
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
pub fn label_scores(
    texts: &[impl AsRef<[f32]>],
    labels: &[impl AsRef<[f32]>],
    temperature: f64,
) -> Vec<Vec<f64>> {
    let score = |text: &[f32], label: &[f32]| f64::from(cosine(text, label)) / temperature;
    let scores = |text: &[f32]| labels.iter().map(|label| score(text, label.as_ref())).collect();
    texts.iter().map(|text| scores(text.as_ref())).collect()
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
