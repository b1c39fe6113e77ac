//! The device is lost at random moments: while a model loads, in prompts and between tokens, in clips, in tasks and in
//! batches of texts. Our own is opened again, a host hands in its next one, and everything becomes what it becomes when
//! nothing is lost.
//!
//! `WGINFER_LOSSES` is the number of seeds that `nothing_is_lost_with_the_device` runs, 20 by default.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::Rng;
use common::requests::{
    Outcome, all_logits, f32_options, folder, host, load, prompt, scores, seeded, take, write,
};
use wginfer::audio::AudioReader;
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{
    DeviceEvent, Encoded, EncoderOptions, Engine, EngineError, EngineOptions, Event, Health, Loading, Output,
    Request, RequestId, Sampling, TextEncoder,
};
use wginfer::gpu::{Gpu, GpuError, GpuOptions};
use wginfer::tasks::transcribe::{TranscribeOptions, Transcriber};
use wginfer::tasks::{
    Chat, ClassifyInput, ClassifyTask, DocumentOptions, Engines, Events, Label, SummarizeTask, Task,
};
use wginfer::wgpu;

const SEEDS_ENV: &str = "WGINFER_LOSSES";

/// Time after which everything must have ended: kernels compile meanwhile.
const ENOUGH: Duration = Duration::from_secs(180);

// --- a device that is lost ---

/// A device of our own, or of a host with its queue.
struct Rig {
    gpu: Gpu,
    queue: Option<wgpu::Queue>,
    begin: Instant,
    n_calls: usize,
    /// The calls at which the device is destroyed.
    moments: Vec<usize>,
    /// Frames since the host noticed that its device is lost.
    n_frames_lost: usize,
    n_lost: usize,
    rng: Rng,
}

/// What runs on a rig: an engine, an encoder, or one that is being loaded.
trait Guest {
    type Event;
    fn health(&self) -> Health;
    fn replace(&mut self, gpu: &Gpu);
    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError>;
    fn pump(&mut self) -> Result<Vec<Self::Event>, EngineError>;
    fn events(&mut self) -> Result<Vec<Self::Event>, EngineError>;
}

impl Guest for Engine {
    type Event = Event;
    fn health(&self) -> Health {
        Engine::health(self)
    }
    fn replace(&mut self, gpu: &Gpu) {
        self.replace_device(gpu);
    }
    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        Engine::advance(self, budget)
    }
    fn pump(&mut self) -> Result<Vec<Event>, EngineError> {
        Engine::pump(self)
    }
    fn events(&mut self) -> Result<Vec<Event>, EngineError> {
        Engine::events(self)
    }
}

impl Guest for TextEncoder {
    type Event = Encoded;
    fn health(&self) -> Health {
        TextEncoder::health(self)
    }
    fn replace(&mut self, gpu: &Gpu) {
        self.replace_device(gpu);
    }
    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        TextEncoder::advance(self, budget)
    }
    fn pump(&mut self) -> Result<Vec<Encoded>, EngineError> {
        TextEncoder::pump(self)
    }
    fn events(&mut self) -> Result<Vec<Encoded>, EngineError> {
        TextEncoder::events(self)
    }
}

/// A loading engine on a device of our own is advanced, too, and submitted here.
struct Begun<'a>(&'a mut Loading<Engine>, &'a Gpu);

impl Guest for Begun<'_> {
    type Event = ();
    fn health(&self) -> Health {
        self.0.health()
    }
    fn replace(&mut self, gpu: &Gpu) {
        self.0.replace_device(gpu);
    }
    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.0.advance(budget)
    }
    fn pump(&mut self) -> Result<Vec<()>, EngineError> {
        let buffers = self.0.advance(Duration::from_millis(1))?;
        self.1.current().submit(buffers)?;
        std::thread::sleep(Duration::from_micros(500));
        Ok(Vec::new())
    }
    fn events(&mut self) -> Result<Vec<()>, EngineError> {
        Ok(Vec::new())
    }
}

impl Rig {
    fn new(is_owned: bool, seed: u64, moments: Vec<usize>) -> Option<Rig> {
        let own = common::exact()?;
        let (gpu, queue) = match is_owned {
            true => (own, None),
            false => {
                let (gpu, queue) = host();
                (gpu, Some(queue))
            }
        };
        Some(Rig::of(gpu, queue, seed, moments))
    }

    fn of(gpu: Gpu, queue: Option<wgpu::Queue>, seed: u64, moments: Vec<usize>) -> Rig {
        let (begin, rng) = (Instant::now(), Rng::new(seed));
        Rig { gpu, queue, begin, n_calls: 0, moments, n_frames_lost: 0, n_lost: 0, rng }
    }

    fn lose(&mut self) {
        self.gpu.current().device().destroy();
        self.n_lost += 1;
    }

    /// A frame, or a call that waits.
    fn turn<G: Guest>(&mut self, guest: &mut G) -> Vec<G::Event> {
        self.n_calls += 1;
        assert!(self.begin.elapsed() < ENOUGH, "it never ends: {:?}", guest.health());
        let is_now = self.moments.contains(&self.n_calls);
        let Some(queue) = self.queue.clone() else {
            if is_now {
                self.lose();
            }
            return guest.pump().expect("it survives");
        };
        // Before the recording, between it and its submission, or after that.
        let place = self.rng.below(3);
        let lose = |rig: &mut Rig, at| {
            if is_now && place == at {
                rig.lose();
            }
        };
        lose(self, 0);
        let buffers = guest.advance(Duration::from_millis(3)).expect("it survives");
        lose(self, 1);
        queue.submit(buffers);
        lose(self, 2);
        let events = guest.events().expect("it survives");
        if matches!(guest.health(), Health::Lost { .. }) {
            self.n_frames_lost += 1;
            // Some frames without a device.
            if self.n_frames_lost == 3 {
                let (gpu, queue) = host();
                guest.replace(&gpu);
                (self.gpu, self.queue) = (gpu, Some(queue));
            }
        } else {
            self.n_frames_lost = 0;
        }
        std::thread::sleep(Duration::from_micros(200));
        events
    }

    /// Loads an engine, slice by slice.
    fn load(&mut self, files: ModelFiles, options: EngineOptions) -> Engine {
        let mut loading = Engine::loading(&self.gpu, files, options).expect("it is planned");
        let gpu = self.gpu.clone();
        while !loading.is_done() {
            self.turn(&mut Begun(&mut loading, &gpu));
        }
        loading.finish().expect("it is loaded")
    }

    fn drive<T: Task>(&mut self, engine: &mut Engine, task: &mut T) {
        while !task.is_done() {
            task.advance(&mut Engines::from(&mut *engine));
            let mut events: Events = self.turn(engine).into();
            task.observe(&mut events);
            assert!(events.language.is_empty(), "nobody else has asked");
        }
    }
}

// --- what runs ---

/// Everything that must be the same whether a device is lost or not.
#[derive(Debug, PartialEq)]
enum Result_ {
    Streams(Vec<Outcome>),
    Text(String),
    Vectors(Vec<Vec<f32>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scene {
    Streams,
    Loading,
    Clip,
    Tasks,
    Texts,
}

const SCENES: [Scene; 5] = [Scene::Streams, Scene::Loading, Scene::Clip, Scene::Tasks, Scene::Texts];

/// Requests of every kind, more than run at once.
fn requests() -> Vec<Request> {
    let penalised = Sampling { presence_penalty: 0.7, frequency_penalty: 0.3, ..seeded(5) };
    let biased = Sampling { logit_bias: vec![(7, 3.0), (9, -5.0)], temperature: 1.3, ..seeded(6) };
    vec![
        write(&prompt(1, 3), 20, seeded(1)),
        write(&prompt(2, 90), 9, seeded(2)),
        all_logits(&prompt(3, 50)),
        write(&prompt(4, 40), 16, penalised),
        Request { logprobs: Some(3), ..write(&prompt(5, 7), 12, seeded(3)) },
        scores(&prompt(6, 100), 5),
        write(&prompt(2, 90), 12, biased),
        write(&prompt(1, 3), 20, Sampling::greedy()),
    ]
}

fn options() -> EngineOptions {
    EngineOptions { max_seqs: 3, max_rows: 24, max_logprobs: 3, prompt_logprobs: 8, ..f32_options() }
}

fn streams(rig: &mut Rig, engine: &mut Engine) -> Result_ {
    let ids: Vec<RequestId> = requests().into_iter().map(|r| engine.submit(r).expect("submit")).collect();
    let mut outcomes = HashMap::new();
    while !engine.is_idle() {
        rig.turn(engine).into_iter().for_each(|event| take(&mut outcomes, event));
    }
    let outcome = |id| {
        let mut outcome: Outcome = outcomes.remove(id).unwrap_or_default();
        outcome.usage.cached_tokens = 0; // what the cache holds depends on what was before
        outcome
    };
    Result_::Streams(ids.iter().map(outcome).collect())
}

fn whisper() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words")
}

const STORY: &str = "Mia had a red ball that she loved very much. One sunny day, Mia lost her red ball in the park. \
                     Mia felt sad. Her friend Tom came to help. Then Tom found the ball under a bench. Mia jumped for \
                     joy.";

fn tasks(rig: &mut Rig, engine: &mut Engine) -> Result_ {
    let mut found = String::new();
    let options = DocumentOptions { piece_tokens: Some(80), max_tokens: Some(20), ..Default::default() };
    let mut summary =
        SummarizeTask::new(engine, &[STORY, STORY].join("\n\n"), None, &options).expect("a task");
    rig.drive(engine, &mut summary);
    found += &summary.finish().expect("a summary").summary;
    let labels = ["happy", "sad"].map(Label::parse);
    let inputs = [ClassifyInput::Text(STORY), ClassifyInput::Text("Olga felt afraid.")];
    let mut classify = ClassifyTask::new(engine, &inputs, &labels).expect("a task");
    rig.drive(engine, &mut classify);
    for one in classify.finish().expect("labels") {
        let labels = one.result.expect("a good input").labels;
        found += &format!(
            "{} {:?}",
            one.index,
            labels.iter().map(|l| l.probability.to_bits()).collect::<Vec<_>>()
        );
    }
    let mut chat = Chat::new(engine.tokenizer().expect("a tokenizer"), seeded(3)).expect("a chat");
    chat.max_tokens = Some(12);
    for says in ["Question: Who lost the ball?", "Question: Who found it?"] {
        chat.say(says);
        rig.drive(engine, &mut chat);
        found += &chat.finish().expect("a reply").text;
    }
    Result_::Text(found)
}

fn texts(rig: &mut Rig, encoder: &mut TextEncoder) -> Result_ {
    let texts = (0..40).map(|i| prompt(i, 3 + (i as usize * 7) % 29).iter().map(|t| t % 100).collect());
    let outputs = [Output::Embedding, Output::Logits];
    let ids: Vec<_> = texts
        .enumerate()
        .map(|(i, text)| encoder.submit(text, outputs[i / 7 % 2]).expect("submit"))
        .collect();
    let mut found = HashMap::new();
    while !encoder.is_idle() {
        for one in rig.turn(encoder) {
            let before = found.insert(one.id, one.values.expect("values"));
            assert!(before.is_none(), "one result for each text");
        }
    }
    Result_::Vectors(ids.iter().map(|id| found.remove(id).expect("a result")).collect())
}

fn play(scene: Scene, rig: &mut Rig) -> Result_ {
    match scene {
        // Losses count from here on.
        Scene::Streams => {
            let mut engine = load(&rig.gpu, "llama", options());
            streams(rig, &mut engine)
        }
        Scene::Loading => {
            let files = ModelFiles::open(&folder("llama")).expect("a model");
            let mut engine = rig.load(files, EngineOptions { quantize: Some(Dtype::Q8_0), ..options() });
            streams(rig, &mut engine)
        }
        Scene::Clip => {
            let files = ModelFiles::open(&whisper()).expect("a model");
            let options = TranscribeOptions { word_timestamps: true, ..TranscribeOptions::default() };
            let transcriber = Transcriber::new(&files, options).expect("a speech model");
            let options = EngineOptions { kv_dtype: Dtype::F32, ..EngineOptions::default() };
            let options = transcriber.engine_options(options);
            let mut engine = Engine::load(&rig.gpu, files, options, &mut |_| {}).expect("an engine");
            let audio = AudioReader::open(&whisper().join("en.flac")).expect("a recording");
            let mut task = transcriber.begin(&engine, audio).expect("a task");
            rig.drive(&mut engine, &mut task);
            let transcript = task.finish().expect("a transcript");
            assert!(!transcript.segments.is_empty());
            Result_::Text(format!("{:?}", transcript.segments))
        }
        Scene::Tasks => {
            let options = EngineOptions { prompt_logprobs: 16, ..EngineOptions::default() };
            let files = ModelFiles::demo().expect("a model");
            let mut engine = Engine::load(&rig.gpu, files, options, &mut |_| {}).expect("an engine");
            tasks(rig, &mut engine)
        }
        Scene::Texts => {
            let files = ModelFiles::open(&folder("bert-classifier")).expect("a model");
            let options = EncoderOptions { max_seqs: 5, ctx: Some(32), max_rows: 64, ..Default::default() };
            let mut encoder = TextEncoder::load(&rig.gpu, files, options, &mut |_| {}).expect("an encoder");
            texts(rig, &mut encoder)
        }
    }
}

#[test]
fn nothing_is_lost_with_the_device() {
    let n_seeds = std::env::var(SEEDS_ENV).map_or(20, |n| n.parse().expect("a number of seeds"));
    let mut undisturbed: HashMap<(Scene, bool), (Result_, usize)> = HashMap::new();
    let mut n_lost = 0;
    for seed in 0..n_seeds {
        let scene = SCENES[seed as usize % SCENES.len()];
        let is_owned = (seed / SCENES.len() as u64).is_multiple_of(2);
        let (expected, n_calls) = match undisturbed.entry((scene, is_owned)) {
            std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::hash_map::Entry::Vacant(none) => {
                let Some(mut rig) = Rig::new(is_owned, 0, Vec::new()) else { return };
                let result = play(scene, &mut rig);
                none.insert((result, rig.n_calls))
            }
        };
        let mut rng = Rng::new(1000 + seed);
        let moments = (0..1 + rng.below(2)).map(|_| 1 + rng.below(*n_calls)).collect::<Vec<_>>();
        let Some(mut rig) = Rig::new(is_owned, seed, moments.clone()) else { return };
        let begin = Instant::now();
        let found = play(scene, &mut rig);
        assert!(
            found == *expected,
            "seed {seed}: {scene:?} on our own: {is_owned}, lost at {moments:?} of {n_calls}: {found:?}\nexpected {expected:?}"
        );
        n_lost += rig.n_lost;
        if n_seeds > 20 {
            let took = begin.elapsed();
            common::say(&format!(
                "seed {seed}: {scene:?}, own {is_owned}, {moments:?} of {n_calls}: {took:?}"
            ));
        }
    }
    assert!(n_lost >= n_seeds as usize * 3 / 4, "{n_lost} losses");
}

#[test]
fn a_device_can_be_lost_in_the_middle_of_a_call() {
    let Some(mut rig) = Rig::new(true, 0, Vec::new()) else { return };
    let begin = Instant::now();
    let expected = play(Scene::Streams, &mut rig);
    let most_us = begin.elapsed().as_micros() as usize;
    for seed in 0..6 {
        let Some(mut rig) = Rig::new(true, seed, Vec::new()) else { return };
        let (gpu, delay) = (rig.gpu.clone(), Rng::new(seed).below(most_us));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(delay as u64));
            gpu.device().destroy();
        });
        let found = play(Scene::Streams, &mut rig);
        killer.join().expect("it ends");
        assert!(found == expected, "after {delay} us: {found:?}");
    }
}

// --- a device of our own ---

fn one_request(engine: &mut Engine, n: usize) -> RequestId {
    engine.submit(write(&prompt(9, 20), n, seeded(4))).expect("submit")
}

/// Runs to the end. Calls `on` with each token.
fn tokens(engine: &mut Engine, mut on: impl FnMut(&Engine, usize)) -> Result<Vec<u32>, String> {
    let mut found = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < ENOUGH {
        if engine.is_idle() {
            return Ok(found);
        }
        for event in engine.pump().expect("the events come first") {
            match event {
                Event::Token { token, .. } => {
                    found.push(token);
                    on(engine, found.len());
                }
                Event::Failed { error, .. } => return Err(error.to_string()),
                _ => {}
            }
        }
    }
    panic!("it never ends: {:?}", engine.health());
}

fn undisturbed(n: usize) -> Option<Vec<u32>> {
    let mut engine = load(&common::exact()?, "llama", f32_options());
    one_request(&mut engine, n);
    Some(tokens(&mut engine, |_, _| {}).expect("tokens"))
}

#[test]
fn losses_with_tokens_in_between_are_survived_and_leave_nothing_behind() {
    let (Some(gpu), Some(expected)) = (common::exact(), undisturbed(8)) else { return };
    let mut engine = load(&gpu, "llama", f32_options());
    let before = gpu.counts().live_bytes;
    let devices = std::cell::RefCell::new(vec![gpu]);
    one_request(&mut engine, 8);
    let found = tokens(&mut engine, |engine, n| {
        if n < 7 {
            let gpu = engine.gpu().clone();
            gpu.device().destroy();
            devices.borrow_mut().push(gpu);
        }
    });
    assert_eq!(found.expect("tokens"), expected);
    let devices = devices.into_inner();
    let live = |gpu: &Gpu| gpu.counts().live_bytes;
    // A device has a small buffer of its own.
    assert!(devices.iter().all(|gpu| live(gpu) < 1000), "{:?}", devices.iter().map(live).collect::<Vec<_>>());
    assert_eq!(live(engine.gpu()), before, "what was there before, and no more");
    assert_eq!(engine.health(), Health::Well);
    let events = engine.device_events();
    let n = |lost: bool| events.iter().filter(|e| matches!(e, DeviceEvent::Lost { .. }) == lost).count();
    assert!(n(true) >= 6 && n(false) == n(true), "{events:?}");
    for event in events {
        match event {
            DeviceEvent::Recovered { adapter, instead_of } => {
                assert_eq!((adapter, instead_of), (engine.gpu().info().name.clone(), None));
            }
            DeviceEvent::Lost { message } => assert!(!message.is_empty()),
            other => panic!("{other:?}"),
        }
    }
    drop(engine);
    assert!(live(&devices[0].current()) < 1000);
}

#[test]
fn a_device_that_is_lost_by_all_that_it_does_is_given_up() {
    let Some(gpu) = common::exact() else { return };
    let mut engine = load(&gpu, "llama", f32_options());
    let ids = [one_request(&mut engine, 9), one_request(&mut engine, 9)];
    let mut failed = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < ENOUGH {
        engine.gpu().device().destroy();
        for event in engine.pump().expect("the events come first") {
            let Event::Failed { id, error } = event else { panic!("{event:?}") };
            assert!(error.to_string().contains("times in a row"), "{error}");
            assert!(matches!(error, EngineError::Gpu(GpuError::Lost { .. })));
            failed.push(id);
        }
        if !failed.is_empty() {
            break;
        }
    }
    assert_eq!(failed, ids);
    assert!(engine.is_idle() && matches!(engine.health(), Health::Broken { .. }));
    assert!(matches!(engine.device_events().last(), Some(DeviceEvent::Broken { .. })));
    engine.submit(write(&[1], 3, seeded(1))).expect_err("it is given up");
    engine.pump().expect_err("it is given up");
}

#[test]
fn a_load_goes_on_when_its_device_is_lost() {
    let (Some(gpu), Some(expected)) = (common::exact(), undisturbed(8)) else { return };
    for when in [0, 1] {
        let lost = AtomicUsize::new(0);
        let files = ModelFiles::open(&folder("llama")).expect("a model");
        let mut engine = Engine::load(&gpu.reopen().expect("a device"), files, f32_options(), &mut |_| {
            if lost.fetch_add(1, Ordering::Relaxed) == when {
                gpu.current().device().destroy();
            }
        })
        .expect("an engine");
        assert!(lost.load(Ordering::Relaxed) > when);
        one_request(&mut engine, 8);
        assert_eq!(tokens(&mut engine, |_, _| {}), Ok(expected.clone()));
    }
    // A device that was lost before is opened again.
    gpu.current().device().destroy();
    let mut engine = load(&gpu, "llama", f32_options());
    one_request(&mut engine, 8);
    assert_eq!(tokens(&mut engine, |_, _| {}), Ok(expected));
}

#[test]
fn engines_on_one_model_share_it_again() {
    let Some(gpu) = common::exact() else { return };
    let mut first = load(&gpu, "qwen3", f32_options());
    let mut second = Engine::new(&gpu, first.model(), f32_options()).expect("another engine");
    let before = gpu.counts().live_bytes;
    let mut expected = Vec::new();
    for engine in [&mut first, &mut second] {
        one_request(engine, 8);
        expected.push(tokens(engine, |_, _| {}).expect("tokens"));
    }
    for is_together in [true, false] {
        let lost = first.gpu().clone();
        lost.device().destroy();
        one_request(&mut second, 8);
        if is_together {
            one_request(&mut first, 8);
            let mut found = [Vec::new(), Vec::new()];
            while !(first.is_idle() && second.is_idle()) {
                for (engine, found) in [&mut first, &mut second].into_iter().zip(&mut found) {
                    let events = engine.pump().expect("it survives").into_iter();
                    found.extend(events.filter_map(|event| match event {
                        Event::Token { token, .. } => Some(token),
                        _ => None,
                    }));
                }
            }
            assert_eq!(found.as_slice(), expected);
        } else {
            // One of them is not driven meanwhile, and comes later.
            assert_eq!(tokens(&mut second, |_, _| {}).as_ref(), Ok(&expected[1]));
            one_request(&mut first, 8);
            assert_eq!(tokens(&mut first, |_, _| {}).as_ref(), Ok(&expected[0]));
        }
        let counts = first.gpu().counts();
        assert_eq!(
            (counts, counts.live_bytes),
            (second.gpu().counts(), before),
            "the weights are there once"
        );
        assert!(lost.counts().live_bytes < 1000);
    }
}

#[test]
fn a_model_that_does_not_fit_beside_another_is_an_error_of_its_own() {
    let Some(expected) = undisturbed(8) else { return };
    let options = GpuOptions { f32_products: true, free_bytes: Some(20_000_000), ..GpuOptions::default() };
    let Some(gpu) = common::open(&options) else { return };
    let mut engine = load(&gpu, "llama", f32_options());
    one_request(&mut engine, 8);
    let found = tokens(&mut engine, |engine, _| {
        let options = EngineOptions { max_seqs: 500, ctx: Some(512), ..f32_options() };
        let files = ModelFiles::open(&folder("llama")).expect("a model");
        let error = Engine::load(engine.gpu(), files, options, &mut |_| {}).expect_err("it does not fit");
        assert!(matches!(error, EngineError::Memory { .. }), "{error}");
        assert_eq!(engine.health(), Health::Well);
    });
    assert_eq!(found, Ok(expected));
}

// --- an adapter that is gone ---

fn open_with(stand_in: fn(wgpu::AdapterInfo) -> Option<wgpu::AdapterInfo>) -> Option<Gpu> {
    common::open(&GpuOptions { f32_products: true, stand_in: Some(stand_in), ..GpuOptions::default() })
}

#[test]
fn an_adapter_that_is_gone_for_a_while_is_waited_for() {
    static IS_GONE: AtomicBool = AtomicBool::new(false);
    let (Some(gpu), Some(expected)) =
        (open_with(|info| (!IS_GONE.load(Ordering::SeqCst)).then_some(info)), undisturbed(8))
    else {
        return;
    };
    let mut engine = load(&gpu, "llama", f32_options());
    one_request(&mut engine, 8);
    IS_GONE.store(true, Ordering::SeqCst);
    gpu.device().destroy();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(700) {
        let now = Instant::now();
        assert!(engine.advance(Duration::from_millis(5)).expect("it waits").is_empty());
        assert!(engine.pump().expect("it waits").is_empty());
        assert!(now.elapsed() < Duration::from_millis(300), "it returns: {:?}", now.elapsed());
        assert!(engine.health() != Health::Well && !engine.is_idle());
    }
    let cancelled = one_request(&mut engine, 8);
    engine.cancel(cancelled);
    assert!(matches!(&engine.events().expect("one")[..], [Event::Done { id, .. }] if *id == cancelled));
    IS_GONE.store(false, Ordering::SeqCst);
    assert_eq!(tokens(&mut engine, |_, _| {}), Ok(expected));
    assert_eq!(engine.device_events().len(), 2);

    // Not for ever.
    let options = EngineOptions { recovery: Some(Duration::from_millis(400)), ..f32_options() };
    let mut engine = load(&gpu, "llama", options);
    one_request(&mut engine, 8);
    IS_GONE.store(true, Ordering::SeqCst);
    engine.gpu().device().destroy();
    let begin = Instant::now();
    let error = tokens(&mut engine, |_, _| {}).expect_err("no adapter");
    assert!(error.contains("no GPU adapter found") && error.contains("lost"), "{error}");
    assert!(begin.elapsed() > Duration::from_millis(400), "{:?}", begin.elapsed());
    assert!(matches!(engine.health(), Health::Broken { .. }));
}

#[test]
fn another_adapter_takes_the_place_of_one_that_is_gone() {
    static IS_GONE: AtomicBool = AtomicBool::new(false);
    let stand_in = |info: wgpu::AdapterInfo| match IS_GONE.load(Ordering::SeqCst) {
        false => Some(info),
        true => Some(wgpu::AdapterInfo { name: "another card".into(), ..info }),
    };
    let (Some(gpu), Some(expected)) = (open_with(stand_in), undisturbed(8)) else { return };
    let mut engine = load(&gpu, "llama", f32_options());
    one_request(&mut engine, 8);
    let found = tokens(&mut engine, |engine, n| {
        if n == 3 {
            IS_GONE.store(true, Ordering::SeqCst);
            engine.gpu().device().destroy();
        }
    });
    // It computes the same bits: it is the same device.
    assert_eq!(found, Ok(expected));
    assert_eq!(engine.gpu().info().name, "another card");
    let instead_of = Some(gpu.info().name.clone());
    let recovered = DeviceEvent::Recovered { adapter: "another card".into(), instead_of };
    assert_eq!(engine.device_events().last(), Some(&recovered));
    // Said once.
    engine.gpu().device().destroy();
    one_request(&mut engine, 2);
    tokens(&mut engine, |_, _| {}).expect("tokens");
    let recovered = DeviceEvent::Recovered { adapter: "another card".into(), instead_of: None };
    assert_eq!(engine.device_events().last(), Some(&recovered));
}

// --- a host's device ---

#[test]
fn a_host_replaces_its_device_whenever_it_likes() {
    let Some(own) = common::exact() else { return };
    drop(own);
    for is_lost in [true, false] {
        let (gpu, queue) = host();
        let mut rig = Rig::of(gpu.clone(), Some(queue), 0, Vec::new());
        let mut engine = load(&gpu, "llama", EngineOptions { recovery: None, ..f32_options() });
        let run = |rig: &mut Rig, engine: &mut Engine, when: usize| {
            let mut is_replaced = false;
            one_request(engine, 30);
            let mut found = Vec::new();
            while !engine.is_idle() {
                for event in rig.turn(engine) {
                    if let Event::Token { token, .. } = event {
                        found.push(token);
                    }
                }
                if found.len() >= when && !std::mem::replace(&mut is_replaced, true) {
                    // With other capabilities, of which only few change bits.
                    let (next, queue) = host();
                    let options = GpuOptions { disable: "int64,timestamps".into(), ..GpuOptions::default() };
                    let next =
                        Gpu::adopt_with(next.device().clone(), queue.clone(), &options).expect("a device");
                    engine.replace_device(&next);
                    if is_lost {
                        gpu.device().destroy();
                    }
                    rig.queue = Some(queue);
                }
            }
            found
        };
        let expected = run(&mut rig, &mut engine, usize::MAX);
        let found = run(&mut rig, &mut engine, 10);
        assert_eq!(found, expected);
        assert!(!engine.gpu().caps().int64 && gpu.counts().live_bytes < 1000);
        assert_eq!(engine.gpu().counts().submissions, 0, "the queue is the host's");
    }
}
