//! The cache changes no bit: a request gives the same whether the cache has its prefix or not, who made what is in it,
//! and however often the request had to give way.

mod common;

use std::collections::HashMap;
use std::ops::ControlFlow;

use common::requests::{Outcome, f32_options, load, prompt, run, seeded, take, write};
use wginfer::dtype::Dtype;
use wginfer::engine::{
    Engine, EngineError, EngineOptions, FinishReason, Logits, Request, RequestId, Sampling,
};
use wginfer::tasks::{Chat, Engines, Events, Task};

/// The logits after a prompt of which a range was generated.
fn last_logits(engine: &mut Engine, ids: &[u32], generated: &[std::ops::Range<usize>]) -> (Vec<f32>, usize) {
    let request =
        Request { logits: Some(Logits::Last), generated: generated.to_vec(), ..Request::new(ids.to_vec()) };
    let found = run(engine, vec![request]).remove(0);
    (found.logits.into_iter().next().expect("logits"), found.usage.cached_tokens)
}

#[test]
fn what_the_cache_holds_changes_no_bit_of_the_logits() {
    // The variants of hardware too: there single rows and those of prompts differ in more than the order of sums.
    for gpu in [common::gpu(), common::hardware(), common::portable()] {
        let Some(gpu) = gpu else { return };
        for (model, kv_dtype) in [
            ("llama", Dtype::F32),
            ("qwen3", Dtype::F16),
            ("mistral-window", Dtype::F32),
            ("qwen3-moe", Dtype::F32),
        ] {
            let options = EngineOptions { kv_dtype, ..f32_options() };
            let ids = prompt(1, 20);
            let mut warm = load(&gpu, model, options.clone());
            let written = run(&mut warm, vec![write(&ids, 60, Sampling::greedy())]).remove(0).tokens;
            let text = [&ids[..], &written, &[5, 6, 7]].concat();
            let answer = 20..80;

            // As what it is: found in the cache, computed anew, and found again where it was computed anew.
            let (by_decoding, n_cached) = last_logits(&mut warm, &text, std::slice::from_ref(&answer));
            assert_eq!(n_cached, 79, "{model}: all but the last token, which nothing was computed from");
            let mut cold = load(&gpu, model, options.clone());
            let (replayed, n_cached) = last_logits(&mut cold, &text, std::slice::from_ref(&answer));
            assert_eq!(n_cached, 0);
            common::assert_same_bits(model, &replayed, &by_decoding);
            let (again, n_cached) = last_logits(&mut cold, &text, std::slice::from_ref(&answer));
            assert_eq!(n_cached, 82);
            common::assert_same_bits(model, &again, &by_decoding);

            // As a prompt: what was generated is not taken for it.
            let (as_prompt, n_cached) = last_logits(&mut warm, &text, &[]);
            assert_eq!(n_cached, 16, "{model}: the page that holds nothing but prompt");
            let (cold_prompt, n_cached) = last_logits(&mut load(&gpu, model, options.clone()), &text, &[]);
            assert_eq!(n_cached, 0);
            common::assert_same_bits(model, &as_prompt, &cold_prompt);
            let close = common::Tolerance::f32(4096, 10.0);
            common::assert_close(model, &as_prompt, &common::to_f64(&by_decoding), close);

            // After eviction: a cache of one text, and another text between.
            let small = EngineOptions { kv_tokens: Some(96), ..options.clone() };
            let mut engine = load(&gpu, model, small);
            run(&mut engine, vec![write(&ids, 60, Sampling::greedy())]);
            run(&mut engine, vec![write(&prompt(2, 80), 10, seeded(1))]);
            let (evicted, n_cached) = last_logits(&mut engine, &text, std::slice::from_ref(&answer));
            assert!(n_cached < 79, "{model}: some of it is gone: {n_cached}");
            common::assert_same_bits(model, &evicted, &by_decoding);
        }
    }
}

#[test]
fn kinds_of_rows_differ_in_their_bits_on_hardware() {
    // If they did not, the test above could not fail.
    let Some(gpu) = common::hardware() else { return };
    let mut engine = load(&gpu, "llama", f32_options());
    let ids = prompt(1, 20);
    let written = run(&mut engine, vec![write(&ids, 60, Sampling::greedy())]).remove(0).tokens;
    let text = [&ids[..], &written, &[5, 6, 7]].concat();
    let answer = 20..80;
    let (generated, _) = last_logits(&mut engine, &text, std::slice::from_ref(&answer));
    let (as_prompt, _) = last_logits(&mut engine, &text, &[]);
    assert!(generated.iter().zip(&as_prompt).any(|(a, b)| a.to_bits() != b.to_bits()));
}

#[test]
fn who_gives_way_is_computed_again_to_the_same_bits() {
    for gpu in [common::gpu(), common::hardware()] {
        let Some(gpu) = gpu else { return };
        let penalties =
            Sampling { repetition_penalty: 1.3, presence_penalty: 0.3, frequency_penalty: 0.2, ..seeded(0) };
        let request = |i: u64| {
            let sampling = match i % 3 {
                0 => Sampling { seed: Some(i), ..penalties.clone() },
                1 => Sampling::greedy(),
                _ => seeded(i),
            };
            Request { logprobs: Some(2), ..write(&prompt(10 + i, 7 + 5 * i as usize), 60, sampling) }
        };
        let options = EngineOptions { max_logprobs: 2, ctx: Some(128), max_seqs: 6, ..f32_options() };
        let mut large = load(&gpu, "llama", options.clone());
        let alone: Vec<Outcome> = (0..6).map(|i| run(&mut large, vec![request(i)]).remove(0)).collect();
        for run_ahead in [true, false] {
            // Six sequences of up to 92 positions each in a cache of 160: four of them give way sooner or later.
            let tight = EngineOptions { kv_tokens: Some(160), run_ahead, ..options.clone() };
            let mut engine = load(&gpu, "llama", tight);
            let together = run(&mut engine, (0..6).map(request).collect());
            for (i, (found, alone)) in together.iter().zip(&alone).enumerate() {
                assert_eq!(found.tokens, alone.tokens, "request {i}");
                assert_eq!(found.logprobs, alone.logprobs, "request {i}: to the last bit");
                assert_eq!(found.text, alone.text, "request {i}");
                assert_eq!(found.usage.completion_tokens, 60);
            }
        }
    }
}

#[test]
fn a_request_that_outgrows_the_cache_ends_with_length() {
    let Some(gpu) = common::gpu() else { return };
    let options = EngineOptions { kv_tokens: Some(48), ..f32_options() };
    let mut engine = load(&gpu, "llama", options);
    assert_eq!(engine.kv_tokens(), 48);
    let found = run(&mut engine, vec![write(&prompt(1, 40), 100, Sampling::greedy())]).remove(0);
    assert_eq!((found.tokens.len(), found.finish_reason), (9, Some(FinishReason::Length)));
    let error =
        engine.submit(write(&prompt(1, 49), 1, Sampling::greedy())).expect_err("larger than the cache");
    assert!(matches!(error, EngineError::CacheTooSmall { found: 49, expected: 48 }), "{error}");
}

/// A conversation, as tokens: what was said, and which ranges of it were answers.
#[derive(Default, Clone)]
struct Conversation {
    ids: Vec<u32>,
    answers: Vec<std::ops::Range<usize>>,
}

impl Conversation {
    fn ask(&mut self, question: &[u32], seed: u64) -> Request {
        self.ids.extend(question);
        Request { generated: self.answers.clone(), ..write(&self.ids, 9, seeded(seed)) }
    }

    fn hear(&mut self, answer: &[u32]) {
        let begin = self.ids.len();
        self.ids.extend(answer);
        self.answers.push(begin..self.ids.len());
    }
}

#[test]
fn forty_turns_in_a_third_of_their_room_beside_eight_others_are_what_they_are_alone() {
    let Some(gpu) = common::gpu() else { return };
    const TURNS: usize = 40;
    const OTHERS: usize = 8;
    let question = |who: usize, turn: usize| prompt((1000 * who + turn) as u64, 3 + (who + turn) % 5);
    let seed = |who: usize, turn: usize| (100 * who + turn) as u64;
    // A conversation of forty turns ends at about 40 · (5 + 9) positions; the others are a quarter as long.
    let options = EngineOptions { ctx: Some(640), max_seqs: 4, ..f32_options() };
    let mut large = load(&gpu, "llama", options.clone());
    let turns_of = |who: usize| if who == 0 { TURNS } else { TURNS / 4 };
    let alone: Vec<Vec<Vec<u32>>> = (0..=OTHERS)
        .map(|who| {
            let mut talk = Conversation::default();
            let turns = (0..turns_of(who)).map(|turn| {
                let request = talk.ask(&question(who, turn), seed(who, turn));
                let answer = run(&mut large, vec![request]).remove(0).tokens;
                talk.hear(&answer);
                answer
            });
            turns.collect()
        })
        .collect();
    let length: usize = (0..TURNS).map(|turn| question(0, turn).len() + 9).sum();

    // A third of what all of them say, and no less than the long one needs for its last turn.
    let total = length
        + (1..=OTHERS)
            .map(|who| (0..TURNS / 4).map(|t| question(who, t).len() + 9).sum::<usize>())
            .sum::<usize>();
    let kv_tokens = (total / 3).max(length + 16);
    let mut engine = load(&gpu, "llama", EngineOptions { kv_tokens: Some(kv_tokens), ..options });
    let mut talks = vec![Conversation::default(); OTHERS + 1];
    let mut turns = [0; OTHERS + 1];
    let mut open: HashMap<RequestId, usize> = HashMap::new();
    let mut outcomes = HashMap::new();
    for (who, talk) in talks.iter_mut().enumerate() {
        let request = talk.ask(&question(who, 0), seed(who, 0));
        open.insert(engine.submit(request).expect("submit"), who);
    }
    let mut n_recomputed = 0;
    while !open.is_empty() {
        engine.pump().expect("pump").into_iter().for_each(|event| take(&mut outcomes, event));
        let ended: Vec<RequestId> = open
            .keys()
            .filter(|id| outcomes.get(id).is_some_and(|o: &Outcome| o.finish_reason.is_some()))
            .copied()
            .collect();
        for id in ended {
            let who = open.remove(&id).expect("open");
            let found = outcomes.remove(&id).expect("ended");
            let turn = turns[who];
            assert_eq!(found.tokens, alone[who][turn], "conversation {who}, turn {turn}");
            n_recomputed += usize::from(turn > 0 && found.usage.cached_tokens == 0);
            talks[who].hear(&found.tokens);
            turns[who] += 1;
            if turns[who] < turns_of(who) {
                let request = talks[who].ask(&question(who, turns[who]), seed(who, turns[who]));
                open.insert(engine.submit(request).expect("submit"), who);
            }
        }
    }
    assert_eq!(turns[0], TURNS);
    assert!(n_recomputed > 0, "the cache was too small for all of them");
}

#[test]
fn conversations_that_outgrow_the_cache_are_what_they_are_alone() {
    let Some(gpu) = common::gpu() else { return };
    const TURNS: usize = 40;
    const OTHERS: usize = 8;
    // Forty turns of about twenty tokens each, in a cache of 272 positions for all nine conversations: the oldest turns
    // are dropped one after the other, and what one conversation computed is soon another's page.
    let options =
        EngineOptions { ctx: Some(272), kv_tokens: Some(272), max_seqs: 4, ..EngineOptions::default() };
    let demo = |options| {
        let files = wginfer::checkpoint::ModelFiles::demo().expect("the demonstration model");
        Engine::load(&gpu, files, options, &mut |_| {}).expect("an engine")
    };
    let chat = |engine: &Engine, who: usize| {
        let sampling = Sampling { temperature: 0.8, seed: Some(who as u64), ..Sampling::default() };
        let mut chat = Chat::new(engine.tokenizer().expect("it has one"), sampling).expect("a template");
        chat.max_tokens = Some(12);
        chat
    };
    let says = |who: usize, turn: usize| {
        let (who, what) =
            (["Mia", "Owen", "Lily"][who % 3], ["a ball", "a gray cat", "the hill", "the rain"][turn % 4]);
        format!("{who} saw {what} on day {turn}. What did {who} do?")
    };
    let turns_of = |who: usize| if who == 0 { TURNS } else { TURNS / 4 };
    let mut alone = Vec::new();
    let mut n_tokens = 0;
    for who in 0..=OTHERS {
        let mut engine = demo(options.clone());
        let mut chat = chat(&engine, who);
        let mut n_dropped = 0;
        let mut ask = |turn| {
            let reply =
                chat.ask(&mut engine, &says(who, turn), |_| ControlFlow::Continue(())).expect("a reply");
            n_dropped += reply.n_dropped;
            if who == 0 {
                n_tokens += reply.usage.completion_tokens + says(who, turn).len() / 3;
            }
            reply.text
        };
        alone.push((0..turns_of(who)).map(&mut ask).collect::<Vec<String>>());
        assert!(who > 0 || n_dropped > TURNS, "the long one outgrows its context");
    }
    assert!(n_tokens > 3 * 272, "three times what the cache holds: {n_tokens}");

    let mut engine = demo(options);
    let mut chats: Vec<Chat> = (0..=OTHERS).map(|who| chat(&engine, who)).collect();
    let mut turns = [0; OTHERS + 1];
    chats.iter_mut().enumerate().for_each(|(who, chat)| chat.say(&says(who, 0)));
    while (0..=OTHERS).any(|who| turns[who] < turns_of(who)) {
        chats.iter_mut().for_each(|chat| chat.advance(&mut Engines::from(&mut engine)));
        let mut events = Events::from(engine.pump().expect("pump"));
        for (who, chat) in chats.iter_mut().enumerate() {
            chat.observe(&mut events);
            if turns[who] < turns_of(who) && chat.is_done() {
                let reply = chat.finish().expect("a reply");
                assert_eq!(reply.text, alone[who][turns[who]], "conversation {who}, turn {}", turns[who]);
                turns[who] += 1;
                if turns[who] < turns_of(who) {
                    chat.say(&says(who, turns[who]));
                }
            }
        }
    }
}
