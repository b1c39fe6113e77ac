//! `wginfer summarize`: summarise a document.

use std::io::Write;

use wginfer::tasks;

use super::document::{self, DocumentArgs};
use super::failure::Failure;

const EXAMPLES: &str = "Examples:
  wginfer summarize -f report.md --words 60 -m ~/models/SmolLM2-360M-Instruct
  wginfer generate \"Once upon a time\" -q | wginfer summarize

The summary is greedy unless `--temperature` or another flag says otherwise.";

/// Summarise a document
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Approximate number of words. Default: a sentence per piece of the document, at most 100 words
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    words: Option<u32>,

    #[command(flatten)]
    document: DocumentArgs,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let text = args.document.read()?.text;
    let words = args.words.map(|n| n as usize);
    let summary =
        args.document.run(out, |engine, options, on| tasks::summarize(engine, &text, words, options, on))?;
    if let Some(most) = words.filter(|n| summary.words > *n) {
        log::warn!(
            "the summary has {} words, expected at most {most}: the model did not make it shorter",
            summary.words
        );
    }
    let rounds = summary.rounds.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    log::info!("pieces of each round: {rounds} · {} words", summary.words);
    document::report(&summary.usage, summary.finish_reason, summary.cut);
    Ok(())
}
