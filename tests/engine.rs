//! The engine's promises: a request's result does not depend on how it was scheduled, a steady step moves
//! nothing but its token, a guest never submits, and every end is an orderly one.

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::requests::{
    all_logits, f32_options, folder, host, load, prompt, run, scores, seeded, take, write,
};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{
    Engine, EngineError, EngineOptions, Event, FinishReason, Logits, PAGE_SIZE, Request, RequestId, Sampling,
};
use wginfer::gpu::{Counts, Gpu, GpuError};

#[test]
fn logprobs_of_prompts_are_those_of_their_logits() {
    let Some(gpu) = common::gpu() else { return };
    for model in ["llama", "mistral-window", "gpt2", "qwen3-moe", "mixtral"] {
        let ids = prompt(1, 53);
        let all = run(&mut load(&gpu, model, f32_options()), vec![all_logits(&ids)]).remove(0).logits;
        let want: Vec<f64> = (1..ids.len())
            .map(|i| common::reference::token_logprob(&common::to_f64(&all[i - 1]), ids[i] as usize))
            .collect();
        let options =
            |max_rows, prompt_logprobs| EngineOptions { max_rows, prompt_logprobs, ..f32_options() };
        let mut engine = load(&gpu, model, options(64, 64));
        let alone = run(&mut engine, vec![scores(&ids, 1)]).remove(0);
        let tolerance = common::Tolerance::f32(all[0].len(), common::largest(&want));
        common::assert_close(model, &alone.scores, &want, tolerance);
        assert_eq!((alone.first_score, alone.finish_reason), (Some(1), Some(FinishReason::Length)));
        assert_eq!((alone.usage.prompt_tokens, alone.usage.completion_tokens), (53, 0));

        // What comes before the first token in question is found in the cache, up to the row that foresees it.
        let again = run(&mut engine, vec![scores(&ids, 40), scores(&ids, 52)]);
        common::assert_same_bits(model, &again[0].scores, &alone.scores[39..]);
        common::assert_same_bits(model, &again[1].scores, &alone.scores[51..]);
        // Whole pages, and of the one that was left unfinished as much as is the same.
        assert_eq!([0, 1].map(|i| again[i].usage.cached_tokens), [32, 51], "{model}");

        // Steps that cut it anywhere, few rows with logits, and company that writes or wants logits.
        for (max_rows, n_scores) in [(9, 1), (20, 7), (31, 64)] {
            let options = EngineOptions { logits: true, ..options(max_rows, n_scores) };
            let mut engine = load(&gpu, model, options);
            let company = vec![
                write(&prompt(2, 3), 12, seeded(1)),
                scores(&ids, 1),
                all_logits(&ids[..9]),
                write(&prompt(3, 41), 9, Sampling::greedy()),
                scores(&ids[..30], 1),
            ];
            let found = run(&mut engine, company);
            common::assert_same_bits(model, &found[1].scores, &alone.scores);
            common::assert_same_bits(model, &found[4].scores, &alone.scores[..29]);
            assert!(found[2].logits[..] == all[..9], "{model}: logits in company");
            let written =
                run(&mut load(&gpu, model, f32_options()), vec![write(&prompt(2, 3), 12, seeded(1))]);
            assert_eq!(found[0].tokens, written[0].tokens, "{model}: a text in company");
        }
    }
}

#[test]
fn logprobs_of_prompts_are_refused_where_there_can_be_none() {
    let Some(gpu) = common::gpu() else { return };
    let mut engine = load(&gpu, "llama", EngineOptions { prompt_logprobs: 4, ..f32_options() });
    let ids = prompt(1, 9);
    for request in [scores(&ids, 0), scores(&ids, 9), scores(&ids[..1], 1), scores(&[], 1)] {
        engine.submit(request).expect_err("nothing to score");
    }
    let both = Request { logits: Some(Logits::Last), ..scores(&ids, 1) };
    engine.submit(both).expect_err("one of the two");
    assert!(engine.is_idle());
    let mut engine = load(&gpu, "llama", f32_options());
    let error = engine.submit(scores(&ids, 1)).expect_err("not built for it");
    assert!(error.to_string().contains("prompt_logprobs"), "{error}");
}

#[test]
fn logits_do_not_depend_on_chunks_batch_or_slices() {
    let Some(gpu) = common::gpu() else { return };
    for model in ["llama", "mistral-window", "gpt2"] {
        let ids = prompt(1, 53);
        let alone = run(&mut load(&gpu, model, f32_options()), vec![all_logits(&ids)]).remove(0);
        assert_eq!(alone.logits.len(), ids.len());

        // Chunks: a step of few rows cuts the prompt at odd places.
        for max_rows in [5, 7, 16, 31] {
            let mut engine = load(&gpu, model, EngineOptions { max_rows, ..f32_options() });
            let found = run(&mut engine, vec![all_logits(&ids)]).remove(0);
            assert!(found.logits == alone.logits, "{model}: chunks of {max_rows}");
        }
        // Company: prompts before and after it, and sequences that write meanwhile.
        let mut engine = load(&gpu, model, EngineOptions { max_rows: 20, ..f32_options() });
        let company = vec![
            write(&prompt(2, 3), 30, seeded(1)),
            all_logits(&ids),
            write(&prompt(3, 41), 9, Sampling::greedy()),
            all_logits(&prompt(4, 17)),
        ];
        let found = run(&mut engine, company).remove(1);
        assert!(found.logits == alone.logits, "{model}: in company");

        // The prefix from pages that another sequence wrote: its last row is the same.
        let last = Request { logits: Some(Logits::Last), ..Request::new(ids.clone()) };
        let found = run(&mut engine, vec![last.clone()]).remove(0);
        assert_eq!(found.usage.cached_tokens, 52, "{model}: all but the last row is known");
        assert!(found.logits[0] == alone.logits[52], "{model}: prefix from pages");

        // Slices: one layer at a time.
        let mut outcomes = HashMap::new();
        let id = engine.submit(all_logits(&ids)).expect("submit");
        while !engine.is_idle() {
            let buffers = engine.advance(Duration::ZERO).expect("advance");
            assert!(buffers.len() <= 1, "no budget is one layer");
            gpu.submit(buffers).expect("submit");
            gpu.wait().expect("wait");
            engine.events().expect("events").into_iter().for_each(|e| take(&mut outcomes, e));
        }
        assert!(outcomes[&id].logits == alone.logits, "{model}: sliced");
    }
}

#[test]
fn decoding_agrees_with_the_prompt_pass() {
    let Some(gpu) = common::exact() else { return };
    let mut engine = load(&gpu, "qwen3", EngineOptions { max_logprobs: 3, ..f32_options() });
    let ids = prompt(5, 11);
    let mut request = write(&ids, 40, Sampling::greedy());
    request.logprobs = Some(3);
    let written = run(&mut engine, vec![request]).remove(0);
    let all = [&ids[..], &written.tokens].concat();
    let logits = run(&mut engine, vec![all_logits(&all)]).remove(0).logits;
    for (i, step) in written.logprobs.iter().enumerate() {
        let row = &logits[ids.len() - 1 + i];
        let top = row.iter().fold(f32::MIN, |m, v| m.max(*v));
        let sum: f64 = row.iter().map(|v| f64::from(v - top).exp()).sum();
        let expected = f64::from(row[written.tokens[i] as usize] - top) - sum.ln();
        let found = f64::from(step.chosen.logprob);
        assert!((found - expected).abs() < 1e-3, "step {i}: {found} and {expected}");
        assert_eq!(step.chosen.token, written.tokens[i]);
        assert_eq!(step.top[0].token, written.tokens[i], "greedy takes the best");
        assert!(step.top.windows(2).all(|w| w[0].logprob >= w[1].logprob));
    }
}

#[test]
fn thirty_two_prompts_get_what_each_gets_alone() {
    let Some(gpu) = common::gpu() else { return };
    let options = EngineOptions { max_seqs: 32, max_rows: 48, ctx: Some(128), ..f32_options() };
    let mut engine = load(&gpu, "llama", options);
    let request = |i: u64| {
        let sampling = Sampling {
            temperature: [0.0, 0.7, 1.0, 1.3][i as usize % 4],
            top_k: [0, 5, 40][i as usize % 3],
            top_p: [1.0, 0.9, 0.5][(i as usize / 2) % 3],
            min_p: [0.0, 0.05][i as usize % 2],
            repetition_penalty: [1.0, 1.2][(i as usize / 3) % 2],
            presence_penalty: [0.0, 0.5][(i as usize / 5) % 2],
            logit_bias: if i.is_multiple_of(7) { vec![(i as u32, 2.0), (300, -100.0)] } else { vec![] },
            seed: Some(1000 + i),
            ..Sampling::default()
        };
        write(&prompt(100 + i, 1 + (i as usize * 7) % 37), 5 + (i as usize * 5) % 23, sampling)
    };
    let together = run(&mut engine, (0..32).map(request).collect());
    let mut distinct = std::collections::HashSet::new();
    for (i, found) in together.iter().enumerate() {
        let alone = run(&mut engine, vec![request(i as u64)]).remove(0);
        assert_eq!(found.tokens, alone.tokens, "request {i}");
        assert_eq!(found.tokens.len(), 5 + (i * 5) % 23);
        distinct.insert(found.tokens.clone());
    }
    assert!(distinct.len() > 28, "the requests differ");
}

#[test]
fn penalties_know_the_whole_prompt_however_it_is_cut() {
    let Some(gpu) = common::gpu() else { return };
    let ids = prompt(40, 60);
    let sampling =
        Sampling { repetition_penalty: 3.0, presence_penalty: 0.4, frequency_penalty: 0.3, ..seeded(2) };
    let mut whole = load(&gpu, "llama", f32_options());
    let expected = run(&mut whole, vec![write(&ids, 25, sampling.clone())]).remove(0).tokens;
    assert_ne!(expected, run(&mut whole, vec![write(&ids, 25, seeded(2))])[0].tokens, "they matter");
    let mut cut = load(&gpu, "llama", EngineOptions { max_rows: 7, max_seqs: 1, ..f32_options() });
    // Whoever had the slot before leaves no counts behind.
    run(&mut cut, vec![write(&prompt(41, 9), 30, sampling.clone())]);
    assert_eq!(run(&mut cut, vec![write(&ids, 25, sampling)])[0].tokens, expected);
}

#[test]
fn a_seed_repeats_and_running_ahead_changes_nothing() {
    let Some(gpu) = common::gpu() else { return };
    let mut ahead = load(&gpu, "qwen2", f32_options());
    let mut behind = load(&gpu, "qwen2", EngineOptions { run_ahead: false, ..f32_options() });
    let ids = prompt(9, 13);
    let first = run(&mut ahead, vec![write(&ids, 30, seeded(5))]);
    assert_eq!(first[0].tokens, run(&mut ahead, vec![write(&ids, 30, seeded(5))])[0].tokens);
    assert_eq!(first[0].tokens, run(&mut behind, vec![write(&ids, 30, seeded(5))])[0].tokens);
    assert_ne!(first[0].tokens, run(&mut ahead, vec![write(&ids, 30, seeded(6))])[0].tokens);
    let free = |e: &mut Engine| run(e, vec![write(&ids, 30, Sampling::default())]).remove(0).tokens;
    assert_ne!(free(&mut ahead), free(&mut ahead), "without a seed each request draws its own");
}

#[test]
fn a_steady_step_uploads_its_new_pages_and_reads_four_bytes_a_sequence() {
    for run_ahead in [false, true] {
        let Some(gpu) = common::open(&Default::default()) else { return };
        let options = EngineOptions { logits: false, run_ahead, ..f32_options() };
        let mut engine = load(&gpu, "llama", options);
        let n_seqs = 3;
        for i in 0..n_seqs {
            engine.submit(write(&prompt(20 + i, 5 + i as usize), 200, seeded(i))).expect("submit");
        }
        let built = gpu.counts();
        let mut n_tokens = 0;
        // A budget that no step uses up, so that none is cut; what was submitted has arrived at the end.
        let mut advance = |engine: &mut Engine, until: usize| {
            while n_tokens < until {
                gpu.submit(engine.advance(Duration::from_secs(60)).expect("advance")).expect("submit");
                gpu.wait().expect("wait");
                let events = engine.events().expect("events");
                n_tokens += events.iter().filter(|e| matches!(e, Event::Token { .. })).count();
            }
            n_tokens
        };
        // From here on, hardware splits the keys of every row, whose parameters are uploaded once.
        let from = advance(&mut engine, 210);
        let before = gpu.counts();
        let to = advance(&mut engine, 510);
        let after = gpu.counts();
        let difference = |f: fn(&Counts) -> u64| f(&after) - f(&before);
        let n_steps = ((to - from) / n_seqs as usize) as u64;
        // Nothing is uploaded but the entry of a page that a sequence has just been given.
        let n_pages = |n_tokens: usize| {
            (0..n_seqs as usize).map(move |i| (5 + i + n_tokens / 3 - 1).div_ceil(PAGE_SIZE))
        };
        let n_added = n_pages(to).sum::<usize>() - n_pages(from).sum::<usize>();
        assert!(n_added > 15 && n_added < n_steps as usize);
        assert_eq!(difference(|c| c.writes), n_added as u64, "uploads");
        assert_eq!(difference(|c| c.read_bytes), 4 * n_seqs * n_steps, "bytes read back");
        // Running ahead, two steps share a submission here, because the host waits for both.
        let steps_a_submission = if run_ahead { 2 } else { 1 };
        assert_eq!(difference(|c| c.submissions) * steps_a_submission, n_steps, "submissions");
        assert_eq!(after.allocations, built.allocations, "nothing is allocated after the engine is built");
        // A layer: queries, keys and values; attention; output; gate and up; down; and one more, because hardware splits
        // attention here and software devices rotate three rows in a dispatch of its own. Around them: embedding, norm,
        // head, draw.
        let a_step = 6 * engine.shape().n_layers() as u64 + 4;
        assert!(n_steps >= 99);
        assert_eq!(difference(|c| c.dispatches), a_step * n_steps, "dispatches");
    }
}

#[test]
fn requests_that_share_a_prefix_compute_it_once() {
    let Some(gpu) = common::gpu() else { return };
    let mut engine = load(&gpu, "llama", f32_options());
    let shared = prompt(30, 40);
    let request = |i: u64| write(&[&shared[..], &prompt(31 + i, 5)].concat(), 6, seeded(i));
    let outcomes = run(&mut engine, (0..4).map(request).collect());
    assert_eq!(outcomes[0].usage.cached_tokens, 0);
    for o in &outcomes[1..] {
        assert_eq!(o.usage.cached_tokens, 32, "two whole pages of the forty tokens");
    }
    // A conversation: the second turn starts with all of the first.
    let turn = [&shared[..], &prompt(31, 5), &outcomes[0].tokens, &prompt(50, 7)].concat();
    let generated = 45..51;
    let turn = Request { generated: vec![generated], ..write(&turn, 4, seeded(0)) };
    let next = run(&mut engine, vec![turn.clone()]).remove(0);
    assert_eq!(next.usage.cached_tokens, 50, "all but the last token, which nothing was computed from yet");
    let unshared = EngineOptions { prefix_cache: false, ..f32_options() };
    let fresh = run(&mut load(&gpu, "llama", unshared), vec![turn]).remove(0);
    assert_eq!((fresh.usage.cached_tokens, &fresh.tokens), (0, &next.tokens));
}

#[test]
fn pages_are_found_again_and_given_up_when_room_is_needed() {
    let Some(gpu) = common::gpu() else { return };
    let options = EngineOptions { ctx: Some(64), kv_tokens: Some(96), max_seqs: 2, ..f32_options() };
    let mut engine = load(&gpu, "llama", options);
    // More sequences than the pool holds at a time: they wait for each other, and all come right.
    let request = |i: u64| write(&prompt(60 + i, 33), 20, seeded(i));
    let together = run(&mut engine, (0..7).map(request).collect());
    for (i, found) in together.iter().enumerate() {
        assert_eq!(found.tokens, run(&mut engine, vec![request(i as u64)])[0].tokens, "request {i}");
    }
}

#[test]
fn every_end_is_orderly() {
    let Some(gpu) = common::gpu() else { return };
    let options = EngineOptions { ctx: Some(40), ..f32_options() };
    let mut engine = load(&gpu, "llama", options);
    let ids = prompt(70, 10);
    let free = run(&mut engine, vec![write(&ids, 25, Sampling::greedy())]).remove(0);
    assert_eq!(free.finish_reason, Some(FinishReason::Length));
    assert_eq!(free.usage.completion_tokens, 25);
    assert_eq!(free.usage.total_tokens, 35);

    // The context is full: 10 + 30 positions.
    let full = run(&mut engine, vec![write(&ids, 1000, Sampling::greedy())]).remove(0);
    assert_eq!((full.tokens.len(), full.finish_reason), (30, Some(FinishReason::Length)));
    assert_eq!(full.tokens[..25], free.tokens);

    // An end token is not part of the answer.
    let end = free.tokens[7];
    let at = free.tokens.iter().position(|t| *t == end).expect("it is there");
    let mut request = write(&ids, 25, Sampling::greedy());
    request.stop_tokens = Some(vec![end]);
    let stopped = run(&mut engine, vec![request]).remove(0);
    assert_eq!((&stopped.tokens[..], stopped.finish_reason), (&free.tokens[..at], Some(FinishReason::Stop)));

    // A stop text that spans tokens: everything before it, nothing of it.
    let text = &free.text;
    let middle = text.char_indices().map(|(at, _)| at).filter(|at| *at >= text.len() / 2).collect::<Vec<_>>();
    let stop = text[middle[0]..middle[5]].to_string();
    let mut request = write(&ids, 25, Sampling::greedy());
    request.stop = vec!["no such text".into(), stop.clone()];
    let stopped = run(&mut engine, vec![request]).remove(0);
    assert_eq!(stopped.text, text[..text.find(&stop).expect("it is there")]);
    assert_eq!(stopped.finish_reason, Some(FinishReason::Stop));
    assert!(stopped.tokens.len() < 25);

    // A stop text that never comes holds nothing back at the end.
    let mut request = write(&ids, 25, Sampling::greedy());
    let tail = text.chars().last().expect("text");
    request.stop = vec![format!("{tail}and then nothing")];
    assert_eq!(&run(&mut engine, vec![request])[0].text, text);
}

#[test]
fn requests_can_be_cancelled_at_any_time() {
    let Some(gpu) = common::gpu() else { return };
    let options = EngineOptions { max_seqs: 1, max_rows: 4, ..f32_options() };
    let mut engine = load(&gpu, "llama", options);
    let mut outcomes = HashMap::new();
    let long = engine.submit(write(&prompt(80, 200), 9, seeded(1))).expect("submit");
    let waiting = engine.submit(write(&prompt(81, 20), 9, seeded(1))).expect("submit");
    for _ in 0..3 {
        engine.pump().expect("pump").into_iter().for_each(|e| take(&mut outcomes, e));
    }
    assert!(outcomes.is_empty(), "the prompt is long");
    engine.cancel(long);
    engine.cancel(waiting);
    let next = engine.submit(write(&prompt(82, 6), 9, seeded(1))).expect("submit");
    engine.cancel(RequestId(999));
    engine.run(|e| take(&mut outcomes, e)).expect("run");
    for id in [long, waiting] {
        assert_eq!(outcomes[&id].finish_reason, Some(FinishReason::Cancelled));
        assert!(outcomes[&id].tokens.is_empty());
    }
    assert_eq!(outcomes[&next].tokens.len(), 9);
    let alone = run(&mut engine, vec![write(&prompt(82, 6), 9, seeded(1))]).remove(0);
    assert_eq!(outcomes[&next].tokens, alone.tokens, "what was cancelled leaves no trace");
}

#[test]
fn bad_requests_are_refused_by_name() {
    let Some(gpu) = common::gpu() else { return };
    let options = EngineOptions { ctx: Some(32), logits: false, ..f32_options() };
    let mut engine = load(&gpu, "llama", options);
    let refused = |engine: &mut Engine, request: Request, words: &str| {
        let error = engine.submit(request).expect_err(words);
        assert!(error.to_string().contains(words), "`{error}` lacks `{words}`");
    };
    refused(&mut engine, write(&[], 3, seeded(1)), "empty");
    refused(&mut engine, write(&[1, 384], 3, seeded(1)), "token 384 at position 1");
    refused(&mut engine, write(&[1; 32], 3, seeded(1)), "32 tokens, the context holds 31");
    refused(&mut engine, write(&[1], 0, seeded(1)), "max_tokens");
    refused(&mut engine, all_logits(&[1]), "logits");
    let mut request = write(&[1], 3, seeded(1));
    request.logprobs = Some(2);
    refused(&mut engine, request, "logprobs");
    for (sampling, words) in [
        (Sampling { temperature: -1.0, ..Sampling::default() }, "`temperature` is -1"),
        (Sampling { temperature: f32::NAN, ..Sampling::default() }, "`temperature` is NaN"),
        (Sampling { top_p: 2.0, ..Sampling::default() }, "`top_p` is 2"),
        (Sampling { top_p: 0.0, ..Sampling::default() }, "`top_p` is 0"),
        (Sampling { min_p: 1.5, ..Sampling::default() }, "`min_p` is 1.5"),
        (Sampling { repetition_penalty: 0.0, ..Sampling::default() }, "`repetition_penalty` is 0"),
        (Sampling { logit_bias: vec![(384, 1.0)], ..Sampling::default() }, "`logit_bias` is token 384"),
        (Sampling { logit_bias: vec![(1, 1.0), (1, 2.0)], ..Sampling::default() }, "token 1 twice"),
    ] {
        refused(&mut engine, write(&[1], 3, sampling), words);
    }
    assert!(engine.is_idle(), "nothing was queued");

    let options = EngineOptions { kv_dtype: Dtype::BF16, ..f32_options() };
    let checkpoint = ModelFiles::open(&folder("llama")).expect("checkpoint");
    let error = Engine::load(&gpu, checkpoint, options, &mut |_| {}).expect_err("no such cache");
    assert_eq!(error.to_string(), "`kv_dtype` is BF16, expected `F32`, `F16` or `Q8_0`");
}

#[test]
fn learned_positions_bound_the_context() {
    let Some(gpu) = common::gpu() else { return };
    let load = |model: &str, ctx| {
        let checkpoint = ModelFiles::open(&folder(model)).expect("checkpoint");
        let options = EngineOptions { ctx: Some(ctx), ..f32_options() };
        Engine::load(&gpu, checkpoint, options, &mut |_| {}).map(|engine| engine.ctx())
    };
    assert_eq!(load("gpt2", 256).expect("as many as there are"), 256);
    let error = load("gpt2", 257).expect_err("one more").to_string();
    assert!(error.contains("`n_positions` is `256`") && error.contains("257"), "{error}");
    assert_eq!(load("llama", 300).expect("rotation goes on"), 300);
}

#[test]
fn weights_that_are_no_numbers_are_an_error_of_their_request() {
    let Some(gpu) = common::gpu() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(folder("llama").join(file), dir.path().join(file)).expect("copy");
    }
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("read");
    let n = bytes.len();
    bytes[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("write");
    let checkpoint = ModelFiles::open(dir.path()).expect("checkpoint");
    let mut engine = Engine::load(&gpu, checkpoint, f32_options(), &mut |_| {}).expect("engine");
    for sampling in [Sampling::greedy(), seeded(3)] {
        let failed = run(&mut engine, vec![write(&[1, 2, 3], 5, sampling)]).remove(0);
        assert_eq!(failed.error.as_deref(), Some("the logits after position 2 are not finite"));
    }
    let failed = run(&mut engine, vec![all_logits(&[1, 2, 3])]).remove(0);
    assert_eq!(failed.error.as_deref(), Some("the logits after position 0 are not finite"));
    assert!(failed.logits.is_empty() && engine.is_idle());
}

#[test]
fn a_guest_never_submits_and_a_host_gets_the_same_text() {
    let Some(own) = common::gpu() else { return };
    let (guest, queue) = host();
    let mut engine = load(&guest, "llama", f32_options());
    let ids = prompt(90, 37);
    let id = engine.submit(write(&ids, 20, seeded(7))).expect("submit");
    // Calls that would submit or wait are refused, and lose nothing of what is queued.
    let refused = |result: Result<(), EngineError>| {
        assert!(matches!(result, Err(EngineError::Gpu(GpuError::Adopted))), "{result:?}");
    };
    refused(engine.pump().map(|_| ()));
    refused(engine.run(|_| {}));
    refused(guest.submit([]).map(|_| ()).map_err(EngineError::from));
    refused(guest.wait().map_err(EngineError::from));
    let mut outcomes = HashMap::new();
    let mut n_frames = 0;
    while !engine.is_idle() {
        // A frame of the host: its own work would be submitted along.
        let buffers = engine.advance(Duration::from_millis(2)).expect("advance");
        queue.submit(buffers);
        engine.events().expect("events").into_iter().for_each(|e| take(&mut outcomes, e));
        n_frames += 1;
        assert!(n_frames < 100_000, "it gets on");
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(guest.counts().submissions, 0, "the queue is the host's");
    let alone = run(&mut load(&own, "llama", f32_options()), vec![write(&ids, 20, seeded(7))]).remove(0);
    assert_eq!(outcomes[&id].tokens, alone.tokens);

    // A device that is too small is refused by name.
    let instance = wginfer::wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
    let (device, queue) = pollster::block_on(adapter.request_device(&wginfer::wgpu::DeviceDescriptor {
        required_limits: wginfer::wgpu::Limits::downlevel_webgl2_defaults(),
        ..Default::default()
    }))
    .expect("a device");
    let error = Gpu::adopt(device, queue).expect_err("too small").to_string();
    assert!(error.contains("max_storage_buffers_per_shader_stage"), "{error}");
}

#[test]
fn a_guest_loads_in_slices_and_quantises() {
    let Some(own) = common::gpu() else { return };
    let (guest, queue) = host();
    let ids = prompt(91, 30);
    for quantize in [None, Some(Dtype::Q8_0), Some(Dtype::Q4_K)] {
        let options = EngineOptions { quantize, ..f32_options() };
        let files = ModelFiles::open(&folder("llama")).expect("a checkpoint");
        let mut loading = Engine::loading(&guest, files, options.clone()).expect("it fits");
        let built = guest.counts();
        let (mut n_frames, mut last) = (0, 0);
        while !loading.is_done() {
            queue.submit(loading.advance(Duration::ZERO).expect("advance"));
            let progress = loading.progress();
            assert!(progress.done_bytes >= last && progress.done_bytes <= progress.total_bytes);
            (n_frames, last) = (n_frames + 1, progress.done_bytes);
            assert!(n_frames < 100_000, "it gets on");
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(loading.progress().done_bytes, loading.progress().total_bytes);
        assert!(n_frames > 1, "{quantize:?}: in slices");
        assert_eq!(guest.counts().submissions, built.submissions, "the queue is the host's");
        let mut engine = loading.finish().expect("all is there");
        let id = engine.submit(write(&ids, 12, seeded(3))).expect("submit");
        let mut outcomes = HashMap::new();
        while !engine.is_idle() {
            queue.submit(engine.advance(Duration::from_millis(2)).expect("advance"));
            engine.events().expect("events").into_iter().for_each(|e| take(&mut outcomes, e));
        }
        let alone = run(&mut load(&own, "llama", options), vec![write(&ids, 12, seeded(3))]).remove(0);
        assert_eq!(outcomes[&id].tokens, alone.tokens, "{quantize:?}");
    }
    // `finish` too early is an error that reports the progress.
    let files = ModelFiles::open(&folder("llama")).expect("a checkpoint");
    let loading = Engine::loading(&guest, files, f32_options()).expect("it fits");
    assert!(
        matches!(loading.finish(), Err(EngineError::NotLoaded { done_bytes, total_bytes }) if done_bytes < total_bytes)
    );
    // What has to be submitted cannot be waited for.
    let files = ModelFiles::open(&folder("llama")).expect("a checkpoint");
    let options = EngineOptions { quantize: Some(Dtype::Q8_0), ..f32_options() };
    let error = Engine::load(&guest, files, options, &mut |_| {}).expect_err("the host submits");
    assert!(error.to_string().contains("adopted") || matches!(error, EngineError::Model(_)), "{error}");
}

#[test]
fn engines_share_the_weights_of_a_model() {
    let Some(gpu) = common::open(&Default::default()) else { return };
    let mut first = load(&gpu, "qwen3", f32_options());
    let before = gpu.counts().live_bytes;
    let options = EngineOptions { ctx: Some(64), max_seqs: 2, ..f32_options() };
    let mut second = Engine::new(&gpu, first.model(), options.clone()).expect("another engine");
    let with_both = gpu.counts().live_bytes;
    let alone = load(&gpu, "qwen3", options);
    let own = gpu.counts().live_bytes - with_both;
    assert!(with_both - before + alone.weights_bytes() <= own, "it has no weights of its own");
    // Steps of both in turn, neither of which waits for the other.
    let request = |seed| write(&prompt(seed, 20), 15, seeded(seed));
    let ids = [first.submit(request(1)).expect("submit"), second.submit(request(2)).expect("submit")];
    let mut outcomes = [HashMap::new(), HashMap::new()];
    while !(first.is_idle() && second.is_idle()) {
        for (engine, outcomes) in [&mut first, &mut second].into_iter().zip(&mut outcomes) {
            engine.pump().expect("pump").into_iter().for_each(|e| take(outcomes, e));
        }
    }
    for (i, seed) in [(0, 1), (1, 2)] {
        let want = run(&mut load(&gpu, "qwen3", f32_options()), vec![request(seed)]).remove(0);
        assert_eq!(outcomes[i][&ids[i]].tokens, want.tokens);
    }
    let longer = EngineOptions { ctx: Some(first.ctx() + 1), ..f32_options() };
    let error = Engine::new(&gpu, first.model(), longer).expect_err("longer than it was loaded for");
    assert!(error.to_string().contains("ctx"), "{error}");
}

#[test]
fn an_engine_can_move_between_threads() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Engine>();
    assert_send_sync::<Gpu>();
    assert_send_sync::<EngineError>();
}
