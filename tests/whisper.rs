//! Whisper against the reference implementation (transformers, f32), on what lies at `../shared`: small checkpoints with
//! random weights, and the real encoder of tiny.en.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wginfer::audio::{AudioReader, MelFrames};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{
    ClipId, Engine, EngineOptions, Event, Logits, Request, Sampling, SpeechRequest, SpeechRules,
    TimestampRules,
};
use wginfer::gpu::{Gpu, GpuOptions, Recorder, Tensor};
use wginfer::models::{self, AudioShape, Loader};

/// A path in `../shared`; prints a line if it is absent.
fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if found.exists() {
        return Some(found);
    }
    let test = std::thread::current().name().unwrap_or("a test").to_string();
    common::say(&format!("skipped, `{}` is not there: {test}", found.display()));
    None
}

#[derive(serde::Deserialize)]
struct Golden {
    audio: String,
    encoder_rows: BTreeMap<usize, Vec<f32>>,
    #[serde(default)]
    decoder_input_ids: Vec<u32>,
    #[serde(default)]
    last_logits_sample: BTreeMap<usize, f32>,
    #[serde(default)]
    argmax: Vec<u32>,
    #[serde(default)]
    greedy_without_timestamps: Vec<u32>,
    #[serde(default)]
    greedy_with_timestamps: Vec<u32>,
    detected_language_id: Option<u32>,
}

fn golden(dir: &Path) -> Golden {
    let text = std::fs::read(dir.join("golden.json")).expect("golden.json");
    serde_json::from_slice(&text).expect("golden.json")
}

/// Log-mel features of the recording that a golden file is about, padded to a clip.
fn features(golden: &Golden, shape: &AudioShape) -> Option<Vec<f32>> {
    let reader = AudioReader::open(&shared("audio")?.join(&golden.audio)).expect("a recording");
    let mut frames = MelFrames::new(reader, shape.n_mels).expect("features");
    Some(frames.window(0, shape.n_frames).expect("features"))
}

/// The largest difference over the largest value of the reference's rows.
fn error(found: &BTreeMap<usize, Vec<f32>>, expected: &BTreeMap<usize, Vec<f32>>) -> f32 {
    let scale = expected.values().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    let pairs = expected.iter().flat_map(|(row, values)| found[row].iter().zip(values));
    let worst = pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(scale > 0.0 && worst.is_finite());
    worst / scale
}

/// The encoder's output for a golden file's recording.
fn check_encoder(gpu: &Gpu, dir: &Path, bound: f32) {
    let golden = golden(dir);
    let config = std::fs::read_to_string(dir.join("config.json")).expect("config.json");
    let architecture = models::open(&config).expect("a config");
    let audio = architecture.shape().audio.expect("it hears");
    let Some(features) = features(&golden, &audio) else { return };
    let weights = ModelFiles::open(dir).expect("a checkpoint").weights;
    let mut loader = Loader::new(gpu, weights, None);
    let encoder = architecture.load_audio_encoder(&mut loader).expect("an encoder").expect("it hears");
    loader.finish().run(gpu, &mut |_| {}).expect("upload");
    let features =
        Tensor::from_f32(gpu, "features", [audio.n_frames, audio.n_mels], &features).expect("it fits");
    let mut rec = Recorder::new(gpu).expect("a recorder");
    let mut scratch = encoder.scratch(gpu).expect("a scratch");
    encoder.embed(&mut rec, &features, 0, &mut scratch);
    (0..audio.attention.len()).for_each(|i| encoder.layer(i, &mut rec, &mut scratch));
    let rows = encoder.rows(&mut rec, &mut scratch);
    gpu.submit(rec.finish().expect("kernels compile")).expect("submit");
    gpu.wait().expect("the device works");
    let row = |r: &usize| {
        let words = gpu.read_row(&rows, *r).expect("it reads back");
        (*r, bytemuck::cast_slice(&words)[..rows.n_cols()].to_vec())
    };
    let found: BTreeMap<usize, Vec<f32>> = golden.encoder_rows.keys().map(row).collect();
    let worst = error(&found, &golden.encoder_rows);
    let what = dir.display();
    assert!(worst <= bound, "{what}: rows differ by {worst} of the largest value, at most {bound}");
    let mut moved = golden.encoder_rows.clone();
    let scale = moved.values().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    moved.values_mut().next().expect("a row")[0] += 2.0 * bound * scale;
    assert!(error(&found, &moved) > bound, "{what}: the comparison cannot fail");
}

#[test]
fn encoders_hear_what_the_reference_hears() {
    for (folder, bound) in [
        ("golden/whisper-en", 1e-3),
        ("golden/whisper-multilingual", 1e-3),
        ("models/whisper-tiny.en-encoder", 2e-3),
    ] {
        let Some(dir) = shared(folder) else { continue };
        if let Some(gpu) = common::exact() {
            check_encoder(&gpu, &dir, bound);
        }
        // F16 products and attention have ten times the tolerance.
        if let Some(gpu) = common::hardware() {
            check_encoder(&gpu, &dir, if gpu.caps().f16_products() { 10.0 * bound } else { bound });
        }
    }
    if let (Some(gpu), Some(dir)) = (common::portable(), shared("golden/whisper-en")) {
        check_encoder(&gpu, &dir, 1e-3);
    }
}

/// An engine on a golden checkpoint, the reference's results, and a clip of its recording.
fn engine(
    gpu: &Gpu,
    dir: &Path,
    options: EngineOptions,
) -> Option<(Engine, Golden, ClipId, serde_json::Value)> {
    let golden = golden(dir);
    let checkpoint = ModelFiles::open(dir).expect("a checkpoint");
    let generation = checkpoint.generation.json.clone();
    let mut engine = Engine::load(gpu, checkpoint, options, &mut |_| {}).expect("an engine");
    assert_eq!(engine.unused_tensors(), &[] as &[String]);
    let audio = engine.shape().audio.clone().expect("it hears");
    let clip = engine.listen(&features(&golden, &audio)?).expect("a clip");
    Some((engine, golden, clip, generation))
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a row") as u32
}

fn run(engine: &mut Engine, request: Request) -> Vec<Event> {
    engine.submit(request).expect("submit");
    let mut events = Vec::new();
    engine.run(|event| events.push(event)).expect("run");
    events
}

fn logits(engine: &mut Engine, prompt: &[u32], clip: ClipId, which: Logits) -> Vec<Vec<f32>> {
    let speech = Some(SpeechRequest { clip, rules: None, alignment: false });
    let request = Request { logits: Some(which), speech, ..Request::new(prompt.to_vec()) };
    let values = |event| match event {
        Event::Logits { values, .. } => Some(values),
        Event::Failed { error, .. } => panic!("{error}"),
        _ => None,
    };
    run(engine, request).into_iter().filter_map(values).collect()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// The ids of a transcript, its end included.
fn transcript(
    engine: &mut Engine,
    prompt: &[u32],
    clip: ClipId,
    generation: &serde_json::Value,
    timestamps: bool,
    n: usize,
) -> Vec<u32> {
    let end = generation["eos_token_id"].as_u64().expect("an end") as u32;
    let no_timestamps = generation["no_timestamps_token_id"].as_u64().expect("a token") as u32;
    let max_initial = generation["max_initial_timestamp_index"].as_u64().map(|n| n as u32);
    let timestamps =
        timestamps.then_some(TimestampRules { first: no_timestamps + 1, no_timestamps, max_initial });
    let suppress_first = ids(&generation["begin_suppress_tokens"]);
    let rules = SpeechRules { prompt_len: prompt.len(), end, suppress_first, timestamps };
    let logit_bias = ids(&generation["suppress_tokens"]).into_iter().map(|id| (id, -1e30)).collect();
    let events = run(
        engine,
        Request {
            sampling: Sampling { logit_bias, ..Sampling::greedy() },
            max_tokens: Some(n),
            logprobs: Some(1),
            speech: Some(SpeechRequest { clip, rules: Some(rules), alignment: false }),
            ..Request::new(prompt.to_vec())
        },
    );
    let mut tokens = Vec::new();
    for event in events {
        match event {
            Event::Token { token, logprobs, .. } => {
                let logprobs = logprobs.expect("they were asked for");
                // Greedy: the chosen token is the best of the allowed ones.
                assert_eq!(logprobs.chosen, logprobs.top[0]);
                tokens.push(token);
            }
            Event::Done { end_logprobs: Some(logprobs), .. } => tokens.push(logprobs.chosen.token),
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
    tokens
}

fn check(options: &GpuOptions, folder: &str) {
    let (Some(gpu), Some(dir)) = (common::open(options), shared(folder)) else { return };
    let options =
        EngineOptions { kv_dtype: Dtype::F32, logits: true, max_logprobs: 1, ..EngineOptions::default() };
    let Some((mut engine, golden, clip, generation)) = engine(&gpu, &dir, options) else { return };
    // F16 products have ten times the tolerance, and may choose another token.
    let is_exact = !gpu.caps().f16_products();
    let bound = if is_exact { 1e-3 } else { 1e-2 };
    let all = logits(&mut engine, &golden.decoder_input_ids, clip, Logits::All);
    let scale = golden.last_logits_sample.values().fold(0.0f32, |m, v| m.max(v.abs()));
    let last = all.last().expect("a row");
    for (token, expected) in &golden.last_logits_sample {
        let found = (last[*token] - expected).abs() / scale;
        assert!(found <= bound, "{folder}: logit {token} differs by {found} of the largest");
    }
    if !is_exact {
        return;
    }
    assert_eq!(all.iter().map(|row| argmax(row)).collect::<Vec<_>>(), golden.argmax, "{folder}");

    // The decoder's prompt, without the words that the golden file feeds after it.
    let multilingual = generation["is_multilingual"].as_bool().expect("a flag");
    let prompt = &golden.decoder_input_ids[..if multilingual { 4 } else { 2 }];
    if let Some(expected) = golden.detected_language_id {
        let first = &logits(&mut engine, &prompt[..1], clip, Logits::Last)[0];
        let languages = generation["lang_to_id"].as_object().expect("languages");
        let languages = languages.values().map(|id| id.as_u64().expect("an id") as usize);
        let best = languages.max_by(|a, b| first[*a].total_cmp(&first[*b])).expect("a language");
        assert_eq!(best as u32, expected, "{folder}");
    }
    let expected = &golden.greedy_without_timestamps;
    let found = transcript(&mut engine, prompt, clip, &generation, false, expected.len());
    assert_eq!(&found, expected, "{folder}");
    // The reference begins the next window at the last timestamp of this one: its text of this window is
    // the beginning of ours.
    let no_timestamps = prompt.len() - 1;
    let found = transcript(&mut engine, &prompt[..no_timestamps], clip, &generation, true, 100);
    let first = generation["no_timestamps_token_id"].as_u64().expect("a token") as u32 + 1;
    let times = |i: usize| golden.greedy_with_timestamps[..i].iter().filter(|t| **t >= first).max();
    let goes_back = |i: &usize| {
        let token = golden.greedy_with_timestamps[*i];
        token >= first && times(*i).is_some_and(|latest| token < *latest)
    };
    let n = (1..golden.greedy_with_timestamps.len()).find(goes_back).expect("a second window");
    let (found, expected) = (&found[..n.min(found.len())], &golden.greedy_with_timestamps[..n]);
    assert_eq!(found, expected, "{folder}: with timestamps");
}

#[test]
fn english_with_all_capabilities() {
    check(&GpuOptions::default(), "golden/whisper-en");
}

#[test]
fn multilingual_with_all_capabilities() {
    check(&GpuOptions::default(), "golden/whisper-multilingual");
}

#[test]
fn multilingual_without_capabilities() {
    let disable = "f16,subgroups,timestamps,pipeline-cache,cooperative-matrices";
    check(&GpuOptions { disable: disable.into(), ..GpuOptions::default() }, "golden/whisper-multilingual");
}

#[test]
fn english_with_the_variants_of_hardware() {
    let options = GpuOptions { disable: "software".into(), f32_products: true, ..GpuOptions::default() };
    check(&options, "golden/whisper-en");
}

/// A small trained model of a few spoken words.
fn words_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words")
}

/// An engine on that model, with the features of two recordings and its transcript of each by itself.
struct Words {
    engine: Engine,
    features: [Vec<f32>; 2],
    prompt: Vec<u32>,
    rules: SpeechRules,
}

impl Words {
    fn new(gpu: &Gpu, options: EngineOptions) -> Words {
        let checkpoint = ModelFiles::open(&words_folder()).expect("a checkpoint");
        let generation = checkpoint.generation.json.clone();
        let engine = Engine::load(gpu, checkpoint, options, &mut |_| {}).expect("an engine");
        let audio = engine.shape().audio.clone().expect("it hears");
        let features = ["en.flac", "de.flac"].map(|name| {
            let reader = AudioReader::open(&words_folder().join(name)).expect("a recording");
            MelFrames::new(reader, audio.n_mels)
                .expect("features")
                .window(0, audio.n_frames)
                .expect("features")
        });
        let id = |value: &serde_json::Value| value.as_u64().expect("an id") as u32;
        let no_timestamps = id(&generation["no_timestamps_token_id"]);
        let prompt = vec![
            id(&generation["decoder_start_token_id"]),
            id(&generation["lang_to_id"]["<|en|>"]),
            id(&generation["task_to_id"]["transcribe"]),
        ];
        let rules = SpeechRules {
            prompt_len: prompt.len(),
            end: id(&generation["eos_token_id"]),
            suppress_first: ids(&generation["begin_suppress_tokens"]),
            timestamps: Some(TimestampRules {
                first: no_timestamps + 1,
                no_timestamps,
                max_initial: Some(50),
            }),
        };
        Words { engine, features, prompt, rules }
    }

    /// A request that continues the transcript of a clip.
    fn request(&self, clip: ClipId, written: &[u32]) -> Request {
        let begun = self.prompt.len()..self.prompt.len() + written.len();
        Request {
            generated: std::iter::once(begun).collect(),
            sampling: Sampling::greedy(),
            max_tokens: Some(60),
            speech: Some(SpeechRequest { clip, rules: Some(self.rules.clone()), alignment: false }),
            ..Request::new([&self.prompt, written].concat())
        }
    }

    /// The transcripts of clips in one batch, and the prompt tokens found in the cache.
    fn write(&mut self, clips: &[ClipId], begun: &[u32], budget: Option<Duration>) -> Vec<(Vec<u32>, usize)> {
        let requests: Vec<_> = clips
            .iter()
            .map(|clip| self.engine.submit(self.request(*clip, begun)).expect("submit"))
            .collect();
        let mut written = vec![(Vec::new(), 0); clips.len()];
        let mut take = |event| match event {
            Event::Token { id, token, .. } => {
                written[requests.iter().position(|r| *r == id).expect("ours")].0.push(token);
            }
            Event::Done { id, usage, .. } => {
                written[requests.iter().position(|r| *r == id).expect("ours")].1 = usage.cached_tokens;
            }
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        };
        match budget {
            None => self.engine.run(take).expect("run"),
            Some(budget) => {
                let gpu = self.engine.gpu().clone();
                while !self.engine.is_idle() {
                    let buffers = self.engine.advance(budget).expect("advance");
                    gpu.submit(buffers).expect("submit");
                    gpu.wait().expect("the device works");
                    self.engine.events().expect("events").into_iter().for_each(&mut take);
                }
            }
        }
        written
    }
}

#[test]
fn clips_side_by_side_and_in_slices_are_heard_as_alone() {
    for gpu in common::gpus() {
        let options =
            EngineOptions { kv_dtype: Dtype::F32, max_clips: 2, max_seqs: 3, ..EngineOptions::default() };
        let mut words = Words::new(&gpu, options.clone());
        let [en, de] = words.features.clone();
        let alone = [&en, &de].map(|features| {
            let clip = words.engine.listen(features).expect("a clip");
            let written = words.write(&[clip], &[], None).swap_remove(0);
            words.engine.forget(clip);
            written.0
        });
        assert!(alone[0].len() > 8 && alone[1].len() > 8 && alone[0] != alone[1], "{alone:?}");

        // Three sequences, two of them with the same clip.
        let clips = [&de, &en].map(|features| words.engine.listen(features).expect("a clip"));
        let written = words.write(&[clips[1], clips[0], clips[1]], &[], None);
        for ((tokens, _), expected) in written.iter().zip([&alone[0], &alone[1], &alone[0]]) {
            assert_eq!(tokens, expected);
        }
        // A request that continues a transcript finds it in the cache; one with the same samples as another clip
        // does not, because keys and values depend on the clip.
        let (begun, rest) = alone[0].split_at(15);
        let again = words.write(&[clips[1]], begun, None).swap_remove(0);
        assert_eq!((again.0.as_slice(), again.1), (rest, words.prompt.len() + begun.len() - 1));
        clips.into_iter().for_each(|clip| words.engine.forget(clip));
        let clip = words.engine.listen(&en).expect("a clip");
        let anew = words.write(&[clip], begun, None).swap_remove(0);
        assert_eq!((anew.0.as_slice(), anew.1), (rest, 0));
        words.engine.forget(clip);

        // As a guest in a frame loop, a layer at a time.
        let clips = [&en, &de].map(|features| words.engine.listen(features).expect("a clip"));
        let written = words.write(&clips, &[], Some(Duration::ZERO));
        assert_eq!([&written[0].0, &written[1].0], [&alone[0], &alone[1]]);
    }
}

/// Requested attention weights of rows inside a prompt sum to one.
#[test]
fn alignments_are_weights() {
    let Some(gpu) = common::gpu() else { return };
    let options = EngineOptions {
        logits: true,
        max_rows: 5,
        max_seqs: 2,
        alignment_heads: vec![[1, 0], [0, 1], [1, 3]],
        ..EngineOptions::default()
    };
    let mut words = Words::new(&gpu, options);
    let clip = words.engine.listen(&words.features[0].clone()).expect("a clip");
    let prompt: Vec<u32> = words.prompt.iter().copied().chain(10..23).collect();
    let speech = Some(SpeechRequest { clip, rules: None, alignment: true });
    let request = Request { logits: Some(Logits::Last), speech, ..Request::new(prompt.clone()) };
    let mut seen = Vec::new();
    let mut n_logits = 0;
    for event in run(&mut words.engine, request) {
        match event {
            Event::Alignment { position, weights, .. } => {
                assert_eq!(weights.len(), 3 * 500);
                let heads: Vec<f32> = weights.chunks(500).map(|head| head.iter().sum()).collect();
                assert!(heads.iter().all(|sum| (sum - 1.0).abs() < 1e-3), "{heads:?}");
                assert!(weights[..500] != weights[500..1000] && weights[..500] != weights[1000..]);
                seen.push(position);
            }
            Event::Logits { .. } => n_logits += 1,
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!(seen, (0..prompt.len()).collect::<Vec<_>>());
    assert_eq!(n_logits, 1);
}

#[test]
fn requests_and_clips_that_do_not_fit_are_refused() {
    let Some(gpu) = common::gpu() else { return };
    let mut words = Words::new(&gpu, EngineOptions::default());
    let features = words.features[0].clone();
    let clip = words.engine.listen(&features).expect("a clip");
    let refuse = |words: &mut Words, request: Request, part: &str| {
        let error = words.engine.submit(request).expect_err(part).to_string();
        assert!(error.contains(part), "`{error}` lacks `{part}`");
    };
    let speech = |clip, rules, alignment| Some(SpeechRequest { clip, rules, alignment });
    let plain = Request::new(words.prompt.clone());
    refuse(&mut words, plain.clone(), "`whisper` is a speech model");
    refuse(&mut words, Request { speech: speech(ClipId(77), None, false), ..plain.clone() }, "clip 77");
    let aligned = Request { speech: speech(clip, None, true), ..plain.clone() };
    refuse(&mut words, aligned, "alignment_heads");
    for (rules, part) in [
        (SpeechRules { prompt_len: 9, ..words.rules.clone() }, "`prompt_len` is 9"),
        (SpeechRules { end: 1 << 20, ..words.rules.clone() }, "token 1048576"),
        (SpeechRules { suppress_first: vec![1; 5], ..words.rules.clone() }, "5 tokens"),
    ] {
        refuse(&mut words, Request { speech: speech(clip, Some(rules), false), ..plain.clone() }, part);
    }
    let error = words.engine.listen(&features).expect_err("one place").to_string();
    assert!(error.contains("no place: 1 clips are kept"), "{error}");
    words.engine.forget(clip);
    let error = words.engine.listen(&features[1..]).expect_err("a value is missing").to_string();
    assert!(error.contains("79999 values") && error.contains("1000 frames of 80"), "{error}");
    let mut broken = features.clone();
    broken[400] = f32::NAN;
    let error = words.engine.listen(&broken).expect_err("not a number").to_string();
    assert!(error.contains("NaN in frame 5"), "{error}");
    let error =
        words.engine.submit(Request { speech: speech(clip, None, false), ..plain }).expect_err("gone");
    assert!(error.to_string().contains("expected one that is kept"), "{error}");

    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let checkpoint = ModelFiles::open(&llama).expect("a checkpoint");
    let mut engine =
        Engine::load(&gpu, checkpoint, EngineOptions::default(), &mut |_| {}).expect("an engine");
    let error = engine.listen(&features).expect_err("it has no audio encoder");
    assert_eq!(error.to_string(), "`llama` is a language model: it has no audio encoder");
    let heads = EngineOptions { alignment_heads: vec![[9, 0]], ..EngineOptions::default() };
    let checkpoint = ModelFiles::open(&words_folder()).expect("a checkpoint");
    let error = Engine::load(&gpu, checkpoint, heads, &mut |_| {}).expect_err("three layers").to_string();
    assert!(error.contains("layer 9, head 0"), "{error}");
}
