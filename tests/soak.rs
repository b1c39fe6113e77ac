//! An engine under random use: thousands of requests of all kinds, random stops and cancellations, engines dropped with
//! work in flight, several on one device, hosts' devices of all sizes. The same request always gives the same text.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::Rng;
use common::requests::{Outcome, folder, load, prompt, run, seeded, take, write};
use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Engine, EngineOptions, FinishReason, Request, RequestId, Sampling};
use wginfer::gpu::Gpu;
use wginfer::wgpu;

/// A request that depends only on `key`: unusual combinations of parameters, long and short prompts, shared beginnings.
fn request(key: u64, vocab_size: usize, ctx: usize) -> Request {
    let mut rng = Rng::new(key);
    let most = if rng.below(12) == 0 { ctx - 1 } else { 40 };
    let n = 1 + rng.below(most.min(ctx - 1));
    let is_shared = rng.below(3) == 0;
    let token = |rng: &mut Rng, i: usize| {
        if is_shared && i + 1 < n { 3 + i % 200 } else { 2 + rng.below(vocab_size - 2) }
    };
    let prompt: Vec<u32> = (0..n).map(|i| token(&mut rng, i) as u32).collect();
    let answer = n / 3..n / 2;
    let generated = (rng.below(4) == 0).then_some(answer).into_iter().collect();
    let mut sampling = Sampling {
        seed: Some(key),
        temperature: [0.0, 0.7, 1.0, 1e-30, 50.0][rng.below(5)],
        top_k: [0, 1, 5, 1_000_000][rng.below(4)],
        top_p: [1.0, 0.9, 1e-9][rng.below(3)],
        min_p: [0.0, 0.05, 1.0][rng.below(3)],
        ..Sampling::default()
    };
    if rng.below(3) == 0 {
        sampling.repetition_penalty = [1.0, 1.3, 100.0, 0.01][rng.below(4)];
        sampling.presence_penalty = rng.uniform() * 4.0 - 2.0;
        sampling.frequency_penalty = rng.uniform() * 4.0 - 2.0;
    }
    if rng.below(5) == 0 {
        let mut ids: Vec<u32> = (0..rng.below(30)).map(|_| rng.below(vocab_size) as u32).collect();
        ids.sort_unstable();
        ids.dedup();
        sampling.logit_bias = ids.into_iter().map(|id| (id, rng.uniform() * 200.0 - 100.0)).collect();
    }
    let stops = ["e", "the", " a", "\u{fffd}", "xyzxyz", "é", ".", "\n"];
    let stop = (0..rng.below(3)).map(|_| stops[rng.below(8)].to_string()).collect();
    Request { sampling, max_tokens: Some(1 + rng.below(12)), stop, generated, ..Request::new(prompt) }
}

/// Submits `n` requests, many of them repeated, cancels some, and compares each text with the first of its key.
fn soak(gpu: &Gpu, n: usize, options: EngineOptions) {
    let mut engine = load(gpu, "llama", options);
    let (vocab_size, ctx) = (engine.shape().vocab_size, engine.ctx().min(engine.kv_tokens()));
    let mut rng = Rng::new(7);
    let mut open: HashMap<RequestId, (u64, bool)> = HashMap::new();
    let mut outcomes: HashMap<RequestId, Outcome> = HashMap::new();
    let mut known: HashMap<u64, Outcome> = HashMap::new();
    let (mut n_sent, mut n_compared, mut n_cancelled) = (0, 0, 0);
    let built = gpu.counts();
    while n_sent < n || !open.is_empty() {
        if n_sent < n && open.len() < 24 && rng.below(2) == 0 {
            let key = rng.below(n / 4 + 1) as u64;
            let id = engine.submit(request(key, vocab_size, ctx)).expect("submit");
            open.insert(id, (key, false));
            n_sent += 1;
        } else if !open.is_empty() && rng.below(20) == 0 {
            let ids: Vec<RequestId> = open.keys().copied().collect();
            let id = ids[rng.below(ids.len())];
            engine.cancel(id);
            open.get_mut(&id).expect("open").1 = true;
        }
        engine.pump().expect("pump").into_iter().for_each(|event| take(&mut outcomes, event));
        let ended =
            |id: &RequestId| outcomes.get(id).is_some_and(|o| o.finish_reason.is_some() || o.error.is_some());
        let ids: Vec<RequestId> = open.keys().copied().filter(ended).collect();
        for id in ids {
            let (key, was_cancelled) = open.remove(&id).expect("open");
            let found = outcomes.remove(&id).expect("ended");
            assert_eq!(found.error, None);
            if found.finish_reason == Some(FinishReason::Cancelled) {
                assert!(was_cancelled);
                n_cancelled += 1;
                continue;
            }
            let first = known.entry(key).or_insert_with(|| found.clone());
            assert_eq!((&found.tokens, &found.text), (&first.tokens, &first.text), "request {key}");
            n_compared += 1;
        }
    }
    assert!(engine.is_idle());
    assert!(outcomes.is_empty(), "events of nobody: {outcomes:?}");
    assert!(n_compared > known.len() && n_cancelled > 0);
    assert_eq!(gpu.counts().allocations, built.allocations, "nothing is allocated after the engine is built");
}

#[test]
fn requests_cancels_and_stops_at_random_change_nothing_for_others() {
    let Some(gpu) = common::open(&Default::default()) else { return };
    soak(&gpu, 400, EngineOptions { ctx: Some(200), ..EngineOptions::default() });
    // A cache that is too small for all of them, and steps that cut prompts at odd places.
    let tight = EngineOptions {
        ctx: Some(200),
        kv_tokens: Some(208),
        max_rows: 13,
        max_seqs: 5,
        ..EngineOptions::default()
    };
    soak(&gpu, 200, tight);
    soak(
        &gpu,
        100,
        EngineOptions { ctx: Some(90), max_seqs: 1, run_ahead: false, ..EngineOptions::default() },
    );
}

#[test]
fn an_engine_that_is_dropped_with_work_in_flight_leaves_nothing_behind() {
    let Some(gpu) = common::open(&Default::default()) else { return };
    drop(load(&gpu, "llama", EngineOptions::default()));
    gpu.wait().expect("wait");
    let before = gpu.counts().live_bytes;
    for n_pumps in 0..12 {
        let mut engine = load(&gpu, "llama", EngineOptions::default());
        for i in 0..10 {
            engine.submit(write(&prompt(i, 100), 100, seeded(i))).expect("submit");
        }
        (0..n_pumps).for_each(|_| drop(engine.pump().expect("pump")));
    }
    gpu.wait().expect("wait");
    assert_eq!(gpu.counts().live_bytes, before);
}

#[test]
fn engines_on_several_threads_share_a_device() {
    let Some(gpu) = common::gpu() else { return };
    let write = || write(&prompt(1, 30), 40, seeded(3));
    let want = run(&mut load(&gpu, "llama", EngineOptions::default()), vec![write()]).remove(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut engine = load(&gpu, "llama", EngineOptions::default());
                for found in run(&mut engine, (0..3).map(|_| write()).collect()) {
                    assert_eq!(found.tokens, want.tokens);
                }
            });
        }
    });
    // An engine that moves to another thread with work in flight.
    let mut engine = load(&gpu, "llama", EngineOptions::default());
    let id = engine.submit(write()).expect("submit");
    engine.pump().expect("pump");
    let outcome = std::thread::spawn(move || {
        let mut outcomes = HashMap::new();
        engine.run(|event| take(&mut outcomes, event)).expect("run");
        outcomes.remove(&id).expect("done")
    });
    let outcome = outcome.join().expect("no panic");
    assert!(want.tokens.ends_with(&outcome.tokens), "what had come before is not told again");
}

#[test]
fn a_hosts_device_of_any_size_works_or_is_refused_by_name() {
    let Some(gpu) = common::gpu() else { return };
    let want =
        run(&mut load(&gpu, "llama", EngineOptions::default()), vec![write(&prompt(1, 70), 10, seeded(1))]);
    let instance = wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
    let base = wgpu::Limits::default();
    let limits = [
        ("default", base.clone(), true),
        ("128 MiB", wgpu::Limits { max_buffer_size: 128 << 20, ..base.clone() }, true),
        ("buffers of 1 MiB", wgpu::Limits { max_buffer_size: 1 << 20, ..base.clone() }, false),
        ("downlevel", wgpu::Limits::downlevel_defaults(), false),
        ("webgl2", wgpu::Limits::downlevel_webgl2_defaults(), false),
        ("workgroups of 32", wgpu::Limits { max_compute_workgroup_size_x: 32, ..base.clone() }, false),
        (
            "128 invocations",
            wgpu::Limits { max_compute_invocations_per_workgroup: 128, ..base.clone() },
            false,
        ),
        ("64 workgroups", wgpu::Limits { max_compute_workgroups_per_dimension: 64, ..base }, false),
    ];
    for (name, required_limits, must_work) in limits {
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect(name);
        let engine = Gpu::adopt(device, queue.clone()).map_err(|e| e.to_string()).and_then(|gpu| {
            let files = ModelFiles::open(&folder("llama")).expect("a checkpoint");
            Engine::load(&gpu, files, EngineOptions::default(), &mut |_| {}).map_err(|e| e.to_string())
        });
        let mut engine = match engine {
            Ok(engine) => engine,
            Err(error) if !must_work => {
                assert!(error.contains('`') || error.contains("bytes"), "{name}: {error}");
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        let id = engine.submit(write(&prompt(1, 70), 10, seeded(1))).expect("submit");
        let mut outcomes = HashMap::new();
        let mut n_frames = 0;
        while !engine.is_idle() {
            queue.submit(engine.advance(Duration::from_millis(4)).expect("advance"));
            engine.events().expect("events").into_iter().for_each(|event| take(&mut outcomes, event));
            n_frames += 1;
            assert!(n_frames < 1_000_000, "{name}: it gets on");
        }
        assert_eq!(outcomes[&id].tokens, want[0].tokens, "{name}");
    }
}

#[test]
fn options_at_the_edges_work_or_are_refused_by_name() {
    let Some(gpu) = common::gpu() else { return };
    let base = EngineOptions::default;
    let cases = [
        (EngineOptions { ctx: Some(2), max_seqs: 1, max_rows: 1, ..base() }, None),
        (EngineOptions { max_seqs: 500, ctx: Some(16), ..base() }, None),
        (EngineOptions { kv_tokens: Some(1), ..base() }, None),
        (EngineOptions { kv_tokens: Some(usize::MAX), ..base() }, None),
        (EngineOptions { max_waiting: usize::MAX, ..base() }, None),
        (EngineOptions { ctx: Some(0), ..base() }, Some("ctx")),
        (EngineOptions { max_seqs: 0, ..base() }, Some("max_seqs")),
        (EngineOptions { max_waiting: 0, ..base() }, Some("max_waiting")),
        (EngineOptions { max_rows: 0, ..base() }, Some("max_rows")),
        (EngineOptions { kv_tokens: Some(0), ..base() }, Some("kv_tokens")),
        (EngineOptions { ctx: Some(usize::MAX / 2), ..base() }, Some("`ctx`")),
        (EngineOptions { ctx: Some(1 << 28), ..base() }, Some("key cache")),
    ];
    for (options, refusal) in cases {
        let what = format!("{options:?}");
        let files = ModelFiles::open(&folder("llama")).expect("a checkpoint");
        match (Engine::load(&gpu, files, options, &mut |_| {}), refusal) {
            (Ok(mut engine), None) => {
                let found = run(&mut engine, vec![write(&[5], 1, Sampling::greedy())]).remove(0);
                assert_eq!(found.tokens.len(), 1, "{what}");
            }
            (Err(error), Some(refusal)) => assert!(error.to_string().contains(refusal), "{what}: {error}"),
            (Ok(_), Some(refusal)) => panic!("{what} should name {refusal}"),
            (Err(error), None) => panic!("{what}: {error}"),
        }
    }
}
