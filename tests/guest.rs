//! A guest in a host's frames: slices of any size give the same bits, nothing is submitted, allocated or waited for, a
//! command buffer that was dropped is named, and engines share a frame.

mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::requests::{
    Outcome, all_logits, f32_options, folder, host, load, prompt, run, seeded, take, write,
};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{Engine, EngineError, EngineOptions, Event, Frames, Request, RequestId, Sampling};
use wginfer::gpu::{Gpu, GpuError};
use wginfer::wgpu;

/// Frames that every engine here ends within.
const ENOUGH: usize = 100_000;

/// Requests of all kinds: prompts that are longer than a step, and answers.
fn requests() -> Vec<Request> {
    vec![
        all_logits(&prompt(1, 53)),
        write(&prompt(2, 3), 20, seeded(1)),
        write(&prompt(3, 90), 9, Sampling::greedy()),
    ]
}

fn submit(engine: &mut Engine) -> Vec<RequestId> {
    requests().into_iter().map(|request| engine.submit(request).expect("submit")).collect()
}

fn of(ids: &[RequestId], outcomes: &HashMap<RequestId, Outcome>) -> Vec<Outcome> {
    ids.iter().map(|id| outcomes[id].clone()).collect()
}

/// Runs frames until the engine is idle, and returns what became of each request, and how many frames that took.
fn drive(engine: &mut Engine, queue: &wgpu::Queue, budget: Duration) -> (HashMap<RequestId, Outcome>, usize) {
    let mut outcomes = HashMap::new();
    for n in 0..ENOUGH {
        if engine.is_idle() {
            return (outcomes, n);
        }
        queue.submit(engine.advance(budget).expect("advance"));
        std::thread::sleep(Duration::from_micros(100));
        engine.events().expect("events").into_iter().for_each(|event| take(&mut outcomes, event));
    }
    panic!("it never ends");
}

/// Loads a model in a host's frames.
fn load_in_frames(gpu: &Gpu, queue: &wgpu::Queue, model: &str, options: EngineOptions) -> Engine {
    let files = ModelFiles::open(&folder(model)).expect("checkpoint");
    let mut loading = Engine::loading(gpu, files, options).expect("loading");
    for _ in 0..ENOUGH {
        if loading.is_done() {
            return loading.finish().expect("an engine");
        }
        queue.submit(loading.advance(Duration::from_millis(4)).expect("advance"));
        std::thread::sleep(Duration::from_micros(100));
    }
    panic!("it never ends");
}

#[test]
fn cuts_inside_a_layer_change_no_bit() {
    let Some(gpu) = common::gpu() else { return };
    for (model, quantize) in [
        ("llama", None),
        ("gpt2", None),
        ("qwen3-moe", None),
        ("gemma3", Some(Dtype::Q4_0)),
        ("mistral-window", Some(Dtype::Q8_0)),
    ] {
        let options = EngineOptions { quantize, max_rows: 64, ..f32_options() };
        let expected = run(&mut load(&gpu, model, options.clone()), requests());
        let (guest, queue) = host();
        let mut engine = load_in_frames(&guest, &queue, model, options);
        // No budget cuts at every dispatch and every piece; a fraction of a millisecond cuts anywhere.
        for budget in [Duration::ZERO, Duration::from_micros(150)] {
            let ids = submit(&mut engine);
            let (outcomes, n_frames) = drive(&mut engine, &queue, budget);
            let found = of(&ids, &outcomes);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = format!("{model}, {budget:?}, request {i}");
                assert!(found.logits == expected.logits, "{what}: logits");
                assert_eq!(found.tokens, expected.tokens, "{what}");
            }
            if budget.is_zero() {
                assert!(n_frames > 100, "{model}: a dispatch a frame, but only {n_frames} frames");
            }
        }
        let smallest = engine.smallest_slice().expect("something was measured");
        assert!(smallest > Duration::ZERO && smallest < Duration::from_secs(2), "{model}: {smallest:?}");
        assert!(!engine.slice_times().is_empty(), "{model}");
        assert_eq!(guest.counts().submissions, 0, "{model}: the queue is the host's");
    }
}

#[test]
fn a_guest_allocates_nothing_after_the_load_and_does_not_wait() {
    if common::gpu().is_none() {
        return;
    }
    let (gpu, queue) = host();
    let mut engine = load(&gpu, "llama", f32_options());
    let built = gpu.counts();
    submit(&mut engine);
    drive(&mut engine, &queue, Duration::from_millis(2));
    let after = gpu.counts();
    assert_eq!(after.allocations, built.allocations, "nothing is allocated after the engine is built");
    assert_eq!(after.submissions, 0, "the queue is the host's");

    // Nothing is submitted: every call returns at once, and the same events as before, none.
    submit(&mut engine);
    let mut held = Vec::new();
    let begin = Instant::now();
    for _ in 0..200 {
        held.extend(engine.advance(Duration::from_millis(2)).expect("advance"));
        assert!(engine.events().expect("events").is_empty());
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "200 calls took {:?}", begin.elapsed());
    assert!((1..=2).contains(&held.len()), "at most two slices are in flight, {} are", held.len());
    queue.submit(held);
    drive(&mut engine, &queue, Duration::from_millis(2));
}

#[test]
fn a_guest_installs_no_callback_on_the_device() {
    if common::gpu().is_none() {
        return;
    }
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (gpu, queue) = host();
    let n_errors = Arc::new(AtomicUsize::new(0));
    let count = n_errors.clone();
    gpu.device().on_uncaptured_error(Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let mut engine = load(&gpu, "llama", f32_options());
    submit(&mut engine);
    drive(&mut engine, &queue, Duration::from_millis(1));
    assert_eq!(n_errors.load(Ordering::SeqCst), 0, "errors of ours reach no handler of the host's");
    // The host's own error still does.
    let _refused = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("of no use"),
        size: 4,
        usage: wgpu::BufferUsages::empty(),
        mapped_at_creation: false,
    });
    assert_eq!(n_errors.load(Ordering::SeqCst), 1, "the host's handler is in its place");
}

fn is_dropped(error: &EngineError) -> bool {
    matches!(error, EngineError::Gpu(GpuError::Dropped { n: 1.. }))
}

#[test]
fn a_command_buffer_that_is_dropped_is_named() {
    if common::gpu().is_none() {
        return;
    }
    // The first slice, one in the middle of a prompt, one of many.
    for when in [0, 1, 7, 40] {
        let (gpu, queue) = host();
        let mut engine = load(&gpu, "llama", f32_options());
        let ids = submit(&mut engine);
        let mut ended = HashMap::new();
        let mut error = None;
        for n in 0..ENOUGH {
            match engine.advance(Duration::ZERO) {
                Ok(buffers) if n == when => drop(buffers),
                Ok(buffers) => drop(queue.submit(buffers)),
                Err(e) => {
                    error = Some(e);
                    break;
                }
            }
            std::thread::sleep(Duration::from_micros(200));
            if n > when {
                break;
            }
        }
        for event in engine.events().expect("the ends come first") {
            if let Event::Failed { id, error } = event {
                assert!(is_dropped(&error), "{when}: {error}");
                assert_eq!(ended.insert(id, ()), None, "{when}: an end comes once");
            }
        }
        assert_eq!(ended.len(), ids.len(), "{when}: every open request ends");
        let error = error.unwrap_or_else(|| engine.advance(Duration::ZERO).expect_err("it is known by now"));
        assert!(is_dropped(&error), "{when}: {error}");
        let hint = error.hint().expect("what to do");
        assert!(
            error.to_string().contains("dropped") && hint.contains("submit every command buffer"),
            "{hint}"
        );
        // The device is well: another engine on the same model works.
        let mut another = Engine::new(&gpu, engine.model(), f32_options()).expect("another engine");
        let ids = submit(&mut another);
        let (outcomes, _) = drive(&mut another, &queue, Duration::from_millis(4));
        assert!(ids.iter().all(|id| outcomes[id].error.is_none()), "{when}");
    }
}

#[test]
fn a_load_whose_command_buffer_is_dropped_ends() {
    if common::gpu().is_none() {
        return;
    }
    let (gpu, queue) = host();
    let files = ModelFiles::open(&folder("llama")).expect("checkpoint");
    let options = EngineOptions { quantize: Some(Dtype::Q8_0), ..f32_options() };
    let mut loading = Engine::loading(&gpu, files, options).expect("loading");
    let dropped = (0..ENOUGH).find_map(|_| {
        std::thread::sleep(Duration::from_millis(1));
        Some(loading.advance(Duration::ZERO).expect("advance")).filter(|buffers| !buffers.is_empty())
    });
    drop(dropped.expect("it begins once its kernels are compiled"));
    let mut result = Ok(Vec::new());
    for _ in 0..3 {
        result = loading.advance(Duration::ZERO);
        match &result {
            Ok(_) => queue.submit([]),
            Err(_) => break,
        };
    }
    let error = result.expect_err("what was dropped is missed");
    assert!(is_dropped(&error), "{error}");
}

#[test]
fn two_engines_on_one_model_share_a_frame() {
    if common::gpu().is_none() {
        return;
    }
    let (gpu, queue) = host();
    let mut first = load(&gpu, "llama", f32_options());
    let mut second = Engine::new(&gpu, first.model(), f32_options()).expect("a second engine");
    let alone = {
        let ids = submit(&mut first);
        of(&ids, &drive(&mut first, &queue, Duration::from_millis(4)).0)
    };
    let ids = [submit(&mut first), submit(&mut second)];
    let mut frames = Frames::new();
    let mut outcomes = [HashMap::new(), HashMap::new()];
    let mut ended = [None, None];
    for n in 0..ENOUGH {
        if ended.iter().all(Option::is_some) {
            break;
        }
        // The second one is more important.
        for buffers in frames.advance(&mut [(&mut first, 1), (&mut second, 2)], Duration::from_micros(300)) {
            queue.submit(buffers.expect("advance"));
        }
        std::thread::sleep(Duration::from_micros(200));
        for (i, engine) in [&mut first, &mut second].into_iter().enumerate() {
            engine.events().expect("events").into_iter().for_each(|event| take(&mut outcomes[i], event));
            if engine.is_idle() {
                ended[i].get_or_insert(n);
            }
        }
    }
    for i in 0..2 {
        let found = of(&ids[i], &outcomes[i]);
        for (found, alone) in found.iter().zip(&alone) {
            assert!(found.logits == alone.logits && found.tokens == alone.tokens, "engine {i}");
        }
    }
    assert!(ended[1] < ended[0], "the more important one ends first: {ended:?}");
}

#[test]
fn host_and_device_keep_their_budget_while_a_model_loads() {
    if common::gpu().is_none() {
        return;
    }
    let (gpu, queue) = host();
    // 20 MB of F16 that are quantised. A budget of 8 ms here, because nothing is optimised in tests.
    let config = r#"{"model_type":"llama","vocab_size":8192,"hidden_size":256,"intermediate_size":768,
        "num_hidden_layers":6,"num_attention_heads":4,"max_position_embeddings":256}"#;
    let files = ModelFiles::random("random", config, Dtype::F16).expect("a config");
    let options = EngineOptions { quantize: Some(Dtype::Q4_0), ctx: Some(64), ..f32_options() };
    let mut loading = Engine::loading(&gpu, files, options).expect("loading");
    let mut n_frames = 0;
    while !loading.is_done() {
        let begin = Instant::now();
        queue.submit(loading.advance(Duration::from_millis(8)).expect("advance"));
        // Ten times the budget: other programs run on this machine, too.
        assert!(begin.elapsed() < Duration::from_millis(80), "frame {n_frames} took {:?}", begin.elapsed());
        std::thread::sleep(Duration::from_millis(1));
        n_frames += 1;
        assert!(n_frames < ENOUGH, "it gets on");
    }
    assert!(n_frames > 3, "{n_frames} frames");
    loading.finish().expect("an engine");
}
