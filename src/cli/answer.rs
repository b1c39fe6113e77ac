//! `wginfer answer`: a question to a document.

use std::io::Write;

use wginfer::tasks;

use super::document::{self, DocumentArgs};
use super::failure::Failure;

const EXAMPLES: &str = "Examples:
  wginfer answer -f report.md \"What was decided?\" -m ~/models/SmolLM2-360M-Instruct
  cat story.txt | wginfer answer \"Who found the ball?\" --json

The passage that the answer rests on follows it, with its lines in the document. The answer is greedy unless
`--temperature` or another flag says otherwise.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AnswerArgs {
    /// The question
    question: String,

    #[command(flatten)]
    document: DocumentArgs,
}

pub fn run(args: &AnswerArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if args.question.trim().is_empty() {
        return Err(tasks::TaskError::Empty { what: "question" }.into());
    }
    let text = args.document.read()?;
    let answer = args
        .document
        .run(out, |engine, options, on| tasks::answer(engine, &text, &args.question, options, None, on))?;
    match &answer.quote {
        Some(quote) if !args.document.json => {
            let [first, last] = quote.lines;
            let lines =
                if first == last { format!("line {first}") } else { format!("lines {first} to {last}") };
            // As Markdown quotes.
            writeln!(out)?;
            quote.text.lines().try_for_each(|line| writeln!(out, "> {line}"))?;
            writeln!(out, "({lines})")?;
        }
        None if answer.found => log::warn!("no sentence of the document shares a word with the answer"),
        _ => {}
    }
    let n_asked = answer.pieces.iter().filter(|piece| piece.answer.is_some()).count();
    let n_found = answer.pieces.iter().filter(|piece| piece.found).count();
    log::info!("{} pieces, {n_asked} asked, {n_found} with an answer", answer.pieces.len());
    document::report(&answer.usage, answer.finish_reason, answer.cut);
    Ok(())
}
