//! The program in a real window: what it prints, and what can be seen. Needs a display (`xvfb-run -a cargo test`).

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Width, and RGB, row by row.
fn picture(path: &Path) -> (usize, Vec<[u8; 3]>) {
    let file = BufReader::new(File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
    let mut bytes = vec![0; reader.output_buffer_size().expect("it fits")];
    let info = reader.next_frame(&mut bytes).expect("a picture");
    (info.width as usize, bytes[..info.buffer_size()].chunks(3).map(|p| [p[0], p[1], p[2]]).collect())
}

fn run(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_desk")).args(args).output().expect("it starts")
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/window").join(name)
}

/// Pixels of the conversation that are as light as letters.
fn letters((width, pixels): &(usize, Vec<[u8; 3]>)) -> usize {
    let right = |row: &[[u8; 3]]| row[300..].iter().filter(|p| p.iter().all(|c| *c > 170)).count();
    pixels.chunks(*width).map(right).sum()
}

#[test]
fn a_conversation_and_a_transcript_appear() {
    let has_display = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    assert!(has_display, "no display: `xvfb-run -a cargo test`");
    let shot = |name: &str, args: &[&str]| {
        let file = file(name);
        let output = run(&[args, &["--screenshot", file.to_str().expect("a path in UTF-8")]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{text}");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (text, picture(&file))
    };
    let recording = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/whisper-words/en.flac");
    let says = "Tell me a story about a dog.";
    let args = ["--frames", "300", "--say", says, "--transcribe", recording];
    let (text, full) = shot("desk.png", &args);
    // Some more until the screenshot is there.
    assert!(text.contains("frames: 30") && text.contains(&format!("you: {says}")), "{text}");
    let answer = text.lines().find_map(|line| line.strip_prefix("demonstration model: ")).expect("an answer");
    assert!(answer.split_whitespace().count() > 20, "{answer}");
    assert!(text.contains("transcripts: 1") && text.contains("One two three."), "{text}");
    assert!(!text.contains("error:"), "{text}");

    // Much more is written than in an empty window, which has only a hint.
    let (_, empty) = shot("empty.png", &["--frames", "5"]);
    let (much, little) = (letters(&full), letters(&empty));
    assert!(much > 2 * little && much > 1_500, "{much} pixels of letters, {little} without a conversation");
}

#[test]
fn what_cannot_be_opened_is_said() {
    let output = run(&["--frames", "1", "--model", "no/such/model/here"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("error: ") && text.contains("no/such/model/here"), "{text}");
}
