//! Zero-shot classification: labels for texts by a language model.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};

use serde::Serialize;

use super::TaskError;
use super::batch::Batch;
use super::instruct::{Instruction, Prompter};
use super::task::{Engines, Events, Observer, Progress, Task, observed};
use super::write::add;
use crate::engine::{Engine, EngineError, Event, Request, Usage};

/// A label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// The answer that the model would give.
    pub name: String,
    /// What it means, if the name does not show that.
    pub description: Option<String>,
}

impl Label {
    /// Reads `name` or `name: description`.
    pub fn parse(text: &str) -> Label {
        let (name, description) = text.split_once(':').unwrap_or((text, ""));
        let description = Some(description.trim()).filter(|d| !d.is_empty()).map(str::to_string);
        Label { name: name.trim().to_string(), description }
    }
}

/// An input to classify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassifyInput<'a> {
    /// A text. The model is asked for its label.
    Text(&'a str),
    /// The caller's own question, to which the labels are the answers.
    Prompt(&'a str),
}

impl ClassifyInput<'_> {
    fn check(&self) -> Result<(), TaskError> {
        let (what, text) = match self {
            ClassifyInput::Text(text) => ("text", text),
            ClassifyInput::Prompt(text) => ("prompt", text),
        };
        if text.trim().is_empty() { Err(TaskError::Empty { what }) } else { Ok(()) }
    }

    fn kind(&self) -> Kind {
        match self {
            ClassifyInput::Text(_) => discriminant(&ClassifyInput::Text("")),
            ClassifyInput::Prompt(_) => discriminant(&ClassifyInput::Prompt("")),
        }
    }
}

/// A label with its probability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelProbability {
    /// The label's name.
    pub label: String,
    /// From 0 to 1. The sum over all labels is 1, unless several labels may hold.
    pub probability: f64,
}

/// The probabilities of the labels for a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// All labels, the most probable first; on a tie, in their given order.
    pub labels: Vec<LabelProbability>,
    /// Token counts of this text, without the content-free input.
    pub usage: Usage,
}

impl Classification {
    /// The labels `names`, with the softmax of `scores` as probabilities.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>, scores: &[f64], usage: Usage) -> Classification {
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - top).exp()).sum();
        Classification::of(names, scores.iter().map(|score| (score - top).exp() / sum), usage)
    }

    /// The labels `names` with their `probabilities`, whose sum is 1 unless several labels may hold.
    pub fn of<'a>(
        names: impl IntoIterator<Item = &'a str>,
        probabilities: impl IntoIterator<Item = f64>,
        usage: Usage,
    ) -> Classification {
        let labels = names.into_iter().zip(probabilities);
        let mut labels: Vec<LabelProbability> = labels
            .map(|(name, probability)| LabelProbability { label: name.to_string(), probability })
            .collect();
        labels.sort_by(|a, b| b.probability.total_cmp(&a.probability)); // a stable sort
        Classification { labels, usage }
    }

    /// This, if its probabilities are numbers.
    ///
    /// # Errors
    /// [`EngineError::OutputNotFinite`].
    pub fn checked(self) -> Result<Classification, TaskError> {
        match self.labels.iter().all(|label| label.probability.is_finite()) {
            true => Ok(self),
            false => Err(EngineError::OutputNotFinite.into()),
        }
    }

    /// The most probable label.
    pub fn best(&self) -> Option<&LabelProbability> {
        self.labels.first()
    }
}

/// Most bytes of logits in memory at once.
const LOGITS_BYTES: usize = 32 << 20;

/// A suitable value for [`EngineOptions::prompt_logprobs`](crate::engine::EngineOptions::prompt_logprobs): as many rows
/// as 32 MiB of logits hold, at least 8 and at most 256.
pub fn prompt_logprob_rows(vocab_size: usize) -> usize {
    (LOGITS_BYTES / (4 * vocab_size.max(1))).clamp(8, 256)
}

/// Computes the probabilities of `labels` for each of `inputs` with [`ClassifyTask`], and waits for them. Returns the
/// result or the error of each input, in their order.
///
/// # Errors
/// Those of [`ClassifyTask::new`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where
/// only the host submits.
pub fn classify(
    engine: &mut Engine,
    inputs: &[ClassifyInput<'_>],
    labels: &[Label],
    on: &mut Observer<'_>,
) -> Result<Vec<Result<Classification, TaskError>>, TaskError> {
    let mut task = ClassifyTask::new(engine, inputs, labels)?;
    observed(&mut task, &mut Engines::from(engine), on)
}

/// Classifies texts with a language model that was not trained for it.
///
/// A label's score is the mean log-probability of its tokens as the model's answer (Brown et al. 2020, section 2.4),
/// minus that for an empty input (Zhao et al. 2021, with differences of logarithms instead of a matrix; Holtzman et al.
/// 2021), to correct for answers that the model prefers in general. Probabilities are the softmax of the scores. All
/// labels of all inputs are one batch, in which the labels of an input share the pages of its prompt. An input that fails
/// does not stop the others.
///
/// The engine must be built with [`EngineOptions::prompt_logprobs`](crate::engine::EngineOptions::prompt_logprobs).
pub struct ClassifyTask {
    /// One request for each input and label. Content-free inputs come first, one for each kind of input that occurs.
    batch: Batch<Request>,
    labels: Vec<String>,
    /// Tokens of each label.
    n_tokens: Vec<usize>,
    /// The kinds of the content-free inputs.
    free: Vec<Kind>,
    inputs: Vec<Result<Input, TaskError>>,
    /// Of each request.
    scores: Vec<f64>,
    usages: Vec<Usage>,
    n_done: usize,
    /// The next report: so many requests are done.
    next_report: usize,
}

/// Which of its variants an [`ClassifyInput`] is.
type Kind = Discriminant<ClassifyInput<'static>>;

/// An input that has requests.
struct Input {
    kind: Kind,
    /// Its number among the inputs that have requests.
    number: usize,
}

impl ClassifyTask {
    /// Makes the prompts. An input that is blank or too long is an error of its own in the result.
    ///
    /// # Errors
    /// [`TaskError::Label`] for a label that is empty, occurs twice or has no tokens; [`TaskError::Parameter`] for
    /// fewer than two labels; [`EngineError::PromptTooLong`] if the labels alone are too long.
    pub fn new(
        engine: &Engine,
        inputs: &[ClassifyInput<'_>],
        labels: &[Label],
    ) -> Result<ClassifyTask, TaskError> {
        check_labels(labels)?;
        let prompter = Prompter::new(engine)?;
        let answers =
            labels.iter().map(|label| prompter.answer(&label.name)).collect::<Result<Vec<_>, _>>()?;
        for (label, answer) in labels.iter().zip(&answers) {
            if answer.is_empty() {
                return Err(TaskError::Label { label: label.name.clone(), problem: "has no tokens" });
            }
        }
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        let question = question(labels);
        let prompt = |input: ClassifyInput<'_>| {
            let user = match input {
                ClassifyInput::Text(text) => format!("Text:\n{}\n\n{question}", text.trim()),
                ClassifyInput::Prompt(text) => text.to_string(),
            };
            let prompt = prompter.prompt(&Instruction { system: None, user: &user, cue: "Answer:" })?;
            let (found, expected) = (prompt.len() + longest, engine.ctx());
            if found > expected {
                return Err(TaskError::Engine(EngineError::PromptTooLong { found, expected }));
            }
            Ok(prompt)
        };
        let mut free = vec![ClassifyInput::Text(""), ClassifyInput::Prompt("")];
        free.retain(|free| inputs.iter().any(|input| input.kind() == free.kind()));
        let mut prompts = free.iter().map(|input| prompt(*input)).collect::<Result<Vec<_>, _>>()?;
        let mut accept = |input: &ClassifyInput<'_>| {
            input.check()?;
            prompts.push(prompt(*input)?);
            Ok(Input { kind: input.kind(), number: prompts.len() - free.len() - 1 })
        };
        let inputs: Vec<Result<Input, TaskError>> = inputs.iter().map(&mut accept).collect();
        let request = |prompt: &[u32], answer: &[u32]| Request {
            prompt_logprobs: Some(prompt.len()),
            ..Request::new([prompt, answer].concat())
        };
        let mut requests = Vec::with_capacity(prompts.len() * labels.len());
        for prompt in &prompts {
            requests.extend(answers.iter().map(|answer| request(prompt, answer)));
        }
        let n_pieces = requests.len();
        Ok(ClassifyTask {
            batch: Batch::independent(requests),
            labels: labels.iter().map(|label| label.name.clone()).collect(),
            n_tokens: answers.iter().map(Vec::len).collect(),
            free: free.iter().map(|input| input.kind()).collect(),
            inputs,
            scores: vec![0.0; n_pieces],
            usages: vec![Usage::default(); n_pieces],
            n_done: 0,
            next_report: 0,
        })
    }
}

impl Task for ClassifyTask {
    type Output = Vec<Result<Classification, TaskError>>;
    type Error = TaskError;
    type Progress = Progress;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        match engines.language() {
            Ok(engine) => self.batch.advance(engine),
            Err(error) => self.batch.give_up(error),
        }
    }

    fn observe(&mut self, events: &mut Events) {
        self.batch.observe(events, |i, event| match event {
            Event::PromptLogprobs { logprobs, .. } => {
                let sum: f64 = logprobs.iter().map(|p| f64::from(*p)).sum();
                self.scores[i] += sum / self.n_tokens[i % self.n_tokens.len()] as f64;
            }
            Event::Done { usage, .. } => {
                self.usages[i] = usage;
                self.n_done += 1;
            }
            _ => {}
        });
    }

    fn progress(&mut self) -> Option<Progress> {
        let n_done = self.next_report;
        if n_done > self.n_done + self.batch.n_errors() {
            return None;
        }
        self.next_report += 1;
        Some(Progress::Done { n_done, n_pieces: self.usages.len() })
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(engine) = engines.language() {
            self.batch.cancel(engine);
        }
    }

    fn is_done(&self) -> bool {
        self.batch.is_done()
    }

    /// The labels or the error of each input, in their order. An error of an input is [`TaskError::Empty`], one of the
    /// tokenizer, one with which [`Engine::submit`] refuses a prompt, [`EngineError::NotFinite`] or
    /// [`EngineError::OutputNotFinite`].
    ///
    /// # Errors
    /// [`TaskError::Engine`], [`TaskError::Stopped`].
    fn finish(&mut self) -> Result<Vec<Result<Classification, TaskError>>, TaskError> {
        self.batch.result()?;
        let (n_labels, n_free) = (self.labels.len(), self.free.len());
        let mut errors: BTreeMap<usize, EngineError> = BTreeMap::new();
        for (i, error) in self.batch.take_errors() {
            match (i / n_labels).checked_sub(n_free) {
                Some(input) => drop(errors.entry(input).or_insert(error)),
                // All inputs of its kind are compared with the content-free one.
                None => return Err(error.into()),
            }
        }
        let rows: Vec<&[f64]> = self.scores.chunks(n_labels).collect();
        let (free, rows) = rows.split_at(n_free);
        let usages: Vec<&[Usage]> = self.usages.chunks(n_labels).skip(n_free).collect();
        let mut classify = |input: Input| {
            if let Some(error) = errors.remove(&input.number) {
                return Err(error.into());
            }
            let at = self.free.iter().position(|free| *free == input.kind).unwrap_or(0);
            let scores = rows[input.number].iter().zip(free[at]);
            let calibrated: Vec<f64> = scores.map(|(score, free)| score - free).collect();
            let mut usage = Usage::default();
            usages[input.number].iter().for_each(|u| add(&mut usage, *u));
            Classification::new(self.labels.iter().map(String::as_str), &calibrated, usage).checked()
        };
        Ok(std::mem::take(&mut self.inputs).into_iter().map(|input| classify(input?)).collect())
    }
}

/// Checks that labels are distinct, not empty, and at least two.
pub fn check_labels(labels: &[Label]) -> Result<(), TaskError> {
    if labels.len() < 2 {
        let found = match labels.len() {
            0 => "empty".to_string(),
            _ => "one label".to_string(),
        };
        return Err(TaskError::Parameter { name: "labels", found, expected: "at least two labels" });
    }
    let wrong = |label: &Label, problem| Err(TaskError::Label { label: label.name.clone(), problem });
    for (i, label) in labels.iter().enumerate() {
        if label.name.is_empty() {
            return wrong(label, "is empty");
        }
        if labels[..i].iter().any(|other| other.name == label.name) {
            return wrong(label, "is there twice");
        }
    }
    Ok(())
}

/// The question about a text.
fn question(labels: &[Label]) -> String {
    let mut question = String::new();
    if labels.iter().any(|label| label.description.is_some()) {
        question += "Labels:\n";
        for Label { name, description } in labels {
            let line = description.as_ref().map_or(format!("- {name}\n"), |d| format!("- {name}: {d}\n"));
            question += &line;
        }
        question.push('\n');
    }
    let names: Vec<&str> = labels.iter().map(|label| &label.name[..]).collect();
    let (last, others) = names.split_last().unwrap_or((&"", &[]));
    question + &format!("Choose one label: {} or {last}.", others.join(", "))
}
