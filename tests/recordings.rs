//! What a step of a small model records, as text: it shows when a dispatch, a copy or a binding is added or lost.
//!
//! The texts in `tests/golden/recordings/` are of a device without optional capabilities, so that they are the same on
//! every machine. `WGINFER_REWRITE_RECORDINGS=1 cargo test --test recordings` writes them anew; the diff shows what the
//! change costs.

mod common;

use std::path::Path;

use common::requests::step;
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{Engine, EngineOptions, Request, Sampling};
use wginfer::gpu::{Gpu, GpuOptions, ReadbackRing, Recorder};
use wginfer::ops::{self, Act};

/// Set to `1`, the texts are written instead of compared.
const REWRITE_ENV: &str = "WGINFER_REWRITE_RECORDINGS";

/// All that a device need not have but the number of storage buffers, which most have.
const PORTABLE: &str = "f16,subgroups,timestamps,pipeline-cache,cooperative-matrices,tuning,software";

/// The lines of `found` that `expected` does not have (`+`) and those that are missing (`-`), each with the line
/// before it; empty if the texts agree.
fn difference(expected: &str, found: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    // Lines that the texts share from line i of one and line j of the other on.
    let mut shared = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            let skips = shared[i + 1][j].max(shared[i][j + 1]);
            shared[i][j] = if a[i] == b[j] { 1 + shared[i + 1][j + 1] } else { skips };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut text = String::new();
    let mut before = None;
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            before = Some((i + 1, a[i]));
            (i, j) = (i + 1, j + 1);
            continue;
        }
        if let Some((number, line)) = before.take() {
            text += &format!("{number:>4}   {line}\n");
        }
        if j == b.len() || (i < a.len() && shared[i + 1][j] >= shared[i][j + 1]) {
            text += &format!("{:>4} - {}\n", i + 1, a[i]);
            i += 1;
        } else {
            text += &format!("     + {}\n", b[j]);
            j += 1;
        }
    }
    text
}

fn compare(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/recordings/{name}.txt"));
    if std::env::var(REWRITE_ENV).is_ok_and(|value| value == "1") {
        std::fs::write(&path, found).expect("the folder can be written");
        common::say(&format!("written: {}", path.display()));
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()));
    let difference = difference(&expected, found);
    assert!(
        difference.is_empty(),
        "`{name}` is recorded otherwise (- missing, + new):\n{difference}\nif that is meant: {REWRITE_ENV}=1"
    );
}

/// The texts of a prompt of seven tokens and of a steady decode step.
fn steps(gpu: &Gpu, model: &str) -> [String; 2] {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model);
    let files = ModelFiles::open(&folder).expect("a model");
    let options = EngineOptions { max_seqs: 2, max_rows: 64, run_ahead: false, ..EngineOptions::default() };
    let mut engine = Engine::load(gpu, files, options, &mut |_| {}).expect("engine");
    let sampling = Sampling { seed: Some(1), ..Sampling::default() };
    let prompt = vec![54, 362, 119, 99, 377, 300, 358];
    let request =
        Request { sampling, max_tokens: Some(5), stop_tokens: Some(vec![]), ..Request::new(prompt) };
    // What was never measured is recorded in pieces, so each step runs before it is looked at.
    let other = Request { prompt: request.prompt.iter().rev().copied().collect(), ..request.clone() };
    engine.submit(other).expect("submit");
    engine.run(|_| {}).expect("it runs");
    assert_eq!(engine.take_trace(), "", "nothing is kept unasked");
    engine.trace(true);
    engine.submit(request).expect("submit");
    let [prompt, _, decode, next] = [(); 4].map(|()| step(gpu, &mut engine));
    assert_eq!(decode, next, "a steady step is recorded like the last one");
    [prompt, decode]
}

#[test]
fn a_prompt_and_a_decode_step_record_what_they_did() {
    let options = GpuOptions { disable: PORTABLE.into(), ..GpuOptions::default() };
    let Some(gpu) = common::open(&options) else { return };
    if gpu.caps().max_storage_buffers < 10 {
        let test = "a_prompt_and_a_decode_step_record_what_they_did";
        common::say(&format!("skipped, fewer than 10 storage buffers a kernel: {test}"));
        return;
    }
    let [prompt, decode] = steps(&gpu, "llama");
    compare("llama-prompt", &prompt);
    compare("llama-decode", &decode);
}

#[test]
fn the_smallest_device_records_what_it_did() {
    let options = GpuOptions { disable: format!("{PORTABLE},limits"), ..GpuOptions::default() };
    let Some(gpu) = common::open(&options) else { return };
    // Its prompts go the same way as those of any device without matrix units.
    let [prompt, decode] = steps(&gpu, "llama");
    compare("llama-prompt", &prompt);
    compare("llama-decode-limits", &decode);
}

#[test]
fn a_recorder_keeps_what_it_records_if_asked() {
    let Some(gpu) = common::portable() else { return };
    let x = common::zeros(&gpu, [3, 8], Dtype::F32);
    let y = common::zeros(&gpu, [3, 8], Dtype::F32);
    let mut ring = ReadbackRing::new(&gpu, "ring", 1, 8).expect("ring");
    let mut rec = Recorder::new(&gpu).expect("recorder");
    let mut record = |rec: &mut Recorder| {
        ops::gate(rec, Act::Silu, &x, &y, 1..3);
        rec.copy(&y, 128, &x, 0, 64);
        rec.clear(&y, 256, 16);
        let pending = rec.read(&mut ring, &[(&x, 4, 8)]);
        assert!(rec.read(&mut ring, &[(&y, 0, 8)]).is_none(), "one slot");
        gpu.submit(rec.finish().expect("it compiles")).expect("submit");
        gpu.wait().expect("it runs");
        pending.map(|pending| ring.take(pending));
        rec.take_trace()
    };
    assert_eq!(record(&mut rec), "");
    rec.trace(true);
    rec.rehearse(|rec| ops::gate(rec, Act::Silu, &x, &y, 1..3)).expect("it compiles");
    assert_eq!(rec.take_trace(), "", "a rehearsal records nothing");
    let label = x.label();
    let expected = format!(
        "gate+act WG=64 ACT=0 GATED=0 @ 1 1 1\n    {label} 0..3 -> {label} 0..3\n\
         copy 64 bytes: {label} +128 -> {label} +0\nclear 16 bytes: {label} +256\n\
         read 8 bytes: {label} +4\nfinish\n"
    );
    assert_eq!(record(&mut rec), expected);
    assert_eq!(record(&mut rec), expected, "taken once");
    rec.trace(false);
    assert_eq!(record(&mut rec), "");
}

#[test]
fn a_line_more_or_less_is_a_difference() {
    let text = "a @ 1 1 1\n    x -> y\nb @ 2 1 1\n    y -> z\nfinish\n";
    assert_eq!(difference(text, text), "");
    let more = text.replace("b @", "a @ 1 1 1\n    y -> y\nb @");
    assert_eq!(difference(text, &more).lines().filter(|line| line.contains(" + ")).count(), 2);
    assert_eq!(difference(&more, text).lines().filter(|line| line.contains(" - ")).count(), 2);
    let other = text.replace("2 1 1", "3 1 1");
    assert_eq!(difference(text, &other), "   2       x -> y\n   3 - b @ 2 1 1\n     + b @ 3 1 1\n");
}
