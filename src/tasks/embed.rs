//! Embeddings, or logits of a classification head, of many texts.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::TaskError;
use super::batch::Batch;
use super::task::{Engines, Events, Finished, Progress, Task, collected, rest};
use crate::engine::{Output, TextEncoder};
use crate::text::Pair;

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
    run_to_end(EncodeTask::new(encoder, texts, output)?, encoder, progress)
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

pub(super) fn run_to_end(
    mut task: EncodeTask,
    encoder: &mut TextEncoder,
    on: &mut dyn FnMut(usize),
) -> Result<Vec<Result<Encoding, TaskError>>, TaskError> {
    let n = task.n_texts();
    collected(&mut task, &mut Engines::from(encoder), n, &mut |progress| {
        if let Progress::Done { n_done, .. } = progress {
            on(n_done);
        }
        ControlFlow::Continue(())
    })
}

/// From the logits of a text to a score.
pub(super) type Score = fn(&[f32]) -> f32;

/// Computes embeddings of many texts, or logits of a classification head. A text that fails does not stop the others.
pub struct EncodeTask {
    batch: Batch<(Vec<u32>, Vec<u32>, Output)>,
    n_texts: usize,
    /// Of each request: its text, and the result without values.
    requests: Vec<(usize, Encoding)>,
    /// What the score is of the logits, if that is wanted.
    score: Option<Score>,
    finished: VecDeque<Finished<Encoding>>,
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
            Ok(Pair { token_ids, types: Vec::new(), n_cut })
        };
        Ok(EncodeTask::of(texts.iter().map(|text| tokenize(text.as_ref())), output, None))
    }

    /// A task for texts that are already token ids.
    pub fn from_tokens(token_ids: Vec<Vec<u32>>, output: Output) -> EncodeTask {
        let pair = |token_ids| Ok(Pair { token_ids, ..Pair::default() });
        EncodeTask::of(token_ids.into_iter().map(pair), output, None)
    }

    /// A task for token ids with their types, or errors.
    pub(super) fn of(
        texts: impl ExactSizeIterator<Item = Result<Pair, TaskError>>,
        output: Output,
        score: Option<Score>,
    ) -> EncodeTask {
        let n_texts = texts.len();
        let (mut finished, mut all) = (VecDeque::new(), Vec::new());
        for (index, text) in texts.enumerate() {
            match text {
                Ok(text) => all.push((index, text)),
                Err(error) => finished.push_back(Finished { index, result: Err(error) }),
            }
        }
        // Longest first: texts of a batch have similar lengths, and little is lost at the end.
        all.sort_by_key(|(_, text)| Reverse(text.token_ids.len()));
        let of_text = |(index, text): &(usize, Pair)| {
            (*index, Encoding { values: Vec::new(), n_tokens: text.token_ids.len(), n_cut: text.n_cut })
        };
        let requests = all.iter().map(of_text).collect();
        let batch = Batch::independent(all.into_iter().map(|(_, text)| (text.token_ids, text.types, output)));
        EncodeTask { batch, n_texts, requests, score, finished }
    }

    /// The number of texts.
    pub fn n_texts(&self) -> usize {
        self.n_texts
    }

    /// Finishes the texts that were refused or failed.
    fn take_errors(&mut self) {
        for (i, error) in self.batch.take_errors() {
            self.finished.push_back(Finished { index: self.requests[i].0, result: Err(error.into()) });
        }
    }
}

impl Task for EncodeTask {
    type Output = Vec<Finished<Encoding>>;
    type Error = TaskError;
    type Progress = Finished<Encoding>;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        match engines.encoder() {
            Ok(encoder) => self.batch.advance(encoder),
            Err(error) => self.batch.give_up(error),
        }
        self.take_errors();
    }

    fn observe(&mut self, events: &mut Events) {
        self.batch.observe_encoded(events, |i, values| {
            let (index, encoding) = &mut self.requests[i];
            let values = match self.score {
                Some(score) => vec![score(&values)],
                None => values,
            };
            let result = Ok(Encoding { values, ..std::mem::take(encoding) });
            self.finished.push_back(Finished { index: *index, result });
        });
        self.take_errors();
    }

    fn progress(&mut self) -> Option<Finished<Encoding>> {
        self.finished.pop_front()
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(encoder) = engines.encoder() {
            self.batch.cancel(encoder);
        }
    }

    fn is_done(&self) -> bool {
        self.batch.is_done()
    }

    /// The result or the error of each text. An error of a text is [`TaskError::Empty`], [`TaskError::TooShort`], one of
    /// the tokenizer, one with which [`TextEncoder::submit`] refuses token ids, or
    /// [`EngineError::OutputNotFinite`](crate::engine::EngineError::OutputNotFinite).
    ///
    /// # Errors
    /// Those of the device and of the model, [`TaskError::Stopped`].
    fn finish(&mut self) -> Result<Vec<Finished<Encoding>>, TaskError> {
        self.batch.result()?;
        Ok(rest(&mut self.finished))
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
    Direction::of(a).cosine(&Direction::of(b))
}

/// An embedding that is compared with many others.
#[derive(Clone, Copy, Debug)]
pub struct Direction<'a> {
    values: &'a [f32],
    /// The square of its length.
    square: f64,
}

impl<'a> Direction<'a> {
    /// The direction of an embedding.
    pub fn of(values: &'a [f32]) -> Direction<'a> {
        Direction { values, square: dot(values, values) }
    }

    /// As [`cosine`].
    ///
    /// # Panics
    /// If their lengths differ.
    pub fn cosine(&self, other: &Direction<'_>) -> f32 {
        assert_eq!(self.values.len(), other.values.len(), "embeddings of one model have one length");
        let lengths = (self.square * other.square).sqrt();
        if lengths > 0.0 { (dot(self.values, other.values) / lengths) as f32 } else { 0.0 }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
