//! The rules of scheduling on thousands of random schedules, with a fake runner.
//!
//! The fake runner keeps the state of a device: tables, pages, clips. Its "keys" are hashes of a token, the kind of its
//! row and the key before it, so the next row that reads a wrong page finds it. Its draws are hashes of keys. A few
//! lines compute what a request gives by itself, and every schedule must give the same. Tables are written when a step
//! is recorded, and rows run when it lands, as late as the test likes, so a write under a step in flight is found too.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use super::*;
use crate::engine::{Logits, Request, Sampling, SpeechRequest};

const VOCAB: u64 = 13;
const END: u32 = 0;

fn mix(a: u64, b: u64) -> u64 {
    // SplitMix64's finaliser (Steele et al. 2014).
    let mut z = a.rotate_left(17) ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 += 1;
        (mix(self.0, 7) % n as u64) as usize
    }

    fn within(&mut self, range: Range<usize>) -> usize {
        range.start + self.below(range.len())
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
}

fn key(before: u64, token: u32, is_generated: bool) -> u64 {
    mix(mix(before, u64::from(token)), u64::from(is_generated))
}

/// The next token after a key; `None` where the model computes no number.
fn draw(key: u64, seed: u64) -> Option<u32> {
    let bits = mix(key, seed ^ 0x5eed);
    (!bits.is_multiple_of(211)).then_some((bits >> 8) as u32 % VOCAB as u32)
}

fn value(key: u64) -> f32 {
    (key % 4096) as f32
}

/// What became of a request, or should.
#[derive(Clone, Debug, Default, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    logits: Vec<(usize, f32)>,
    scores: Vec<(usize, f32)>,
    /// The logits that stay on the device, with their row.
    kept: Option<(Keep, f32)>,
    end: Option<Option<FinishReason>>,
}

/// What a request gives when nothing else runs, in a cache of `kv_tokens` positions.
fn alone(request: &Request, ctx: usize, kv_tokens: usize) -> Outcome {
    let root = request.speech.as_ref().map_or(0, |speech| mix(speech.clip.0, 1));
    let n = request.prompt.len();
    let is_generated = |pos: usize| request.generated.iter().any(|range| range.contains(&pos));
    let mut keys = Vec::new();
    for (pos, token) in request.prompt.iter().enumerate() {
        keys.push(key(*keys.last().unwrap_or(&root), *token, is_generated(pos)));
    }
    let mut outcome = Outcome::default();
    if let Some(Logits::Kept { row, softmax }) = request.logits {
        outcome.kept = Some((Keep { row, softmax }, value(keys[n - 1])));
        outcome.end = Some(Some(FinishReason::Length));
        return outcome;
    }
    if let Some(which) = request.logits {
        let first = if which == Logits::All { 0 } else { n - 1 };
        outcome.logits = (first..n).map(|pos| (pos, value(keys[pos]))).collect();
        outcome.end = Some(Some(FinishReason::Length));
        return outcome;
    }
    if let Some(from) = request.prompt_logprobs {
        outcome.scores = (from..n).map(|pos| (pos, value(keys[pos - 1]))).collect();
        outcome.end = Some(Some(FinishReason::Length));
        return outcome;
    }
    let seed = request.sampling.seed.expect("the test's requests have one");
    let most = request.max_tokens.expect("and this").min(ctx - n).min(kv_tokens - n + 1);
    loop {
        let last = *keys.last().expect("a prompt");
        match draw(last, seed) {
            None => outcome.end = Some(None),
            Some(END) if request.stop_tokens.is_none() => outcome.end = Some(Some(FinishReason::Stop)),
            Some(token) => {
                outcome.tokens.push(token);
                keys.push(key(last, token, true));
                if outcome.tokens.len() < most {
                    continue;
                }
                outcome.end = Some(Some(FinishReason::Length));
            }
        }
        return outcome;
    }
}

/// What a device would hold.
struct Device {
    /// The key of each position, page by page.
    pages: Vec<[u64; PAGE_SIZE]>,
    /// The encoded clip at each place.
    places: Vec<Option<ClipId>>,
    slots: Vec<Slot>,
    /// What steps since the last look have kept.
    kept: Vec<(RequestId, Keep, f32)>,
}

#[derive(Clone, Default)]
struct Slot {
    tokens: Vec<u32>,
    pages: Vec<u32>,
    seed: u64,
    place: Option<usize>,
}

impl Device {
    fn new(n_pages: usize, n_places: usize, max_seqs: usize) -> Self {
        Device {
            pages: vec![[0; PAGE_SIZE]; n_pages],
            places: vec![None; n_places],
            slots: vec![Slot::default(); max_seqs],
            kept: Vec::new(),
        }
    }

    /// What happens when a step is recorded.
    fn write(&mut self, step: &Step) {
        for admission in &step.admitted {
            self.slots[admission.slot] = Slot {
                tokens: admission.tokens.clone(),
                pages: admission.pages.clone(),
                seed: admission.seed,
                place: admission.clip.as_ref().map(|(place, _)| *place),
            };
        }
        for entry in &step.pages {
            let pages = &mut self.slots[entry.slot].pages;
            assert_eq!(pages.len(), entry.index, "entries are appended");
            pages.push(entry.page);
        }
    }

    /// What happens when it runs.
    fn run(&mut self, step: &Step) -> StepResults {
        // All keys of a layer are written before any row reads them, so the order is that of positions.
        let mut order: Vec<usize> = (0..step.rows.len()).collect();
        order.sort_by_key(|i| step.rows[*i][1]);
        let mut at_row = vec![(0, 0); step.rows.len()];
        for i in order {
            let [slot, pos] = step.rows[i].map(|n| n as usize);
            let slot = &self.slots[slot];
            let at = |pos: usize| (slot.pages[pos / PAGE_SIZE] as usize, pos % PAGE_SIZE);
            let before = match pos {
                0 => slot.place.map_or(0, |place| mix(self.places[place].expect("encoded").0, 1)),
                _ => self.pages[at(pos - 1).0][at(pos - 1).1],
            };
            let (page, offset) = at(pos);
            self.pages[page][offset] = key(before, slot.tokens[pos], i < step.n.n_decode);
            at_row[i] = (page, offset);
        }
        let n_draws = step.draws.len();
        let mut results = StepResults::default();
        let keys: Vec<u64> = step
            .sampled
            .iter()
            .map(|row| at_row[*row as usize])
            .map(|(page, at)| self.pages[page][at])
            .collect();
        for (row, key) in step.sampled[..n_draws].iter().zip(&keys) {
            let [slot, pos] = step.rows[*row as usize].map(|n| n as usize);
            let slot = &mut self.slots[slot];
            let token = draw(*key, slot.seed);
            results.tokens.push(token);
            slot.tokens.truncate(pos + 1);
            slot.tokens.push(token.unwrap_or(END));
        }
        let rest = &keys[n_draws..];
        results.logits = rest[..step.logits.len()].iter().map(|key| vec![value(*key)]).collect();
        let rest = &rest[step.logits.len()..];
        results.scores = rest[..step.scores.len()].iter().map(|key| value(*key)).collect();
        let kept = rest[step.scores.len()..].iter().map(|key| value(*key));
        self.kept.extend(step.kept.iter().zip(kept).map(|((id, keep), value)| (*id, *keep, value)));
        results
    }
}

/// A scheduler with its fake runner, and what came of the requests.
struct World {
    scheduler: Scheduler,
    device: Device,
    in_flight: VecDeque<Work>,
    most_in_flight: usize,
    requests: BTreeMap<RequestId, Request>,
    outcomes: HashMap<RequestId, Outcome>,
    cancelled: Vec<RequestId>,
    n_steps: usize,
    n_preempted: usize,
    preempted: Vec<RequestId>,
}

fn limits(n_pages: usize, max_seqs: usize) -> Limits {
    Limits {
        architecture: "fake",
        vocab_size: VOCAB as usize,
        ctx: 200,
        n_pages,
        max_seqs,
        max_rows: 64,
        max_sampled: 8.max(max_seqs),
        max_waiting: usize::MAX,
        block_rows: 5,
        max_logprobs: 0,
        has_logits: true,
        kept_rows: 3,
        has_prompt_logprobs: true,
        has_alignment: false,
        prefix_cache: true,
    }
}

impl World {
    fn new(limits: Limits, n_places: usize, most_in_flight: usize) -> Self {
        let clips = (n_places > 0).then(|| ClipTable::new(n_places, [1, 1]));
        World {
            device: Device::new(limits.n_pages, n_places, limits.max_seqs),
            scheduler: Scheduler::new(limits, clips, None, vec![END]),
            in_flight: VecDeque::new(),
            most_in_flight,
            requests: BTreeMap::new(),
            outcomes: HashMap::new(),
            cancelled: Vec::new(),
            n_steps: 0,
            n_preempted: 0,
            preempted: Vec::new(),
        }
    }

    fn submit(&mut self, request: Request) -> RequestId {
        let id = self.scheduler.submit(request.clone()).expect("submit");
        self.requests.insert(id, request);
        id
    }

    fn cancel(&mut self, id: RequestId) {
        self.scheduler.cancel(id);
        self.cancelled.push(id);
        self.check();
    }

    /// Plans and records the next work; whether there was some.
    fn record(&mut self) -> bool {
        if self.in_flight.len() >= self.most_in_flight {
            return false;
        }
        let Some(work) = self.scheduler.next() else { return false };
        if let Work::Step(step) = &work {
            self.n_steps += 1;
            let Limits { max_rows, max_seqs, max_sampled, .. } = *self.scheduler.limits();
            assert!(!step.rows.is_empty() && step.rows.len() <= max_rows.max(max_seqs + 1));
            assert!(step.n.n_decode <= max_seqs && step.sampled.len() <= max_sampled);
            assert_eq!(step.blocks.iter().map(|[_, n]| *n as usize).sum::<usize>(), step.rows.len());
            let mut rows = step.rows.clone();
            rows.sort();
            rows.dedup();
            assert_eq!(rows.len(), step.rows.len(), "a row is computed once a step");
            self.device.write(step);
        }
        self.in_flight.push_back(work);
        self.check();
        true
    }

    /// Finishes the oldest work in flight. Returns whether there was any.
    fn land(&mut self) -> bool {
        match self.in_flight.pop_front() {
            None => return false,
            Some(Work::Clip(clip)) => {
                self.device.places[clip.place] = Some(clip.id);
                self.scheduler.clip_landed(clip.id);
            }
            Some(Work::Step(step)) => {
                let results = self.device.run(&step);
                for (id, keep, value) in std::mem::take(&mut self.device.kept) {
                    self.outcomes.entry(id).or_default().kept = Some((keep, value));
                }
                self.scheduler.step_landed(&step, results);
            }
        }
        self.check();
        true
    }

    /// The device is lost with everything in flight. There is another one, where nothing is.
    fn lose(&mut self) {
        self.scheduler.lost(self.in_flight.drain(..).collect());
        self.check();
        let Limits { n_pages, max_seqs, block_rows, .. } = *self.scheduler.limits();
        self.device = Device::new(n_pages, self.device.places.len(), max_seqs);
        self.scheduler.placed(n_pages, block_rows);
        self.check();
    }

    fn check(&mut self) {
        // Who waits and was fed before has been preempted.
        let preempted = self.scheduler.waiting.values().filter(|s| s.n_fed > 0).map(|s| s.id).collect();
        let before = std::mem::replace(&mut self.preempted, preempted);
        self.n_preempted += self.preempted.iter().filter(|id| !before.contains(id)).count();
        let running = &self.scheduler.running;
        self.scheduler.pages.check(running.iter().map(|s| &s.pages[..]));
        let mut slots: Vec<usize> = running.iter().map(|s| s.slot).collect();
        slots.extend(&self.scheduler.free_slots);
        slots.sort();
        assert!(slots.iter().copied().eq(0..self.scheduler.limits.max_seqs), "each slot has one owner");
        for event in self.scheduler.events() {
            let outcome = self.outcomes.entry(event.request()).or_default();
            assert_eq!(outcome.end, None, "nothing follows the end: {event:?}");
            match event {
                Event::Token { token, .. } => outcome.tokens.push(token),
                Event::Logits { position, values, .. } => outcome.logits.push((position, values[0])),
                Event::PromptLogprobs { position, logprobs, .. } => {
                    outcome.scores.extend((position..).zip(logprobs));
                }
                Event::Done { finish_reason, .. } => outcome.end = Some(Some(finish_reason)),
                Event::Failed { .. } => outcome.end = Some(None),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs until nothing is left.
    fn drain(&mut self) {
        let mut n = 0;
        while self.record() || self.land() {
            n += 1;
            assert!(n < 1_000_000, "it never ends: {} running", self.scheduler.running.len());
        }
        assert!(self.scheduler.is_idle(), "nothing is left to do, and yet something waits");
        assert_eq!(self.scheduler.pages.n_available(), self.scheduler.limits.n_pages, "no page is lost");
        for (id, request) in &self.requests {
            let found = self.outcomes.get(id).unwrap_or_else(|| panic!("{id:?} has not ended"));
            let kv_tokens = self.scheduler.limits.n_pages * PAGE_SIZE;
            let mut expected = alone(request, self.scheduler.limits.ctx, kv_tokens);
            if found.end == Some(Some(FinishReason::Cancelled)) {
                assert!(self.cancelled.contains(id));
                // What came before it was cancelled is what would have come anyway.
                expected.tokens.truncate(found.tokens.len());
                expected.logits.truncate(found.logits.len());
                expected.scores.truncate(found.scores.len());
                expected.kept = expected.kept.filter(|_| found.kept.is_some());
                expected.end = found.end;
            }
            assert_eq!(found, &expected, "{id:?}: {request:?}");
        }
    }
}

fn prompt(rng: &mut Rng, n: usize) -> Vec<u32> {
    (0..n).map(|_| rng.below(VOCAB as usize) as u32).collect()
}

fn request(prompt: Vec<u32>, max_tokens: usize, seed: u64) -> Request {
    let sampling = Sampling { seed: Some(seed), ..Sampling::default() };
    Request { sampling, max_tokens: Some(max_tokens), ..Request::new(prompt) }
}

/// A request of any kind, whose prompt often begins as another one's text.
fn any(rng: &mut Rng, texts: &[(Vec<u32>, Range<usize>)], most: usize) -> Request {
    let mut ids = Vec::new();
    let mut generated = Vec::new();
    if let (false, false) = (texts.is_empty(), rng.chance(3)) {
        let (text, range) = &texts[rng.below(texts.len())];
        ids.extend(&text[..rng.within(1..text.len() + 1).min(most)]);
        if !rng.chance(4) && range.start < ids.len() {
            generated.push(range.start..range.end.min(ids.len()));
        }
    }
    let long = rng.chance(4);
    let n = rng.within(1..if long { most + 1 } else { 12 });
    ids.extend(prompt(rng, n));
    ids.truncate(most);
    let (max_tokens, seed) = (rng.within(1..100), rng.below(5) as u64);
    let mut request = Request { generated, ..request(ids, max_tokens, seed) };
    // Half of them generate until they are cancelled, so pages run out.
    request.stop_tokens = rng.chance(2).then(Vec::new);
    match rng.below(8) {
        0 if rng.chance(2) => {
            request.logits = Some(Logits::Kept { row: rng.below(3), softmax: rng.chance(2) })
        }
        0 => request.logits = Some(Logits::Last),
        1 => request.logits = Some(Logits::All),
        2 if request.prompt.len() > 1 => {
            request.prompt_logprobs = Some(rng.within(1..request.prompt.len()));
        }
        _ => {}
    }
    request
}

#[test]
fn every_schedule_gives_each_request_what_it_gives_alone() {
    let [n_steps, n_preempted, _] = schedules(0..2000, false);
    assert!(n_steps > 100_000 && n_preempted > 1_000, "{n_steps} steps, {n_preempted} preempted");
}

#[test]
fn every_request_survives_the_loss_of_the_device() {
    let [n_steps, _, n_lost] = schedules(10_000..12_000, true);
    assert!(n_steps > 100_000 && n_lost > 1_000, "{n_steps} steps, {n_lost} losses");
}

/// Runs random schedules, and checks what each request gives. Returns the numbers of steps, preemptions and losses.
fn schedules(seeds: Range<u64>, loses: bool) -> [usize; 3] {
    let (mut n_steps, mut n_preempted, mut n_lost) = (0, 0, 0);
    for seed in seeds {
        let mut rng = Rng(seed << 20);
        // A small cache for many that write on.
        let is_tight = rng.chance(2);
        let max_seqs = if is_tight { rng.within(3..8) } else { rng.within(1..6) };
        let limits = Limits {
            max_rows: max_seqs + rng.within(1..60),
            max_sampled: max_seqs.max(rng.within(1..9)),
            block_rows: rng.within(1..9),
            prefix_cache: !rng.chance(5),
            ctx: rng.within(20..200),
            ..limits(if is_tight { rng.within(3..8) } else { rng.within(2..24) }, max_seqs)
        };
        let most = (limits.ctx - 1).min(limits.n_pages * PAGE_SIZE / if is_tight { 3 } else { 1 });
        let n_places = if rng.chance(3) { rng.within(1..4) } else { 0 };
        let run_ahead = rng.within(1..3);
        let mut world = World::new(limits, n_places, run_ahead);
        let mut texts: Vec<(Vec<u32>, Range<usize>)> = Vec::new();
        let mut clips: Vec<ClipId> = Vec::new();
        for _ in 0..rng.within(10..120) {
            if loses && rng.chance(50) {
                world.lose();
                n_lost += 1;
            }
            match rng.below(10) {
                0 | 1 => {
                    let mut request = any(&mut rng, &texts, most);
                    if n_places > 0 {
                        if clips.is_empty() || rng.chance(3) {
                            if clips.len() == n_places {
                                world.scheduler.forget(clips.remove(0));
                            }
                            clips.push(world.scheduler.listen(&[1.0]).expect("a place"));
                        }
                        let clip = clips[rng.below(clips.len())];
                        request.speech = Some(SpeechRequest { clip, rules: None, alignment: false });
                    }
                    world.submit(request);
                }
                2 if !world.requests.is_empty() && rng.chance(3) => {
                    let ids: Vec<RequestId> = world.requests.keys().copied().collect();
                    world.cancel(ids[rng.below(ids.len())]);
                }
                3..=5 => drop(world.land()),
                _ => drop(world.record()),
            }
            // What has ended is what later prompts begin with.
            for (id, outcome) in world.outcomes.iter().filter(|(_, outcome)| outcome.end.is_some()) {
                let prompt = &world.requests[id].prompt;
                let text = [&prompt[..], &outcome.tokens].concat();
                if texts.len() < 8 && !texts.iter().any(|(known, _)| *known == text) {
                    texts.push((text.clone(), prompt.len()..text.len()));
                }
            }
        }
        clips.iter().for_each(|clip| world.scheduler.forget(*clip));
        world.drain();
        n_steps += world.n_steps;
        n_preempted += world.n_preempted;
    }
    [n_steps, n_preempted, n_lost]
}

#[test]
fn the_fake_runner_finds_a_page_that_is_used_twice() {
    let found = std::panic::catch_unwind(|| {
        let mut world = World::new(limits(8, 2), 0, 1);
        world.submit(request(vec![3; 20], 40, 1));
        world.submit(request(vec![4; 20], 40, 2));
        while world.n_steps < 3 {
            world.record();
            world.land();
        }
        // Both sequences write to one page now.
        world.device.slots[1].pages[1] = world.device.slots[0].pages[1];
        world.drain();
    });
    assert!(found.is_err());
}

#[test]
fn a_long_request_does_not_wait_for_a_stream_of_short_ones_nor_they_for_it() {
    let mut rng = Rng(1);
    for long_first in [false, true] {
        let mut world = World::new(Limits { ctx: 2000, ..limits(40, 4) }, 0, 2);
        let (mut long, mut shorts) = (None, Vec::new());
        let mut steps_of_short = 0;
        for i in 0..400 {
            if i == if long_first { 0 } else { 20 } {
                long = Some(world.submit(request(prompt(&mut rng, 600), 20, 3)));
            }
            let shorts_open = shorts.iter().filter(|id| !ended(&world, **id)).count();
            if shorts_open < 4 {
                shorts.push(world.submit(request(prompt(&mut rng, 5), 3, 4)));
            }
            if !world.record() {
                world.land();
            }
            let long_open = long.is_some_and(|id| !ended(&world, id));
            if long_open && shorts.iter().filter(|id| ended(&world, **id)).count() > 0 {
                steps_of_short += 1;
            }
        }
        assert!(ended(&world, long.expect("submitted")), "the long one has ended among short ones");
        assert!(steps_of_short > 0, "short ones ended before the long one");
        world.drain();
    }
}

fn ended(world: &World, id: RequestId) -> bool {
    world.outcomes.get(&id).is_some_and(|outcome| outcome.end.is_some())
}

#[test]
fn what_does_not_fit_is_refused_with_both_numbers_and_what_outgrows_the_cache_ends() {
    let mut world = World::new(limits(3, 2), 0, 2);
    let error = world.scheduler.submit(request(vec![1; 49], 5, 1)).expect_err("49 tokens, 48 positions");
    assert!(error.to_string().contains("49") && error.to_string().contains("48"), "{error}");
    for n in [48, 47, 10] {
        let endless = |seed| Request { stop_tokens: Some(vec![]), ..request(vec![1; n], 500, seed) };
        let request = (0..)
            .map(endless)
            .find(|request| alone(request, 200, 48).end == Some(Some(FinishReason::Length)));
        let id = world.submit(request.expect("one that draws no end"));
        world.drain();
        let found = &world.outcomes[&id];
        assert_eq!(found.end, Some(Some(FinishReason::Length)));
        assert_eq!(found.tokens.len(), 48 - n + 1, "the last token drawn needs no room");
    }
}

#[test]
fn the_queue_has_a_bound() {
    let mut world = World::new(Limits { max_waiting: 3, ..limits(8, 1) }, 0, 1);
    for seed in 0..3 {
        assert!(world.scheduler.has_room());
        world.submit(request(vec![1], 3, seed));
    }
    assert!(!world.scheduler.has_room());
    let error = world.scheduler.submit(request(vec![1], 3, 9)).expect_err("full");
    assert!(matches!(error, EngineError::Busy { waiting: 3 }), "{error}");
    world.record();
    assert!(world.scheduler.has_room(), "one of them runs");
    world.drain();
}

#[test]
fn twenty_thousand_waiting_requests_are_cancelled_one_by_one() {
    let mut world = World::new(limits(8, 2), 0, 2);
    let ids: Vec<RequestId> =
        (0..20_000).map(|i| world.scheduler.submit(request(vec![1; 9], 3, i)).expect("submit")).collect();
    ids.iter().rev().for_each(|id| world.scheduler.cancel(*id));
    assert!(world.scheduler.is_idle());
    assert_eq!(world.scheduler.events().len(), 20_000);
}

#[test]
fn prompts_that_begin_alike_are_computed_once() {
    let mut world = World::new(limits(40, 4), 0, 2);
    let prompt: Vec<u32> = (0..180).map(|i| i % 11 + 1).collect();
    for seed in 0..4 {
        world.submit(request(prompt.clone(), 4, seed));
    }
    let mut n_rows = 0;
    while world.record() || world.land() {
        if let Some(Work::Step(step)) = world.in_flight.back() {
            n_rows += step.n.n_prompt;
        }
    }
    assert!(n_rows < 2 * (180 + 4 * 16), "{n_rows} rows of prompts, each counted twice at most");
    world.drain();
}
