//! Budgets on a device that is only a clock: the scheduler's steps and clips, and an upload, cut by the meter as the
//! stepper cuts them. The device takes a time for each dispatch that nobody tells the meter: a fixed part and one that
//! grows, times the speed of the hour, times noise of a third; now and then it stalls.

use std::collections::VecDeque;

use crate::engine::build::Pace;
use crate::engine::scheduler::{ClipTable, Limits, Scheduler, Step, StepResults, Work};
use crate::engine::{ClipId, Request, Sampling, SpeechRequest};
use crate::gpu::{Load, MOST_IN_FLIGHT, Meter, Place};

const N_LAYERS: usize = 6;
const N_AUDIO_LAYERS: usize = 4;
const ENCODER_ROWS: usize = 1500;
/// Rows of a group that shares a read of the weights.
const GROUP: usize = 8;

struct Rng(u64);

impl Rng {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1u32 << 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }
}

/// The time of a kind of dispatch: fixed, and for each unit; and its pieces.
#[derive(Clone, Copy)]
struct Op {
    name: &'static str,
    fixed_ms: f64,
    unit_ms: f64,
}

/// A slow device, on which a layer takes longer than most budgets.
const EMBED: Op = Op { name: "embed", fixed_ms: 0.02, unit_ms: 0.001 };
const QKV: Op = Op { name: "qkv", fixed_ms: 0.05, unit_ms: 0.25 };
const ATTENTION: Op = Op { name: "attention", fixed_ms: 0.04, unit_ms: 0.0002 };
const MLP: Op = Op { name: "mlp", fixed_ms: 0.05, unit_ms: 0.9 };
const HEAD: Op = Op { name: "head", fixed_ms: 0.1, unit_ms: 0.15 };
const SAMPLE: Op = Op { name: "sample", fixed_ms: 0.3, unit_ms: 0.1 };
const AUDIO_NORM: Op = Op { name: "audio norm", fixed_ms: 0.8, unit_ms: 0.0 };
const AUDIO_ATTENTION: Op = Op { name: "audio attention", fixed_ms: 0.1, unit_ms: 0.4 };
const AUDIO_MLP: Op = Op { name: "audio mlp", fixed_ms: 0.1, unit_ms: 0.5 };
const QUANTIZE: Op = Op { name: "quantize", fixed_ms: 0.03, unit_ms: 1.5 / 1024.0 };
/// Milliseconds of the host per megabyte that it reads and converts.
const HOST_MS: f64 = 0.9;

/// A recorder: the meter, and what the device would take.
struct Tape {
    meter: Meter,
    rng: Rng,
    speed: f64,
    noise: f64,
    /// Of the slice.
    ms: f64,
    n_dispatches: usize,
}

impl Tape {
    fn dispatch(&mut self, op: Op, n_pieces: usize, units: f64) {
        // A kind is a name here: tensors of other shapes have other names.
        let key = op.name.bytes().fold(7, |key: u64, byte| key.wrapping_mul(31) + u64::from(byte));
        let n = self.meter.take(key, op.name, n_pieces, units).len();
        if n > 0 {
            let ms = op.fixed_ms + op.unit_ms * units * n as f64 / n_pieces as f64;
            self.ms += ms * self.speed * (1.0 + self.noise * (2.0 * self.rng.unit() - 1.0));
            self.n_dispatches += 1;
        }
    }

    /// A layer of a step, and what comes before the first and after the last.
    fn step(&mut self, step: &Step, layer: usize) {
        let n_rows = step.rows.len();
        let n_groups = n_rows.div_ceil(GROUP);
        if layer == 0 {
            self.dispatch(EMBED, 1, n_rows as f64);
        }
        self.dispatch(QKV, n_groups, n_groups as f64);
        let keys: f64 = step.rows.iter().map(|[_, pos]| f64::from(*pos) + 1.0).sum();
        self.dispatch(ATTENTION, n_rows, keys);
        self.dispatch(MLP, n_groups, n_groups as f64);
        if layer == N_LAYERS - 1 && !step.sampled.is_empty() {
            self.dispatch(HEAD, 64, 64.0);
            self.dispatch(SAMPLE, 1, step.sampled.len() as f64);
        }
    }

    fn clip(&mut self) {
        let n_groups = ENCODER_ROWS.div_ceil(GROUP);
        self.dispatch(AUDIO_NORM, 1, 1.0);
        self.dispatch(AUDIO_ATTENTION, n_groups, n_groups as f64);
        self.dispatch(AUDIO_MLP, n_groups, n_groups as f64);
    }
}

/// A slice in flight: what it completes, what it has, its time, and when it ends.
struct Slice {
    done: Option<Work>,
    load: Load,
    ms: f64,
    ends: f64,
}

/// An engine whose device is a clock, with company: an upload now and then.
struct World {
    tape: Tape,
    scheduler: Scheduler,
    recording: Option<(Work, Place)>,
    flight: VecDeque<Slice>,
    now: f64,
    /// When the device has done what it has.
    free_at: f64,
    n_tokens: usize,
    /// The clip that requests are about, and the clips that were encoded.
    clip: Option<ClipId>,
    n_clips: usize,
    /// An upload: its meter is another engine's.
    uploader: Tape,
    pace: Pace,
    n_bytes: usize,
    uploaded: Option<(Load, f64)>,
}

impl World {
    fn new(seed: u64, noise: f64) -> World {
        let limits = Limits {
            architecture: "fake",
            vocab_size: 100,
            ctx: 1000,
            n_pages: 400,
            max_seqs: 4,
            max_rows: 256,
            max_sampled: 8,
            max_waiting: usize::MAX,
            block_rows: 8,
            max_logprobs: 0,
            has_logits: false,
            kept_rows: 0,
            has_prompt_logprobs: false,
            has_alignment: false,
            prefix_cache: false,
        };
        let tape = |seed| Tape {
            meter: Meter::default(),
            rng: Rng(seed),
            speed: 1.0,
            noise,
            ms: 0.0,
            n_dispatches: 0,
        };
        World {
            tape: tape(seed),
            scheduler: Scheduler::new(limits, Some(ClipTable::new(2, [1, 1])), None, vec![0]),
            recording: None,
            flight: VecDeque::new(),
            now: 0.0,
            free_at: 0.0,
            n_tokens: 0,
            clip: None,
            n_clips: 0,
            uploader: tape(seed ^ 77),
            pace: Pace::default(),
            n_bytes: 0,
            uploaded: None,
        }
    }

    /// Another request: short and long prompts, some about another clip.
    fn submit(&mut self) {
        let rng = &mut self.tape.rng;
        let most = if rng.below(3) == 0 { 700 } else { 40 };
        let n_prompt = 1 + rng.below(most);
        let request = Request {
            max_tokens: Some(1 + rng.below(120)),
            sampling: Sampling { seed: Some(1), ..Sampling::default() },
            ..Request::new(vec![3; n_prompt])
        };
        let wants_clip = self.clip.is_none() || rng.below(6) == 0;
        if let Some(clip) = wants_clip.then(|| self.scheduler.listen(&[0.0]).ok()).flatten() {
            let before = self.clip.replace(clip);
            before.into_iter().for_each(|clip| self.scheduler.forget(clip));
        }
        let speech = self.clip.map(|clip| SpeechRequest { clip, rules: None, alignment: false });
        self.scheduler.submit(Request { speech, ..request }).expect("it fits");
    }

    fn land(&mut self, now: f64) {
        while self.flight.front().is_some_and(|slice| slice.ends <= now) {
            let Some(slice) = self.flight.pop_front() else { return };
            self.tape.meter.landed(&slice.load, slice.ms);
            match slice.done {
                None => {}
                Some(Work::Clip(clip)) => {
                    self.n_clips += 1;
                    self.scheduler.clip_landed(clip.id);
                }
                Some(Work::Step(step)) => {
                    self.n_tokens += step.draws.len();
                    let tokens = vec![Some(5); step.draws.len()];
                    self.scheduler.step_landed(&step, StepResults { tokens, ..StepResults::default() });
                }
            }
        }
        self.scheduler.events();
    }

    /// As `Stepper::record`. Returns the device's time for the frame.
    fn frame(&mut self, now: f64, budget_ms: f64) -> f64 {
        self.land(now);
        self.tape.meter.frame(budget_ms);
        let mut frame_ms = 0.0;
        while self.flight.len() < MOST_IN_FLIGHT && !self.tape.meter.is_full() {
            let (work, mut place) = match self.recording.take() {
                Some(recording) => recording,
                None => match self.scheduler.next() {
                    Some(work) => (work, Place::default()),
                    None => break,
                },
            };
            let n_parts = if matches!(work, Work::Clip(_)) { N_AUDIO_LAYERS } else { N_LAYERS };
            let before = place;
            let walk = |tape: &mut Tape, part: usize| {
                match &work {
                    Work::Step(step) => tape.step(step, part),
                    Work::Clip(_) => tape.clip(),
                }
                Ok::<_, ()>(())
            };
            let ended = place.go_on(n_parts, false, &mut self.tape, |tape| &mut tape.meter, walk);
            let is_done = ended.expect("nothing fails").is_some();
            if !is_done && place == before {
                self.recording = Some((work, place));
                break;
            }
            let done = match is_done {
                true => Some(work),
                false => {
                    self.recording = Some((work, place));
                    None
                }
            };
            let ms = std::mem::take(&mut self.tape.ms);
            frame_ms += ms;
            self.free_at = self.free_at.max(now) + ms;
            let load = self.tape.meter.end_slice();
            self.flight.push_back(Slice { done, load, ms, ends: self.free_at });
        }
        frame_ms
    }

    /// A frame of an upload that quantises, as `Uploads::record`. Returns the longer of the host's time and the device's.
    fn upload(&mut self, budget_ms: f64) -> f64 {
        if let Some((load, ms)) = self.uploaded.take() {
            self.uploader.meter.landed(&load, ms);
        }
        self.uploader.meter.frame(budget_ms);
        let left_ms = self.uploader.meter.left_ms();
        let n_bytes = self.pace.n_bytes(left_ms).min(2 << 20);
        self.uploader.meter.begin_part(0, true);
        self.uploader.dispatch(QUANTIZE, 1, n_bytes as f64 / 1024.0);
        self.uploader.meter.end_part();
        let noise = 1.0 + 0.2 * (2.0 * self.uploader.rng.unit() - 1.0);
        let host_ms = HOST_MS * noise * n_bytes as f64 / f64::from(1 << 20);
        let counted_ms = self.uploader.meter.spent_ms();
        self.pace.learn(host_ms.max(counted_ms), n_bytes);
        self.n_bytes += n_bytes;
        let ms = std::mem::take(&mut self.uploader.ms);
        self.uploaded = Some((self.uploader.meter.end_slice(), ms));
        ms.max(host_ms)
    }
}

/// The shares of a budget that frames took, in order.
struct Shares(Vec<f64>);

impl Shares {
    fn quantile(&self, q: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * q).round() as usize]
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }
}

/// Runs `n` frames of `frame_ms`, with a speed and a chance of stalls for each, and returns what they took, as shares of
/// the budget.
fn run(
    world: &mut World,
    n: usize,
    [frame_ms, budget_ms]: [f64; 2],
    speed: impl Fn(usize) -> f64,
    stalls: f64,
) -> Shares {
    let mut shares = Vec::with_capacity(n);
    for i in 0..n {
        world.tape.speed = speed(i);
        if world.tape.rng.below(20) == 0 && world.scheduler.has_room() && world.n_open() < 8 {
            world.submit();
        }
        if world.tape.rng.unit() < stalls {
            // Everything stands still for a while, the dispatches of this frame with it.
            world.tape.ms += 5.0 + 40.0 * world.tape.rng.unit();
        }
        world.now += frame_ms;
        let ms = world.frame(world.now, budget_ms);
        world.tape.ms = 0.0;
        if ms > 0.0 {
            shares.push(ms / budget_ms);
        }
    }
    shares.sort_by(f64::total_cmp);
    Shares(shares)
}

impl World {
    fn n_open(&self) -> usize {
        self.scheduler.n_open()
    }
}

#[test]
fn frames_keep_their_budget() {
    for budget_ms in [2.0, 4.0, 8.0, 16.0] {
        let mut world = World::new(budget_ms as u64, 0.33);
        // The first frames measure each kind of dispatch alone.
        run(&mut world, 400, [budget_ms + 4.0, budget_ms], |_| 1.0, 0.0);
        let shares = run(&mut world, 6000, [budget_ms + 4.0, budget_ms], |_| 1.0, 0.003);
        let [median, p99] = [0.5, 0.99].map(|q| shares.quantile(q));
        let what = format!("{budget_ms} ms: median {median:.2}, p99 {p99:.2}, mean {:.2}", shares.mean());
        assert!(p99 <= 1.2, "{what}");
        // They use it, too.
        assert!(shares.mean() > 0.6, "{what}");
        assert!(world.n_tokens > 100 && world.n_clips > 1, "{what}: {} tokens", world.n_tokens);
    }
}

#[test]
fn uploads_keep_their_budget() {
    for budget_ms in [2.0, 4.0, 8.0, 16.0] {
        let mut world = World::new(5, 0.33);
        let mut shares: Vec<f64> = (0..2000).map(|_| world.upload(budget_ms) / budget_ms).collect();
        shares.sort_by(f64::total_cmp);
        let shares = Shares(shares);
        let p99 = shares.quantile(0.99);
        assert!(p99 <= 1.2, "{budget_ms} ms: p99 {p99:.2}, mean {:.2}", shares.mean());
        assert!(world.n_bytes > 1000 * (256 << 10), "{budget_ms} ms: {} bytes", world.n_bytes);
    }
}

#[test]
fn hours_of_frames_do_not_drift() {
    // Six hours; with checks for overflow and the like, a tenth of the frames of each minute.
    let (n, every) = if cfg!(debug_assertions) { (130_000, 10.0) } else { (1_300_000, 1.0) };
    let mut world = World::new(9, 0.33);
    run(&mut world, 400, [16.6, 4.0], |_| 1.0, 0.0);
    // The device warms up and cools down, and for some minutes something else takes half of it.
    let speed = |i: usize| {
        let minutes = i as f64 * every / 3600.0;
        let busy = if minutes % 60.0 > 50.0 { 2.0 } else { 1.0 };
        busy * (1.0 + 0.3 * (minutes / 20.0).sin())
    };
    let n_hour = n / 6;
    let mut means = Vec::new();
    for hour in 0..6 {
        let shares = run(&mut world, n_hour, [16.6, 4.0], |i| speed(hour * n_hour + i), 0.002);
        let p99 = shares.quantile(0.99);
        assert!(p99 <= 1.2, "hour {hour}: p99 {p99:.2}, mean {:.2}", shares.mean());
        means.push(shares.mean());
    }
    assert!(
        (means[5] / means[0] - 1.0).abs() < 0.1,
        "the share of the budget that is used drifts: {means:?}"
    );
}

#[test]
fn a_device_that_is_too_slow_is_named_and_goes_on() {
    let mut world = World::new(3, 0.1);
    let budget_ms = 0.5;
    run(&mut world, 3000, [16.6, budget_ms], |_| 1.0, 0.0);
    let too_slow = world.tape.meter.take_too_slow().expect("`audio norm` takes 0.8 ms and `mlp` 0.95");
    assert!(too_slow.1 > budget_ms && too_slow.2 == budget_ms, "{too_slow:?}");
    let longest = world.tape.meter.longest_piece_ms().expect("measured");
    assert!((0.7..1.2).contains(&longest), "{longest}");
    assert!(world.n_tokens > 4, "{} tokens", world.n_tokens);
}
