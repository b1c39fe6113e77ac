//! Trouble with the device: it is lost and nothing is to replace it, or it has too little memory. Every open request ends
//! once, every later call says what happened, nothing waits for what will never come, and nothing panics.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::requests::{f32_options, folder, host, load, prompt, seeded, write};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{
    EncoderOptions, Engine, EngineError, EngineOptions, Event, Output, Request, RequestId, SpeechRequest,
    TextEncoder,
};
use wginfer::gpu::{Gpu, GpuError, GpuOptions};
use wginfer::wgpu;

/// Calls after which nothing may be left open.
const ENOUGH: usize = 400;

fn is_lost(error: &EngineError) -> bool {
    matches!(error, EngineError::Gpu(GpuError::Lost { .. }))
}

fn assert_lost<T: std::fmt::Debug>(what: &str, result: Result<T, EngineError>) {
    let error = result.expect_err(what);
    assert!(is_lost(&error), "{what}: {error}");
    assert!(error.hint().is_some(), "{what}");
}

/// Options without a recovery.
fn mortal() -> EngineOptions {
    EngineOptions { recovery: None, ..f32_options() }
}

/// How each request ended: `true` if it was failed by the loss.
#[derive(Default)]
struct Ends(BTreeMap<RequestId, bool>);

impl Ends {
    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            let (id, failed) = match event {
                Event::Done { id, .. } => (id, false),
                Event::Failed { id, error } => {
                    assert!(is_lost(&error), "{error}");
                    (id, true)
                }
                _ => continue,
            };
            assert_eq!(self.0.insert(id, failed), None, "{id:?} ended twice");
        }
    }
}

/// An engine whose queue is longer than its batch.
fn crowded(gpu: &Gpu) -> (Engine, Vec<RequestId>) {
    let mut engine = load(gpu, "llama", EngineOptions { max_seqs: 2, max_rows: 32, ..mortal() });
    let lengths = [3, 90, 40, 7, 100];
    let requests = (0..12).map(|i| write(&prompt(i, lengths[i as usize % 5]), 20, seeded(i)));
    let ids = requests.map(|request| engine.submit(request).expect("submit")).collect();
    (engine, ids)
}

fn check_after(mut engine: Engine, ids: &[RequestId], ends: Ends) {
    assert!(engine.is_idle(), "nothing is open");
    assert_eq!(ends.0.keys().copied().collect::<Vec<_>>(), ids, "every request ends");
    assert!(ends.0.values().any(|failed| *failed));
    for _ in 0..2 {
        assert_lost("submit", engine.submit(Request::new(vec![1])));
        assert_lost("events", engine.events());
        assert_lost("advance", engine.advance(Duration::from_millis(5)));
        assert!(engine.is_idle());
        engine.cancel(ids[0]);
    }
    let gpu = engine.gpu().clone();
    if gpu.is_owned() {
        assert_lost("pump", engine.pump());
    }
    assert_lost("another engine", Engine::new(&gpu, &engine.model().clone(), mortal()));
    let files = ModelFiles::open(&folder("llama")).expect("a model");
    assert_lost("load", Engine::load(&gpu, files, mortal(), &mut |_| {}));
    gpu.poll().expect_err("it is lost");
}

#[test]
fn a_lost_device_of_our_own_ends_everything_once() {
    for when in [0, 1, 2, 5, 9, 30] {
        let Some(gpu) = common::open(&GpuOptions::default()) else { return };
        let (mut engine, ids) = crowded(&gpu);
        let mut ends = Ends::default();
        let mut n_calls = 0;
        while !engine.is_idle() {
            if n_calls == when {
                gpu.device().destroy();
            }
            assert!(n_calls < ENOUGH, "it never ends");
            n_calls += 1;
            ends.take(engine.pump().expect("the ends come first"));
        }
        check_after(engine, &ids, ends);
    }
}

#[test]
fn run_returns_the_loss() {
    let Some(gpu) = common::open(&GpuOptions::default()) else { return };
    let (mut engine, ids) = crowded(&gpu);
    let (mut ends, mut n_tokens) = (Ends::default(), 0);
    let result = engine.run(|event| {
        n_tokens += usize::from(matches!(event, Event::Token { .. }));
        if n_tokens == 5 {
            gpu.device().destroy();
        }
        ends.take(vec![event]);
    });
    assert_lost("run", result);
    check_after(engine, &ids, ends);
}

/// When a host's device is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    BeforeRecording,
    BeforeSubmission,
    AfterSubmission,
    /// The host submits nothing from then on.
    Unsubmitted,
}

#[test]
fn a_lost_device_of_a_hosts_ends_everything_once() {
    use Moment::*;
    for moment in [BeforeRecording, BeforeSubmission, AfterSubmission, Unsubmitted] {
        for when in [0, 3, 20] {
            if common::gpu().is_none() {
                return;
            }
            let (gpu, queue) = host();
            let (mut engine, ids) = crowded(&gpu);
            let mut ends = Ends::default();
            let destroy = |now, n_frames| {
                if now == moment && n_frames == when {
                    gpu.device().destroy();
                }
            };
            let mut n_frames = 0;
            while !engine.is_idle() {
                assert!(n_frames < ENOUGH, "{moment:?} {when}: it never ends");
                destroy(BeforeRecording, n_frames);
                destroy(Unsubmitted, n_frames);
                match engine.advance(Duration::from_millis(4)) {
                    Ok(buffers) => {
                        destroy(BeforeSubmission, n_frames);
                        if moment != Unsubmitted || n_frames < when {
                            queue.submit(buffers);
                        }
                    }
                    Err(error) => assert!(is_lost(&error), "{error}"),
                }
                destroy(AfterSubmission, n_frames);
                ends.take(engine.events().expect("the ends come first"));
                n_frames += 1;
            }
            check_after(engine, &ids, ends);
        }
    }
}

#[test]
fn an_earlier_fault_does_not_hide_a_loss() {
    let Some(gpu) = common::open(&GpuOptions::default()) else { return };
    let (mut engine, ids) = crowded(&gpu);
    // An error outside any scope.
    let _refused = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 4,
        usage: wgpu::BufferUsages::empty(),
        mapped_at_creation: false,
    });
    let fault = engine.submit(Request::new(vec![1])).expect_err("a fault");
    assert!(matches!(fault, EngineError::Gpu(GpuError::Device { .. })), "{fault}");
    // It ended everything as a loss does.
    let events = engine.events().expect("the ends come first");
    let failed = events.iter().filter(|event| matches!(event, Event::Failed { .. }));
    assert_eq!((failed.count(), engine.is_idle()), (ids.len(), true));
    gpu.device().destroy();
    assert_lost("submit", engine.submit(Request::new(vec![1])));
    assert_lost("pump", engine.pump());
}

#[test]
fn a_lost_device_ends_every_text() {
    for when in [0, 1, 2] {
        for is_owned in [true, false] {
            let Some(gpu) = common::open(&GpuOptions::default()) else { return };
            let (gpu, queue) = match is_owned {
                true => (gpu, None),
                false => {
                    let (gpu, queue) = host();
                    (gpu, Some(queue))
                }
            };
            let files = ModelFiles::open(&folder("bert-classifier")).expect("a model");
            let options = EncoderOptions {
                max_seqs: 2,
                ctx: Some(32),
                max_rows: 32,
                recovery: None,
                ..Default::default()
            };
            let mut encoder = TextEncoder::load(&gpu, files, options, &mut |_| {}).expect("an encoder");
            let texts = (0..9).map(|i| prompt(i, 10 + i as usize).iter().map(|t| t % 100).collect());
            let ids: Vec<_> =
                texts.map(|text| encoder.submit(text, Output::Embedding).expect("submit")).collect();
            let (mut ends, mut n_failed, mut n_calls) = (Vec::new(), 0, 0);
            while !encoder.is_idle() {
                assert!(n_calls < ENOUGH, "it never ends");
                if n_calls == when {
                    gpu.device().destroy();
                }
                n_calls += 1;
                let encoded = match &queue {
                    None => encoder.pump(),
                    Some(queue) => {
                        if let Ok(buffers) = encoder.advance(Duration::ZERO) {
                            queue.submit(buffers);
                        }
                        encoder.events()
                    }
                };
                for one in encoded.expect("the ends come first") {
                    n_failed += usize::from(one.values.is_err_and(|error| is_lost(&error)));
                    ends.push(one.id);
                }
            }
            ends.sort();
            assert_eq!(ends, ids);
            assert!(n_failed > 0);
            assert_lost("submit", encoder.submit(vec![1], Output::Embedding));
            assert_lost("events", encoder.events());
        }
    }
}

#[test]
fn clips_end_with_the_device() {
    let Some(gpu) = common::open(&GpuOptions::default()) else { return };
    let whisper = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words");
    let files = ModelFiles::open(&whisper).expect("a model");
    let options = EngineOptions { recovery: None, ..EngineOptions::default() };
    let mut engine = Engine::load(&gpu, files, options, &mut |_| {}).expect("an engine");
    let audio = engine.shape().audio.clone().expect("a speech model");
    let features = vec![0.0; audio.n_frames * audio.n_mels];
    let clip = engine.listen(&features).expect("a clip");
    let speech = Some(SpeechRequest { clip, rules: None, alignment: false });
    let id = engine.submit(Request { speech, ..Request::new(vec![1]) }).expect("submit");
    engine.pump().expect("it runs");
    gpu.device().destroy();
    let mut ends = Ends::default();
    for _ in 0..ENOUGH {
        if engine.is_idle() {
            break;
        }
        ends.take(engine.pump().expect("the ends come first"));
    }
    assert_eq!(ends.0, BTreeMap::from([(id, true)]));
    assert!(engine.is_idle());
    assert_lost("listen", engine.listen(&features));
    engine.forget(clip);
}

#[test]
fn a_device_lost_during_a_load_ends_the_load() {
    for is_owned in [true, false] {
        let Some(gpu) = common::open(&GpuOptions::default()) else { return };
        let gpu = if is_owned { gpu } else { host().0 };
        let files = ModelFiles::open(&folder("llama")).expect("a model");
        let options = EngineOptions { quantize: Some(Dtype::Q8_0), ..mortal() };
        let mut loading = Engine::loading(&gpu, files, options).expect("it is planned");
        loading.advance(Duration::ZERO).expect("a slice");
        gpu.device().destroy();
        for _ in 0..3 {
            assert_lost("advance", loading.advance(Duration::ZERO));
        }
        assert!(!loading.is_done());
        loading.finish().map(|_| ()).expect_err("it is not loaded");
    }
}

/// Opens a device that has so much memory.
fn with_memory(free_bytes: u64) -> Option<Gpu> {
    common::open(&GpuOptions { free_bytes: Some(free_bytes), ..GpuOptions::default() })
}

fn loaded(gpu: &Gpu, files: ModelFiles, options: &EngineOptions) -> Result<Engine, EngineError> {
    Engine::load(gpu, files, options.clone(), &mut |_| {})
}

#[test]
fn memory_is_added_up_before_it_is_asked_for() {
    let Some(gpu) = with_memory(1) else { return };
    for model in ["llama", "gpt2", "qwen3"] {
        let open = || ModelFiles::open(&folder(model)).expect("a model");
        let options = EngineOptions { ctx: Some(256), max_seqs: 3, ..EngineOptions::default() };
        let before = gpu.counts();
        let error = loaded(&gpu, open(), &options).expect_err("one byte is not enough");
        assert_eq!(gpu.counts(), before, "{model}: nothing was allocated");
        let EngineError::Memory { need, free_bytes: 1, .. } = error else { panic!("{model}: {error}") };
        // What was added up is what is allocated.
        let total = need.total_bytes();
        let large = with_memory(total).expect("a device");
        let engine = loaded(&large, open(), &options).expect("it is enough");
        assert_eq!(engine.weights_bytes(), need.weights_bytes - rope_bytes(model, 256), "{model}");
        let peak = large.counts().peak_bytes;
        // Not everything is needed at once: staging while it is loaded, some parameters after that.
        let most_less = need.weights_bytes + (2 << 20) + 4096;
        assert!(peak <= total && total - peak < most_less, "{model}: {peak} of {total}");
        loaded(&with_memory(total - 1).expect("a device"), open(), &options).expect_err("a byte too few");
    }
}

/// Bytes of the table of angles, which belongs to the weights in memory but not in the file.
fn rope_bytes(model: &str, ctx: usize) -> u64 {
    let files = ModelFiles::open(&folder(model)).expect("a model");
    let attention = files.architecture.shape().attention[0];
    if model == "gpt2" { 0 } else { (ctx * attention.head_dim * 4) as u64 }
}

#[test]
fn too_little_memory_says_what_would_fit() {
    let needs = |options: &EngineOptions| {
        let gpu = with_memory(1)?;
        let files = ModelFiles::open(&folder("llama")).expect("a model");
        match loaded(&gpu, files, options) {
            Err(EngineError::Memory { need, .. }) => Some(need.total_bytes()),
            other => panic!("{other:?}"),
        }
    };
    let options = EngineOptions { ctx: Some(512), max_seqs: 8, ..EngineOptions::default() };
    let of = |ctx, quantize| needs(&EngineOptions { ctx: Some(ctx), quantize, ..options.clone() });
    let Some(whole) = of(512, None) else { return };
    let quantised = of(512, Some(Dtype::Q8_0)).expect("a need");
    let shorter = of(256, None).expect("a need");
    for (free, ctx, quantize) in [
        (whole - 1, None, Some(Dtype::Q8_0)),
        (quantised.min(shorter) - 1, Some(256), Some(Dtype::Q8_0)),
        (1000, None, None),
    ] {
        let files = ModelFiles::open(&folder("llama")).expect("a model");
        let error = loaded(&with_memory(free).expect("a device"), files, &options).expect_err("too little");
        let EngineError::Memory { fitting_ctx, fitting_quantize, free_bytes, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(free_bytes, free);
        if free < 10_000 {
            assert_eq!((fitting_ctx, fitting_quantize), (ctx, quantize));
            assert!(error.hint().is_some_and(|hint| hint.contains("smaller model")), "{error:?}");
            continue;
        }
        // What is suggested does fit.
        let fitting = EngineOptions {
            ctx: fitting_ctx.or(options.ctx),
            quantize: fitting_quantize.or(options.quantize),
            ..options.clone()
        };
        let hint = error.hint().expect("a hint");
        assert!(hint.contains("EngineOptions::"), "{hint}");
        let files = ModelFiles::open(&folder("llama")).expect("a model");
        loaded(&with_memory(free).expect("a device"), files, &fitting).expect("it fits");
        assert!(fitting_ctx.is_some() || fitting_quantize.is_some(), "{ctx:?} {quantize:?}");
    }
}

#[test]
fn an_encoder_adds_up_its_memory_too() {
    let Some(gpu) = with_memory(1000) else { return };
    let open = || ModelFiles::open(&folder("bert-classifier")).expect("a model");
    let load = |gpu: &Gpu| TextEncoder::load(gpu, open(), EncoderOptions::default(), &mut |_| {});
    let before = gpu.counts();
    let Err(EngineError::Memory { need, .. }) = load(&gpu) else { panic!("it needs more") };
    assert_eq!(gpu.counts(), before);
    let total = need.total_bytes();
    let large = with_memory(total).expect("a device");
    load(&large).expect("it is enough");
    let peak = large.counts().peak_bytes;
    assert!(peak <= total, "{peak} of {total}");
    load(&with_memory(total - 1).expect("a device")).map(|_| ()).expect_err("a byte too few");
}

#[test]
fn odd_options_are_refused_or_run() {
    let Some(gpu) = common::gpu() else { return };
    let most = usize::MAX;
    let plain = || EngineOptions { ctx: Some(64), max_seqs: 2, ..EngineOptions::default() };
    let odd = [
        EngineOptions { ctx: Some(1), ..plain() },
        EngineOptions { ctx: Some(2), max_seqs: 1, max_rows: 1, ..plain() },
        EngineOptions { ctx: Some(0), ..plain() },
        EngineOptions { ctx: Some(most), ..plain() },
        EngineOptions { ctx: Some(1 << 40), ..plain() },
        EngineOptions { max_seqs: 0, ..plain() },
        EngineOptions { max_seqs: 3000, ctx: Some(16), ..plain() },
        EngineOptions { max_seqs: most, ..plain() },
        EngineOptions { max_seqs: 1 << 32, ..plain() },
        EngineOptions { max_rows: 0, ..plain() },
        EngineOptions { max_rows: most, ..plain() },
        EngineOptions { max_rows: 1 << 33, ..plain() },
        EngineOptions { kv_tokens: Some(0), ..plain() },
        EngineOptions { kv_tokens: Some(most), ..plain() },
        EngineOptions { max_waiting: 0, ..plain() },
        EngineOptions { max_waiting: most, ..plain() },
        EngineOptions { max_logprobs: most, ..plain() },
        EngineOptions { prompt_logprobs: most, ..plain() },
        EngineOptions { max_clips: 0, ..plain() },
        EngineOptions { max_clips: most, ..plain() },
        EngineOptions { alignment_heads: vec![[99, 99]], ..plain() },
        EngineOptions { quantize: Some(Dtype::F32), ..plain() },
        EngineOptions { quantize: Some(Dtype::U32), ..plain() },
        EngineOptions { kv_dtype: Dtype::Q4_K, ..plain() },
    ];
    let (mut n_run, mut n_refused) = (0, 0);
    for options in odd {
        let files = ModelFiles::open(&folder("llama")).expect("a model");
        let what = format!("{options:?}");
        match Engine::load(&gpu, files, options, &mut |_| {}) {
            Err(error) => {
                assert!(!is_lost(&error), "{what}: {error}");
                n_refused += 1;
            }
            Ok(mut engine) => {
                if let Err(error) = engine.submit(write(&[5], 3, seeded(1))) {
                    assert!(
                        matches!(error, EngineError::PromptTooLong { .. }) && engine.ctx() == 1,
                        "{what}: {error}"
                    );
                    continue;
                }
                let mut n_ends = 0;
                engine
                    .run(|event| n_ends += usize::from(matches!(event, Event::Done { .. })))
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(n_ends, 1, "{what}");
                n_run += 1;
            }
        }
    }
    assert!(n_run > 5 && n_refused > 5, "{n_run} ran, {n_refused} were refused");
    // The same for encoders.
    for (ctx, max_seqs, max_rows) in
        [(None, 0, 1), (Some(0), 1, 1), (Some(most), 1, 1), (None, most, 1), (None, 1, most), (Some(3), 1, 1)]
    {
        let files = ModelFiles::open(&folder("bert-classifier")).expect("a model");
        let options = EncoderOptions { ctx, max_seqs, max_rows, ..EncoderOptions::default() };
        if let Ok(mut encoder) = TextEncoder::load(&gpu, files, options, &mut |_| {}) {
            encoder.submit(vec![1, 2], Output::Embedding).expect("submit");
            encoder.run(|one| assert!(one.values.is_ok())).expect("run");
        }
    }
}
