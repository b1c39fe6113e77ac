//! Zero-shot classification: labels for texts by a language model.

use std::collections::VecDeque;
use std::mem::{Discriminant, discriminant};

use serde::Serialize;

use super::TaskError;
use super::batch::Batch;
use super::instruct::{Instruction, Prompter};
use super::task::{Engines, Events, Finished, Observer, Task, collected, rest};
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
    collected(&mut task, &mut Engines::from(engine), inputs.len(), on)
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
    /// One request for each prompt and label.
    batch: Batch<Request>,
    labels: Vec<String>,
    /// Tokens of each label.
    n_tokens: Vec<usize>,
    /// Content-free prompts come first, one for each kind of input that occurs.
    prompts: Vec<Prompt>,
    n_free: usize,
    /// Prompts that have ended, but whose inputs have no result yet, because a content-free prompt has not ended.
    ended: Vec<usize>,
    finished: VecDeque<Finished<Classification>>,
    /// The error of a content-free prompt, with which all are compared.
    failure: Option<TaskError>,
}

/// Which of its variants an [`ClassifyInput`] is.
type Kind = Discriminant<ClassifyInput<'static>>;

/// A prompt, and what is known of its labels.
struct Prompt {
    kind: Kind,
    /// The input that it is for, if it is not content-free.
    index: usize,
    /// Of each label.
    scores: Vec<f64>,
    usage: Usage,
    /// Requests that have not ended.
    n_left: usize,
    error: Option<EngineError>,
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
        let n_free = free.len();
        let mut task = ClassifyTask {
            batch: Batch::independent([]),
            labels: labels.iter().map(|label| label.name.clone()).collect(),
            n_tokens: answers.iter().map(Vec::len).collect(),
            prompts: Vec::with_capacity(n_free + inputs.len()),
            n_free,
            ended: Vec::new(),
            finished: VecDeque::new(),
            failure: None,
        };
        let mut add = |input: &ClassifyInput<'_>, index: usize, prompt: Vec<u32>| {
            for answer in &answers {
                let prompt_logprobs = Some(prompt.len());
                task.batch.push(Request { prompt_logprobs, ..Request::new([&prompt[..], answer].concat()) });
            }
            task.prompts.push(Prompt {
                kind: input.kind(),
                index,
                scores: vec![0.0; answers.len()],
                usage: Usage::default(),
                n_left: answers.len(),
                error: None,
            });
        };
        for (index, input) in free.iter().enumerate() {
            add(input, index, prompt(*input)?);
        }
        for (index, input) in inputs.iter().enumerate() {
            match input.check().and_then(|()| prompt(*input)) {
                Ok(prompt) => add(input, index, prompt),
                Err(error) => task.finished.push_back(Finished { index, result: Err(error) }),
            }
        }
        Ok(task)
    }

    /// Notes the requests that were refused or failed.
    fn take_errors(&mut self) {
        for (i, error) in self.batch.take_errors() {
            let (i, prompt) = (i / self.labels.len(), &mut self.prompts[i / self.labels.len()]);
            prompt.error.get_or_insert(error);
            prompt.n_left -= 1;
            if prompt.n_left == 0 {
                self.ended.push(i);
            }
        }
    }

    /// Finishes the inputs whose prompts have ended, once the content-free prompts have.
    fn judge(&mut self) {
        self.take_errors();
        let (free, prompts) = self.prompts.split_at_mut(self.n_free);
        if free.iter().any(|free| free.n_left > 0) {
            return;
        }
        let error = free.iter_mut().find_map(|free| free.error.take());
        if let Some(error) = error {
            self.failure.get_or_insert(error.into());
        }
        for i in self.ended.drain(..) {
            let Some(i) = i.checked_sub(self.n_free).filter(|_| self.failure.is_none()) else { continue };
            let prompt = &mut prompts[i];
            let result = match prompt.error.take() {
                Some(error) => Err(error.into()),
                None => prompt.classify(free, &self.labels),
            };
            self.finished.push_back(Finished { index: prompt.index, result });
        }
    }
}

impl Prompt {
    /// The labels of its input, compared with the content-free prompt of its kind.
    fn classify(&self, free: &[Prompt], labels: &[String]) -> Result<Classification, TaskError> {
        let free = free.iter().find(|free| free.kind == self.kind).map_or(&[][..], |free| &free.scores);
        let calibrated: Vec<f64> = self.scores.iter().zip(free).map(|(score, free)| score - free).collect();
        Classification::new(labels.iter().map(String::as_str), &calibrated, self.usage).checked()
    }
}

impl Task for ClassifyTask {
    type Output = Vec<Finished<Classification>>;
    type Error = TaskError;
    type Progress = Finished<Classification>;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        match engines.language() {
            Ok(engine) => self.batch.advance(engine),
            Err(error) => self.batch.give_up(error),
        }
        self.judge();
    }

    fn observe(&mut self, events: &mut Events) {
        let n_labels = self.labels.len();
        self.batch.observe(events, |i, event| {
            let (i, label) = (i / n_labels, i % n_labels);
            let prompt = &mut self.prompts[i];
            match event {
                Event::PromptLogprobs { logprobs, .. } => {
                    let sum: f64 = logprobs.iter().map(|p| f64::from(*p)).sum();
                    prompt.scores[label] += sum / self.n_tokens[label] as f64;
                }
                Event::Done { usage, .. } => {
                    add(&mut prompt.usage, usage);
                    prompt.n_left -= 1;
                    if prompt.n_left == 0 {
                        self.ended.push(i);
                    }
                }
                _ => {}
            }
        });
        self.judge();
    }

    fn progress(&mut self) -> Option<Finished<Classification>> {
        self.finished.pop_front()
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(engine) = engines.language() {
            self.batch.cancel(engine);
        }
    }

    fn is_done(&self) -> bool {
        self.batch.is_done()
    }

    /// The labels or the error of each input. An error of an input is [`TaskError::Empty`], one of the tokenizer, one
    /// with which [`Engine::submit`] refuses a prompt, [`EngineError::NotFinite`] or [`EngineError::OutputNotFinite`].
    ///
    /// # Errors
    /// [`TaskError::Engine`], [`TaskError::Stopped`].
    fn finish(&mut self) -> Result<Vec<Finished<Classification>>, TaskError> {
        self.batch.result()?;
        match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(rest(&mut self.finished)),
        }
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
