//! The README shows what its commands really print.

mod common;
#[path = "common/program.rs"]
mod program;

use program::wginfer;

const README: &str = include_str!("../README.md");

/// The commands of the README that show their output: (arguments, output).
fn examples() -> Vec<(&'static str, &'static str)> {
    let blocks = README.split("```console\n").skip(1).map(|rest| rest.split_once("```").expect("an end").0);
    let commands = blocks.filter_map(|block| block.strip_prefix("$ wginfer ")?.split_once('\n'));
    commands
        .filter(|(_, output)| !output.is_empty() && !output.contains("\n$ ") && !output.starts_with("$ "))
        .collect()
}

/// Devices round differently: numbers are equal within 0.02, all other words exactly.
fn assert_same(found: &str, expected: &str) {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (found_words, expected_words) = (words(found), words(expected));
    let same = |(a, b): (&String, &String)| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() < 0.02,
        _ => a == b,
    };
    let is_same =
        found_words.len() == expected_words.len() && found_words.iter().zip(&expected_words).all(same);
    assert!(is_same, "printed:\n{found}\nbut the README has:\n{expected}");
}

/// The program that an author of an egui application writes first, as CI compiles it.
const STORY: &str = include_str!("../examples/desk/examples/story.rs");

#[test]
fn the_program_of_an_application_is_short_and_the_one_that_compiles() {
    let blocks =
        README.split("```rust,ignore\n").skip(1).map(|rest| rest.split_once("```").expect("an end").0);
    let blocks: Vec<&str> = blocks.collect();
    let (_, code) = STORY.split_once("\n\n").expect("a comment, then the code");
    assert_eq!(blocks, [code]);
    assert!(code.lines().count() <= 40, "{} lines", code.lines().count());
}

#[test]
fn commands_print_what_the_readme_shows() {
    if common::gpu().is_none() {
        return;
    }
    let examples = examples();
    // One for each task and one for embedding.
    assert_eq!(examples.len(), 6, "{examples:?}");
    for (arguments, output) in examples {
        // What stands in quotes is one argument.
        let run = arguments.split('"').enumerate().fold(wginfer(""), |run, (i, part)| {
            if i % 2 == 1 {
                run.arg(part)
            } else {
                part.split_whitespace().fold(run, |run, word| run.arg(word))
            }
        });
        assert_same(&run.out(), output);
    }
}
