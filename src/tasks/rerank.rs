//! Reranking: how well texts answer a query, as a model that reads both judges it.

use super::embed::{EncodeTask, run_to_end};
use super::{Encoding, TaskError};
use crate::checkpoint::Scoring;
use crate::engine::{EngineError, Output, TextEncoder};
use crate::text::{Pair, Tokenizer};

/// The instruction of a model that judges, unless another is given: that of its makers.
pub const RERANK_INSTRUCTION: &str =
    "Given a web search query, retrieve relevant passages that answer the query";

/// What Qwen3-Reranker was trained to read before and after instruction, query and text (its model card).
const BEFORE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
                      Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// Scores `texts` for a query, and waits for them. Calls `progress` with the number of finished texts. Returns the score
/// or the error of each text, in their order: an [`Encoding`] whose only value is the score, from 0 to 1 unless the model
/// says otherwise ([`Scoring::Logit`]). See [`rerank_task`].
///
/// # Errors
/// Those of [`rerank_task`] and [`EncodeTask::finish`](super::Task::finish);
/// [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where only the host submits.
pub fn rerank(
    encoder: &mut TextEncoder,
    query: &str,
    texts: &[impl AsRef<str>],
    instruction: Option<&str>,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Result<Encoding, TaskError>>, TaskError> {
    run_to_end(rerank_task(encoder, query, texts, instruction)?, encoder, progress)
}

/// The task of [`rerank`]. A text that is blank is an error of its own in the result. Texts that are too long for the
/// model are cut.
///
/// `instruction` says what is looked for, to a model that judges. Default: [`RERANK_INSTRUCTION`].
///
/// # Errors
/// [`TaskError::Empty`] if the query is blank; [`EngineError::Parameter`] if the model is no reranker
/// ([`ModelFiles::into_reranker`](crate::checkpoint::ModelFiles::into_reranker)), or takes no instruction; those of the
/// tokenizer.
pub fn rerank_task(
    encoder: &TextEncoder,
    query: &str,
    texts: &[impl AsRef<str>],
    instruction: Option<&str>,
) -> Result<EncodeTask, TaskError> {
    if query.trim().is_empty() {
        return Err(TaskError::Empty { what: "query" });
    }
    let wrong = |name, found: &str, expected| {
        Err(TaskError::Engine(EngineError::Parameter { name, found: found.into(), expected }))
    };
    let Some(scoring) = encoder.scoring() else {
        return wrong("model", encoder.name(), "a reranker");
    };
    let judge = match (scoring, instruction) {
        (Scoring::Judgement, _) => {
            Some(Judge::new(encoder, query, instruction.unwrap_or(RERANK_INSTRUCTION))?)
        }
        (_, None) => None,
        (_, Some(found)) => return wrong("instruction", found, "none: a cross-encoder takes only pairs"),
    };
    let pair = |text: &str| {
        if text.trim().is_empty() {
            return Err(TaskError::Empty { what: "text" });
        }
        match &judge {
            Some(judge) => judge.prompt(text),
            None => Ok(encoder.tokenize_pair(query, text)?),
        }
    };
    let score = match scoring {
        Scoring::Logit => |logits: &[f32]| logits[0],
        Scoring::Logistic => |logits: &[f32]| logistic(logits[0]),
        // The softmax of two.
        Scoring::Judgement => |logits: &[f32]| logistic(logits[0] - logits[1]),
    };
    Ok(EncodeTask::of(texts.iter().map(|text| pair(text.as_ref())), Output::Logits, Some(score)))
}

fn logistic(x: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(x)).exp())) as f32
}

/// The prompts of a model that judges.
struct Judge<'a> {
    tokenizer: &'a Tokenizer,
    before: Vec<u32>,
    after: Vec<u32>,
    /// Instruction and query.
    question: String,
    /// Most tokens of a prompt.
    ctx: usize,
}

impl<'a> Judge<'a> {
    fn new(encoder: &'a TextEncoder, query: &str, instruction: &str) -> Result<Judge<'a>, TaskError> {
        let no_tokenizer = || TaskError::NoTokenizer { model: encoder.name().to_string() };
        let tokenizer = encoder.tokenizer().ok_or_else(no_tokenizer)?;
        let (before, after) = (tokenizer.encode(BEFORE, false)?, tokenizer.encode(AFTER, false)?);
        let (ctx, n_around) = (encoder.ctx(), before.len() + after.len());
        if n_around >= ctx {
            return Err(TaskError::NoRoom { ctx, n_around });
        }
        let question = format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: ");
        Ok(Judge { tokenizer, before, after, question, ctx })
    }

    /// The end of a text that is too long is cut. Names of special tokens in it are ordinary characters.
    fn prompt(&self, text: &str) -> Result<Pair, TaskError> {
        let mut middle = self.tokenizer.encode_plain(&format!("{}{text}", self.question))?;
        let room = self.ctx - self.before.len() - self.after.len();
        let n_cut = middle.len().saturating_sub(room);
        middle.truncate(room);
        let token_ids = [&self.before[..], &middle, &self.after].concat();
        Ok(Pair { token_ids, types: Vec::new(), n_cut })
    }
}
