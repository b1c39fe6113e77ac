//! `wginfer chat`: a conversation at the terminal or through a pipe.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use rustyline::error::ReadlineError;
use rustyline::{Cmd, DefaultEditor, KeyEvent};
use serde::Serialize;
use wginfer::engine::{Engine, EngineError, EngineOptions, FinishReason, Sampling, Timings, Usage};
use wginfer::tasks::{Chat, Reply};
use wginfer::text::{ChatTemplate, Delta, ReasoningEffort, ReasoningOptions};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::interrupt::{self, Writing};
use super::sampling::{self, SamplingArgs};
use super::{format, json, prompt, terminal};

const EXAMPLES: &str = "Examples:
  wginfer chat
  wginfer chat --model ~/models/SmolLM2-360M-Instruct --system \"Answer in one sentence.\"
  printf '/set temperature 0\\nWhat is a tide?\\n' | wginfer chat --quiet
  printf 'What is a tide?\\nWhy?\\n' | wginfer chat --json | jq .text
  wginfer chat --model Qwen/Qwen3-0.6B --no-think";

/// Hold a conversation, with the model's own chat template
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What the assistant should be or do
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Maximum number of tokens of an answer. Default: the rest of the context
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// Let the model think before it answers, as far as its chat template has a switch. Default: the template's
    #[arg(long, overrides_with = "no_think")]
    think: bool,

    /// Let the model answer at once, as far as its chat template has a switch
    #[arg(long)]
    no_think: bool,

    /// How much the model thinks, as far as its chat template lets one choose. Default: the template's
    #[arg(long, value_name = "EFFORT")]
    reasoning_effort: Option<Effort>,

    /// Write one object per line for each complete answer
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Effort {
    Low,
    Medium,
    High,
}

/// One answer as `--json` writes it.
#[derive(Serialize)]
struct ReplyJson<'a> {
    text: &'a str,
    /// What the model thought before it, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    finish_reason: FinishReason,
    usage: Usage,
    timings: Timings,
    /// How many of the oldest messages were dropped to fit the context.
    n_dropped: usize,
}

const HELP: &str = "/system [TEXT]     what the assistant should be or do. Default: nothing
/reset             forget the conversation
/set [NAME VALUE]  a sampling parameter, such as `/set temperature 0.3`. Default: show all
/help              this
/exit              leave, as does Ctrl-D
Ctrl-C stops an answer.";

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let checkpoint = args.model.open()?;
    let vocab_size = checkpoint.architecture.shape().vocab_size;
    let sampling = args.sampling.over(&Sampling::from(&checkpoint.generation));
    sampling.check(vocab_size)?;
    if args.max_tokens == Some(0) {
        return Err(Failure::usage("`max_tokens` is 0, expected at least 1"));
    }
    let tokenizer = checkpoint.tokenizer.as_ref().map_err(Clone::clone)?;
    let mut chat = Chat::new(tokenizer, sampling)?;
    set_reasoning(&mut chat, args, &tokenizer.chat_template()?)?;
    chat.set_system(args.system.clone());
    chat.max_tokens = args.max_tokens;

    let mut engine =
        args.device.load(checkpoint, EngineOptions { max_seqs: 1, ..EngineOptions::default() })?;
    let mut n_failed = 0;
    let is_typed = std::io::stdin().is_terminal();
    let mut input = if args.json { Input::Plain } else { Input::open(out)? };
    while let Some(line) = input.line()? {
        let line = line.trim();
        match line.strip_prefix('/') {
            _ if line.is_empty() => {}
            Some("exit" | "quit") => break,
            Some(command) => {
                if let Err(failure) = obey(&mut chat, command, vocab_size) {
                    terminal::error(&failure);
                }
            }
            None => n_failed += usize::from(!say(&mut chat, &mut engine, line, is_typed, args.json, out)?),
        }
    }
    match (input, n_failed) {
        // A person has seen it.
        (Input::Editor(_), _) | (_, 0) => Ok(()),
        (Input::Plain, 1) => Err(Failure::failed("1 message has no answer")),
        (Input::Plain, n) => Err(Failure::failed(format!("{n} messages have no answer"))),
    }
}

/// Sets how much the model thinks.
fn set_reasoning(chat: &mut Chat, args: &Args, template: &ChatTemplate) -> Result<(), Failure> {
    let options = ReasoningOptions {
        enabled: (args.think || args.no_think).then_some(args.think),
        effort: args.reasoning_effort.map(|effort| match effort {
            Effort::Low => ReasoningEffort::Low,
            Effort::Medium => ReasoningEffort::Medium,
            Effort::High => ReasoningEffort::High,
        }),
    };
    chat.set_reasoning(options).map_err(|error| {
        let has = |enabled, effort| ReasoningOptions { enabled, effort }.variables(template).is_ok();
        let hint = if has(None, Some(ReasoningEffort::Low)) {
            "`--reasoning-effort low` makes this model think less"
        } else if has(Some(false), None) {
            "this model has only `--think` and `--no-think`"
        } else {
            "this model always thinks, or never does"
        };
        Failure::usage(error.to_string()).with_hint(hint)
    })
}

/// Runs a command of the chat.
fn obey(chat: &mut Chat, command: &str, vocab_size: usize) -> Result<(), Failure> {
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    match name {
        "help" => HELP.lines().for_each(|line| log::info!("{line}")),
        "reset" => {
            chat.reset();
            log::info!("the conversation is empty");
        }
        "system" => {
            chat.set_system((!rest.is_empty()).then(|| rest.to_string()));
            log::info!("system message {}", if rest.is_empty() { "removed" } else { "set" });
        }
        "set" if rest.is_empty() => {
            for (name, value) in sampling::values(&chat.sampling) {
                log::info!("{name} {value}");
            }
        }
        "set" => {
            let Some((name, value)) = rest.split_once(char::is_whitespace) else {
                return Err(Failure::usage(format!("`/set {rest}` has no value")));
            };
            let mut changed = chat.sampling.clone();
            sampling::set(&mut changed, name, value.trim()).map_err(Failure::usage)?;
            changed.check(vocab_size)?;
            chat.sampling = changed;
        }
        _ => {
            let message = format!("`/{name}` is not a command");
            return Err(Failure::usage(message).with_hint("`/help` lists them"));
        }
    }
    Ok(())
}

/// Sends `line` to the model and writes the answer: token by token, or as an object. What the model thinks goes to
/// standard error, or into the object. Returns whether there is an answer.
fn say(
    chat: &mut Chat,
    engine: &mut Engine,
    line: &str,
    is_typed: bool,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<bool, Failure> {
    // Where nobody types, Ctrl-C is for the whole program.
    let writing = is_typed.then(Writing::begin);
    let mut written: Result<(), std::io::Error> = Ok(());
    let mut ends_line = false;
    let mut is_thinking = false;
    let reply = chat.ask(engine, line, |piece| {
        match piece {
            Some(Delta::Reasoning(text)) if !as_json => {
                terminal::thought(text);
                is_thinking = true;
            }
            Some(Delta::Content(text)) if !as_json && written.is_ok() => {
                if std::mem::take(&mut is_thinking) {
                    terminal::thought("\n");
                }
                written = write!(out, "{text}").and_then(|()| out.flush());
                ends_line = text.ends_with('\n');
            }
            _ => {}
        }
        if written.is_err() || writing.as_ref().is_some_and(Writing::is_stopped) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    if is_thinking {
        terminal::thought("\n");
    }
    written?;
    match reply {
        Ok(reply) => {
            if as_json {
                let json = ReplyJson {
                    text: &reply.text,
                    reasoning_content: reply.reasoning_content.as_deref(),
                    finish_reason: reply.finish_reason,
                    usage: reply.usage,
                    timings: reply.timings,
                    n_dropped: reply.n_dropped,
                };
                json::line(&json, out)?;
            } else if !ends_line {
                writeln!(out)?;
            }
            out.flush()?;
            report(&reply, engine.ctx());
            Ok(true)
        }
        // The conversation continues without this message.
        Err(
            error @ (EngineError::PromptTooLong { .. } | EngineError::EmptyPrompt | EngineError::Text(_)),
        ) => {
            terminal::error(&error.into());
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn report(reply: &Reply, ctx: usize) {
    if reply.n_dropped > 0 {
        log::warn!("the {} oldest messages were dropped to fit the context of {ctx} tokens", reply.n_dropped);
    }
    if reply.finish_reason == FinishReason::Length && reply.usage.total_tokens >= ctx {
        log::warn!("the context of {ctx} tokens is full; `--ctx` makes it larger");
    }
    if reply.ends_in_reasoning && reply.finish_reason == FinishReason::Length {
        log::warn!(
            "the answer ended before the model had thought it through; `--max-tokens` sets its length"
        );
    }
    log::info!("{}", format::figures(&reply.usage, reply.finish_reason, &reply.timings));
}

/// The source of the user's lines. Each is a message, also where several arrive at once, from a pipe or a paste, as in
/// other programs for chats: the end of a line sends it. A paste that the terminal marks as one is one message.
enum Input {
    /// A terminal, with history and arrow keys.
    Editor(Box<DefaultEditor>),
    /// A pipe or a file.
    Plain,
}

const PROMPT: &str = "> ";

impl Input {
    fn open(out: &mut dyn Write) -> Result<Input, Failure> {
        // The editor draws on standard output, which must be a terminal too.
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            return Ok(Input::Plain);
        }
        out.flush()?;
        interrupt::keep_terminal();
        let mut editor = DefaultEditor::new().map_err(unreadable)?;
        // What a terminal keeps of a Ctrl-D that is typed while an answer is written.
        editor.bind_sequence(KeyEvent::ctrl('@'), Cmd::EndOfFile);
        log::info!("`/help` lists the commands, Ctrl-D leaves");
        Ok(Input::Editor(Box::new(editor)))
    }

    /// The next line; none at the end of the input.
    fn line(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Input::Editor(editor) => match editor.readline(PROMPT) {
                Ok(line) => {
                    // It fails only if history is kept in a file.
                    let _ = editor.add_history_entry(line.as_str());
                    Ok(Some(line))
                }
                // Ctrl-C clears the line while no answer is written, as in a shell.
                Err(ReadlineError::Interrupted) => Ok(Some(String::new())),
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(unreadable(error)),
            },
            Input::Plain => {
                let mut bytes = Vec::new();
                let n = std::io::stdin().lock().read_until(b'\n', &mut bytes).map_err(unreadable)?;
                if n == 0 {
                    return Ok(None);
                }
                prompt::line(bytes).map(Some)
            }
        }
    }
}

fn unreadable(error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("standard input cannot be read: {error}"))
}
