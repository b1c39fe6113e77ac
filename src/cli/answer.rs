//! `wginfer answer`: a question to a document.

use std::ffi::OsString;
use std::io::Write;

use wginfer::engine::{EncoderOptions, Output, TextEncoder};
use wginfer::tasks;

use super::args::ModelArg;
use super::document::{self, DocumentArgs};
use super::failure::Failure;

const EXAMPLES: &str = "Examples:
  wginfer answer -f report.md \"What was decided?\" -m ~/models/SmolLM2-360M-Instruct
  cat story.txt | wginfer answer \"Who found the ball?\" --json

The passage that supports the answer follows it, with its lines in the document. The answer is greedy unless
`--temperature` or another flag says otherwise.";

/// Answer a question about a document, and quote the passage that supports the answer
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The question
    question: String,

    /// Ask only the pieces of the document that are nearest to the question by this sentence-embedding model
    #[arg(long, value_name = "MODEL", help_heading = "Model and device")]
    embedder: Option<OsString>,

    #[command(flatten)]
    document: DocumentArgs,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    if args.question.trim().is_empty() {
        return Err(tasks::TaskError::Empty { what: "question" }.into());
    }
    let document = args.document.read()?;
    let text = &document.text;
    let embedder = args.embedder.clone().map(|model| ModelArg { model: Some(model) }.open_encoder());
    let embedder = embedder.transpose()?;
    // The quote's place is that in the file.
    let in_file = |mut answer: tasks::Answer| {
        if let Some(quote) = &mut answer.quote {
            quote.bytes = quote.bytes.map(|at| document.place(at));
        }
        answer
    };
    let answer = args.document.run(out, |engine, options, on| {
        let Some(checkpoint) = embedder else {
            return tasks::answer(engine, text, &args.question, options, None, on).map(in_file);
        };
        let gpu = engine.gpu().clone();
        let mut encoder = TextEncoder::load(&gpu, checkpoint, EncoderOptions::default(), &mut |_| {})?;
        let mut embed = |texts: &[&str]| {
            let encodings = tasks::encode(&mut encoder, texts, Output::Embedding, &mut |_| {})?;
            let cut = encodings.iter().flatten().map(|encoding| encoding.n_cut).filter(|n| *n > 0);
            let (n_texts, n_tokens) = (cut.clone().count(), cut.sum::<usize>());
            if n_texts > 0 {
                log::warn!(
                    "the embedder reads {} tokens: {n_tokens} tokens of {n_texts} pieces do not count in the choice",
                    encoder.ctx()
                );
            }
            tasks::vectors(encodings)
        };
        tasks::answer(engine, text, &args.question, options, Some(&mut embed), on).map(in_file)
    })?;
    match &answer.quote {
        Some(quote) if !args.document.json => {
            let [first, last] = quote.lines;
            let lines =
                if first == last { format!("line {first}") } else { format!("lines {first} to {last}") };
            // As a Markdown quotation.
            writeln!(out)?;
            quote.text.lines().try_for_each(|line| writeln!(out, "> {line}"))?;
            writeln!(out, "({lines})")?;
        }
        None if answer.found => log::warn!("no sentence of the document shares a word with the answer"),
        _ => {}
    }
    let n_asked = answer.pieces.iter().filter(|piece| piece.answer.is_some()).count();
    let n_found = answer.pieces.iter().filter(|piece| piece.found).count();
    log::info!("{n_asked} of {} pieces asked, {n_found} with an answer", answer.pieces.len());
    document::report(&answer.usage, answer.finish_reason, answer.cut);
    Ok(())
}
