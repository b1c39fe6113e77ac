//! `wginfer generate`: continue a text.

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use wginfer::engine::{
    Engine, EngineOptions, Event, FinishReason, Logprobs, PAGE_SIZE, Request, RequestId, Sampling, Timings,
    TokenLogprob, Usage,
};
use wginfer::text::Tokenizer;

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::interrupt::Unfinished;
use super::output::Output;
use super::sampling::SamplingArgs;
use super::{format, json, model, prompt};

const EXAMPLES: &str = "Examples:
  wginfer generate \"Once upon a time\"
  echo \"Once upon a time\" | wginfer generate --max-tokens 50 --temperature 0.8 --seed 7
  wginfer generate -f prompt.txt --stop \"The end\"
  wginfer generate \"Once upon a time\" --n 3 --json
  wginfer generate \"Once upon a time\" --max-tokens 8 --explain";

/// Continue a text
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The text to continue. Default: standard input
    #[arg(conflicts_with_all = ["file", "token_ids"])]
    prompt: Option<String>,

    /// Read the prompt from a file; `-` is standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "token_ids")]
    file: Option<PathBuf>,

    /// Token ids instead of text, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    token_ids: Option<Vec<u32>>,

    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,

    /// Text that ends the answer and is not part of it; can be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,

    /// Number of answers, in one batch; with `--seed`, answer i has the seed plus i
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    n: u32,

    /// Write only the continuation, as `--json` does. Default: the prompt and its continuation
    #[arg(long)]
    no_echo: bool,

    /// Write a line per token: its probability and the best five, before and after temperature and filters
    #[arg(long)]
    explain: bool,

    /// Write an object with text, token ids, finish reason, usage and timings; an array with `--n`
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Alternatives per token in `--explain`.
const N_BEST: usize = 5;
/// Answers that are generated at a time; further ones wait.
const MAX_SEQS: usize = 16;
/// Prompt and answer, in tokens, up to which the cache is allocated for their length only: a quarter of an engine's
/// default context.
const SHORT: usize = 1024;

/// One answer, as far as it is generated.
#[derive(Default)]
struct Answer {
    text: String,
    token_ids: Vec<u32>,
    logprobs: Vec<Logprobs>,
    end: Option<(FinishReason, Usage, Timings)>,
}

/// One answer as `--json` writes it.
#[derive(Serialize)]
struct AnswerJson<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    finish_reason: FinishReason,
    usage: Usage,
    /// `None` after a signal.
    timings: Option<Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Value>>,
}

pub fn run(args: &Args, _out: &mut dyn Write) -> Result<(), Failure> {
    let checkpoint = args.model.open()?;
    let sampling = args.sampling.over(&Sampling::from(&checkpoint.generation));
    sampling.check(checkpoint.architecture.shape().vocab_size)?;
    let text = match &args.token_ids {
        Some(_) => None,
        None => Some(prompt::text(args.prompt.as_deref(), args.file.as_deref())?),
    };
    let ids = match (&args.token_ids, &text) {
        (Some(ids), _) => ids.clone(),
        (None, text) => prompt::encode(&checkpoint, text.as_deref().unwrap_or_default())?,
    };
    let ids = prompt::check(ids)?;

    let n = args.n as usize;
    let max_seqs = n.min(MAX_SEQS);
    let n_tokens = ids.len().saturating_add(args.max_tokens);
    let options = EngineOptions {
        max_seqs,
        // Short answers need less than a whole context each.
        kv_tokens: (n_tokens <= SHORT).then(|| n_tokens.next_multiple_of(PAGE_SIZE) * max_seqs),
        max_logprobs: if args.explain { N_BEST } else { 0 },
        ..EngineOptions::default()
    };
    let mut engine = args.device.load(checkpoint, options)?;
    let requests = (0..n as u64)
        .map(|i| {
            let seed = sampling.seed.map(|seed| seed.wrapping_add(i));
            let request = Request {
                sampling: Sampling { seed, ..sampling.clone() },
                max_tokens: Some(args.max_tokens),
                stop: args.stop.clone(),
                logprobs: args.explain.then_some(N_BEST),
                ..Request::new(ids.clone())
            };
            Ok(engine.submit(request)?)
        })
        .collect::<Result<Vec<RequestId>, Failure>>()?;

    let writer = Writer {
        out: Output::stdout(),
        n_prompt: ids.len(),
        // Prompt and answer are one text, but token ids have none.
        echo: text.filter(|_| !args.no_echo && !args.explain),
        tokenizer: engine.tokenizer().cloned(),
        explain: args.explain,
        json: args.json,
        answers: (0..n).map(|_| Answer::default()).collect(),
        current: 0,
        is_open: false,
    };
    let writer = Unfinished::new(writer, |writer| {
        // Nobody reads it if it fails.
        let _ = writer.interrupted();
        None
    });
    model::drive(&mut engine, |event| {
        let index = |id: RequestId| requests.iter().position(|r| *r == id).unwrap_or(0);
        writer.update(|writer| match event {
            Event::Token { id, token, text, logprobs } => writer.token(index(id), token, &text, logprobs),
            Event::Done { id, text, finish_reason, usage, timings, .. } => {
                writer.done(index(id), &text, (finish_reason, usage, timings))
            }
            Event::Failed { error, .. } => Err(error.into()),
            Event::Logits { .. } | Event::Alignment { .. } | Event::PromptLogprobs { .. } => Ok(()),
        })
    })?;
    let answers = writer.finish(Writer::finish)?;
    report(&answers, &engine);
    Ok(())
}

/// Writes the answers in order; the first unfinished one token by token.
struct Writer {
    out: Output,
    /// Tokens of the prompt.
    n_prompt: usize,
    echo: Option<String>,
    tokenizer: Option<Tokenizer>,
    explain: bool,
    json: bool,
    answers: Vec<Answer>,
    /// Index of the answer that is being written.
    current: usize,
    /// Whether its heading is written.
    is_open: bool,
}

impl Writer {
    fn token(&mut self, i: usize, token: u32, text: &str, logprobs: Option<Logprobs>) -> Result<(), Failure> {
        let answer = &mut self.answers[i];
        answer.text.push_str(text);
        answer.token_ids.push(token);
        answer.logprobs.extend(logprobs);
        if i == self.current && !self.json {
            self.open()?;
            let n = self.answers[i].token_ids.len();
            self.step(i, n - 1, text)?;
            self.out.flush()?;
        }
        Ok(())
    }

    fn done(&mut self, i: usize, text: &str, end: (FinishReason, Usage, Timings)) -> Result<(), Failure> {
        self.answers[i].text.push_str(text);
        self.answers[i].end = Some(end);
        if self.json || i != self.current {
            return Ok(());
        }
        self.open()?;
        if !self.explain && self.tokenizer.is_some() {
            write!(self.out, "{text}")?;
        }
        self.close()?;
        // The answers after it, as far as they are generated.
        while self.current + 1 < self.answers.len() {
            self.current += 1;
            self.catch_up()?;
            if self.answers[self.current].end.is_none() {
                break;
            }
            self.close()?;
        }
        Ok(self.out.flush()?)
    }

    fn catch_up(&mut self) -> Result<(), Failure> {
        let i = self.current;
        if self.answers[i].token_ids.is_empty() && self.answers[i].end.is_none() {
            return Ok(());
        }
        self.open()?;
        if self.explain || self.tokenizer.is_none() {
            return (0..self.answers[i].token_ids.len()).try_for_each(|step| self.step(i, step, ""));
        }
        Ok(write!(self.out, "{}", self.answers[i].text)?)
    }

    /// Writes the heading of an answer, once.
    fn open(&mut self) -> Result<(), Failure> {
        if self.is_open {
            return Ok(());
        }
        self.is_open = true;
        if self.answers.len() > 1 {
            writeln!(self.out, "--- {} ---", self.current + 1)?;
        }
        if let Some(prompt) = &self.echo {
            write!(self.out, "{prompt}")?;
        }
        Ok(())
    }

    /// Writes one token of an answer: its text, its id if there is no tokenizer, or its explanation.
    fn step(&mut self, i: usize, step: usize, text: &str) -> Result<(), Failure> {
        let answer = &self.answers[i];
        let token = answer.token_ids[step];
        if let Some(logprobs) = answer.logprobs.get(step) {
            let line = explanation(self.tokenizer.as_ref(), step + 1, logprobs);
            return Ok(writeln!(self.out, "{line}")?);
        }
        if self.tokenizer.is_none() {
            let comma = if step > 0 { "," } else { "" };
            return Ok(write!(self.out, "{comma}{token}")?);
        }
        Ok(write!(self.out, "{text}")?)
    }

    /// Ends an answer.
    fn close(&mut self) -> Result<(), Failure> {
        self.is_open = false;
        let answer = &self.answers[self.current];
        let ends_line = self.explain || (self.tokenizer.is_some() && answer.text.ends_with('\n'));
        if !ends_line {
            writeln!(self.out)?;
        }
        Ok(())
    }

    /// Writes the answers as far as they are generated.
    fn interrupted(mut self) -> Result<(), Failure> {
        if !self.json {
            for i in self.current..self.answers.len() {
                if i > self.current {
                    self.current = i;
                    self.catch_up()?;
                }
                if self.is_open {
                    self.close()?;
                }
            }
        }
        self.finish().map(drop)
    }

    fn finish(mut self) -> Result<Vec<Answer>, Failure> {
        if self.json {
            let json = |a| Answer::json(a, self.n_prompt, self.tokenizer.as_ref(), self.explain);
            let all: Vec<AnswerJson<'_>> = self.answers.iter().map(json).collect();
            match &all[..] {
                [one] => json::write(one, &mut self.out)?,
                all => json::write(&all, &mut self.out)?,
            }
        }
        self.out.flush()?;
        Ok(self.answers)
    }
}

impl Answer {
    fn json(&self, n_prompt: usize, tokenizer: Option<&Tokenizer>, explain: bool) -> AnswerJson<'_> {
        let (finish_reason, usage, timings) = match self.end {
            Some((reason, usage, timings)) => (reason, usage, Some(timings)),
            None => {
                let (prompt_tokens, completion_tokens) = (n_prompt, self.token_ids.len());
                let total_tokens = prompt_tokens + completion_tokens;
                let usage = Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() };
                (FinishReason::Cancelled, usage, None)
            }
        };
        let text_of = |id| tokenizer.and_then(|t| t.id_to_token(id));
        let entry = |t: &TokenLogprob| serde_json::json!({ "token_id": t.token, "token": text_of(t.token), "logprob": t.logprob });
        let list = |top: &[TokenLogprob]| drawable(top).map(entry).collect::<Vec<_>>();
        let step = |l: &Logprobs| {
            serde_json::json!({
                "token_id": l.chosen.token,
                "token": text_of(l.chosen.token),
                "logprob": l.chosen.logprob,
                "top": list(&l.top),
                "sampled_logprob": l.sampled.logprob,
                "sampled_top": list(&l.sampled_top),
            })
        };
        AnswerJson {
            text: &self.text,
            token_ids: &self.token_ids,
            finish_reason,
            usage,
            timings,
            logprobs: explain.then(|| self.logprobs.iter().map(step).collect()),
        }
    }
}

/// The line of `--explain` for one token.
fn explanation(tokenizer: Option<&Tokenizer>, step: usize, l: &Logprobs) -> String {
    let name = |id| match tokenizer {
        Some(_) => format::token(tokenizer, id),
        None => id.to_string(),
    };
    let list = |top: &[TokenLogprob]| {
        drawable(top)
            .map(|t| format!("{} {}", name(t.token), percent(t.logprob)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (chosen, p) = (name(l.chosen.token), percent(l.chosen.logprob));
    format!(
        "{step:>4}  {chosen:<14} {p:>5} -> {:>5} %   before: {}   after: {}",
        percent(l.sampled.logprob),
        list(&l.top),
        list(&l.sampled_top)
    )
}

/// The tokens in `top` that can be drawn: if filters leave few, the list is filled up with others.
fn drawable(top: &[TokenLogprob]) -> impl Iterator<Item = &TokenLogprob> {
    top.iter().filter(|t| t.logprob > f32::MIN)
}

fn percent(logprob: f32) -> String {
    format!("{:.1}", 100.0 * f64::from(logprob).exp())
}

/// Logs the line of figures, and a warning if the context is full.
fn report(answers: &[Answer], engine: &Engine) {
    let ends: Vec<_> = answers.iter().filter_map(|a| a.end).collect();
    let full = |(reason, usage, _): &(FinishReason, Usage, Timings)| {
        *reason == FinishReason::Length && usage.total_tokens >= engine.ctx()
    };
    if ends.iter().any(full) {
        log::warn!("the context of {} tokens is full; `--ctx` makes it larger", engine.ctx());
    }
    if let [(reason, usage, timings)] = &ends[..] {
        log::info!("{}", format::figures(usage, *reason, timings));
        return;
    }
    for (i, (reason, usage, timings)) in ends.iter().enumerate() {
        log::debug!("{}: {}", i + 1, format::figures(usage, *reason, timings));
    }
    let sum = |of: fn(&Usage) -> usize| ends.iter().map(|(_, usage, _)| of(usage)).sum::<usize>();
    let first = ends.iter().map(|e| e.2.time_to_first_token_ms).fold(f64::MAX, f64::min);
    let total = ends.iter().map(|e| e.2.total_ms).fold(0.0, f64::max);
    let generated = sum(|u| u.completion_tokens);
    log::info!(
        "{} answers · {} prompt ({} cached) + {generated} generated tokens · first token {} ms · together {:.0} tok/s",
        ends.len(),
        sum(|u| u.prompt_tokens),
        sum(|u| u.cached_tokens),
        format::ms(first),
        generated as f64 * 1e3 / (total - first).max(1e-3),
    );
}
