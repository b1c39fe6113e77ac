//! Tasks step by step: on a host's device, several at a time on one engine, and cancelled or dropped before their end.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use wginfer::audio::AudioReader;
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{
    EncoderOptions, Engine, EngineError, EngineOptions, FinishReason, Output, Sampling, TextEncoder,
};
use wginfer::gpu::{Gpu, GpuError};
use wginfer::tasks::transcribe::{
    TranscribeError, TranscribeOptions, Transcriber, TranscriptEvent, Transcription,
};
use wginfer::tasks::{
    self, Answer, AnswerTask, Chat, Classification, ClassifyInput, ClassifyTask, DocumentOptions, EncodeTask,
    Engines, Events, Finished, Label, MatchTask, PerplexityTask, Progress, SummarizeTask, Task, TaskError,
};
use wginfer::text::Delta;
use wginfer::wgpu;

// --- devices and models ---

/// A host: its device, and what runs on it as a guest.
struct Host {
    queue: wgpu::Queue,
    gpu: Gpu,
    engine: Option<Engine>,
    encoder: Option<TextEncoder>,
}

/// The result of a task, and what it reported.
type Driven<T> = (Result<<T as Task>::Output, <T as Task>::Error>, Vec<<T as Task>::Progress>);

impl Host {
    fn new() -> Option<Host> {
        // Reports which test is skipped if there is no adapter.
        common::gpu()?;
        let instance = wgpu::Instance::default();
        let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
        let (device, queue) =
            pollster::block_on(adapter.request_device(&Gpu::required(&adapter))).expect("a device");
        let gpu = Gpu::adopt(device, queue.clone()).expect("large enough");
        Some(Host { queue, gpu, engine: None, encoder: None })
    }

    fn engines(&mut self) -> Engines<'_> {
        Engines { language: self.engine.as_mut(), encoder: self.encoder.as_mut() }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("an engine")
    }

    fn encoder(&self) -> &TextEncoder {
        self.encoder.as_ref().expect("an encoder")
    }

    /// A frame: the task's next step, the engines' work along with the host's own, and the results of earlier frames.
    fn frame<T: Task>(&mut self, task: &mut T) {
        task.advance(&mut self.engines());
        let mut events = self.submit();
        task.observe(&mut events);
        assert!(
            events.language.is_empty() && events.encoder.is_empty(),
            "nobody else has asked for anything"
        );
    }

    fn submit(&mut self) -> Events {
        let budget = Duration::from_millis(4);
        let mut events = Events::default();
        if let Some(engine) = &mut self.engine {
            self.queue.submit(engine.advance(budget).expect("advance"));
            events.language = engine.events().expect("events");
        }
        if let Some(encoder) = &mut self.encoder {
            self.queue.submit(encoder.advance(budget).expect("advance"));
            events.encoder = encoder.events().expect("events");
        }
        std::thread::sleep(Duration::from_micros(200));
        events
    }

    /// Frames until the task is done.
    fn drive<T: Task>(&mut self, mut task: T) -> Driven<T> {
        let mut reported = Vec::new();
        for n_frames in 0.. {
            while let Some(progress) = task.progress() {
                reported.push(progress);
            }
            if task.is_done() {
                break;
            }
            self.frame(&mut task);
            assert!(n_frames < 100_000, "it gets on");
        }
        assert_eq!(self.gpu.counts().submissions, 0, "the queue is the host's");
        (task.finish(), reported)
    }

    /// Frames until the engines are idle, as for a host that no longer needs its tasks.
    fn drain(&mut self) {
        for n_frames in 0.. {
            self.submit();
            let is_idle = self.engine.as_ref().is_none_or(Engine::is_idle)
                && self.encoder.as_ref().is_none_or(TextEncoder::is_idle);
            if is_idle {
                break;
            }
            assert!(n_frames < 100_000, "it gets on");
        }
    }
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

fn whisper() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words")
}

fn demo(gpu: &Gpu) -> Engine {
    demo_with(gpu, EngineOptions::default())
}

fn demo_with(gpu: &Gpu, options: EngineOptions) -> Engine {
    let options = EngineOptions { prompt_logprobs: 64, ..options };
    Engine::load(gpu, ModelFiles::demo().expect("checkpoint"), options, &mut |_| {}).expect("engine")
}

fn classifier(gpu: &Gpu, model: &str) -> TextEncoder {
    let checkpoint = ModelFiles::open(&folder(model)).expect("checkpoint");
    TextEncoder::load(gpu, checkpoint, EncoderOptions::default(), &mut |_| {}).expect("encoder")
}

/// The demonstration model on our own device, for one test at a time.
fn own() -> Option<MutexGuard<'static, Engine>> {
    static ENGINE: OnceLock<Option<Mutex<Engine>>> = OnceLock::new();
    // A guest has no cooperative matrices, and so no products of F16.
    let engine = ENGINE.get_or_init(|| Some(Mutex::new(demo(&common::exact()?))));
    engine.as_ref().map(|engine| engine.lock().unwrap_or_else(PoisonError::into_inner))
}

fn hearing(gpu: &Gpu) -> (Engine, Transcriber) {
    let checkpoint = ModelFiles::open(&whisper()).expect("checkpoint");
    let options = TranscribeOptions { word_timestamps: true, ..TranscribeOptions::default() };
    let transcriber = Transcriber::new(&checkpoint, options).expect("a speech model");
    let options = EngineOptions { kv_dtype: Dtype::F32, ..EngineOptions::default() };
    let options = transcriber.engine_options(options);
    (Engine::load(gpu, checkpoint, options, &mut |_| {}).expect("engine"), transcriber)
}

fn recording() -> AudioReader {
    AudioReader::open(&whisper().join("en.flac")).expect("a recording")
}

// --- inputs ---

const STORIES: [&str; 4] = [
    "Once upon a time, there was a small boy named Kai who lived by the river. Then one day, Kai went to the castle. \
     There he found a small owl. The poor owl was hurt. Kai brought it some cake. Kai and the owl became friends. Kai \
     called it Bruno. Kai laughed with joy.",
    "Ivy was a cheerful girl who lived near the forest. Ivy was four years old. One cold afternoon, Ivy wanted to see \
     the big bones, so she went to the museum. No one else was there. It got dark, and she was lost. The wind was \
     cold. She was all alone and wanted to be at home. Ivy had tears in her eyes. Ivy thought about it for many days.",
    "Olga was a lonely girl. One afternoon, Olga was alone in the meadow. The grass was soft and green. Suddenly she \
     heard a strange voice. She wanted to run, but her legs did not move. She closed her eyes. Olga felt afraid and \
     did not make a sound. Olga never went there again.",
    "Mia had a red ball that she loved very much. One sunny day, Mia lost her red ball in the park. Mia felt sad. Her \
     friend Tom came to help. Then Tom found the ball under a bench. Mia jumped for joy.",
];
const QUESTION: &str = "What did Olga hear?";
const STRIDE: usize = 100;

fn document() -> String {
    STORIES.join("\n\n")
}

fn inputs() -> [ClassifyInput<'static>; 4] {
    STORIES.map(ClassifyInput::Text)
}

fn labels() -> Vec<Label> {
    ["happy", "sad", "afraid"].map(Label::parse).to_vec()
}

fn items() -> [(&'static str, &'static str); 2] {
    [("Who is Kai?", "a boy"), ("What is red?", "a ball")]
}

fn options() -> DocumentOptions {
    DocumentOptions::default()
}

/// The results of a task on many inputs, in their order: those that it reported, and the rest.
fn of_each<T>(
    mut reported: Vec<Finished<T>>,
    rest: Result<Vec<Finished<T>>, TaskError>,
) -> Result<Vec<Result<T, TaskError>>, TaskError> {
    reported.extend(rest?);
    reported.sort_by_key(|finished| finished.index);
    assert!(reported.iter().enumerate().all(|(i, finished)| i == finished.index), "one for each input");
    Ok(reported.into_iter().map(|finished| finished.result).collect())
}

/// The result of every input.
fn all<T>(rows: Result<Vec<Result<T, TaskError>>, TaskError>) -> Vec<T> {
    rows.expect("it runs").into_iter().map(|row| row.expect("a good input")).collect()
}

fn chat(engine: &Engine) -> Chat {
    Chat::new(engine.tokenizer().expect("a tokenizer"), Sampling::greedy()).expect("a chat")
}

/// The model never draws its end tokens.
fn endless() -> Sampling {
    Sampling { logit_bias: [0, 1, 2].map(|token| (token, -1e6)).to_vec(), ..Sampling::greedy() }
}

fn message() -> String {
    format!("Text:\n{}\n\nQuestion: Who found the ball?", STORIES[3])
}

fn answer_task(engine: &Engine) -> AnswerTask {
    AnswerTask::new(engine, &document(), QUESTION, &options()).expect("a task")
}

fn classify_task(engine: &Engine) -> ClassifyTask {
    ClassifyTask::new(engine, &inputs(), &labels()).expect("a task")
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn text(reported: &[Progress]) -> String {
    let texts = reported.iter().filter_map(|progress| match progress {
        Progress::Text(text) => Some(&text[..]),
        _ => None,
    });
    texts.collect()
}

/// Other kinds of devices sum in another order.
#[track_caller]
fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a}, expected {b}");
}

#[track_caller]
fn same_labels(found: &[Classification], expected: &[Classification]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.labels.len(), expected.labels.len());
        for (found, expected) in found.labels.iter().zip(&expected.labels) {
            assert_eq!(found.label, expected.label);
            near(found.probability, expected.probability);
        }
    }
}

#[track_caller]
fn same_answer(found: &Answer, expected: &Answer) {
    let json = |answer: &Answer| {
        let mut json = serde_json::to_value(answer).expect("JSON");
        // What the cache holds depends on what ran before.
        json["usage"]["cached_tokens"] = 0.into();
        json
    };
    assert_eq!(json(found), json(expected));
}

// --- a guest ---

#[test]
fn a_guest_gets_what_the_blocking_calls_return() {
    let (Some(mut host), Some(mut own)) = (Host::new(), own()) else { return };
    host.engine = Some(demo(&host.gpu));
    let expected =
        tasks::answer(&mut own, &document(), QUESTION, &options(), None, &mut go_on).expect("an answer");
    let task = answer_task(host.engine());
    let (found, reported) = host.drive(task);
    let found = found.expect("an answer");
    assert!(found.pieces.len() > 3 && found.answer.contains("strange voice"), "{found:?}");
    same_answer(&found, &expected);
    assert_eq!(text(&reported), found.answer);
    assert_eq!(
        reported[0],
        Progress::Round { round: 1, n_pieces: found.pieces.len(), n_tokens: n_tokens(&found) }
    );

    let expected = tasks::summarize(&mut own, &document(), None, &options(), &mut go_on).expect("a summary");
    let task = SummarizeTask::new(host.engine(), &document(), None, &options());
    let (found, reported) = host.drive(task.expect("a task"));
    let found = found.expect("a summary");
    assert_eq!(
        (&found.summary, &found.rounds, found.cut),
        (&expected.summary, &expected.rounds, expected.cut)
    );
    assert!(found.rounds[0] > 3 && text(&reported) == found.summary, "{found:?}");

    let expected = all(tasks::classify(&mut own, &inputs(), &labels(), &mut go_on));
    let task = classify_task(host.engine());
    let (found, reported) = host.drive(task);
    assert_eq!(reported.len(), inputs().len(), "all were reported");
    same_labels(&all(of_each(reported, found)), &expected);

    let expected = tasks::perplexity(&mut own, &document(), Some(STRIDE), &mut go_on).expect("a perplexity");
    let task = PerplexityTask::new(host.engine(), &document(), Some(STRIDE));
    let (found, _) = host.drive(task.expect("a task"));
    let found = found.expect("a perplexity");
    near(found.perplexity, expected.perplexity);
    assert_eq!((found.scored, found.windows), (expected.scored, expected.windows));

    let expected = all(tasks::exact_match(&mut own, &items(), 16, &mut go_on));
    let task = MatchTask::new(host.engine(), &items(), 16).expect("a task");
    let (found, reported) = host.drive(task);
    let answers = |matches: &[tasks::Match]| matches.iter().map(|m| m.answer.clone()).collect::<Vec<_>>();
    assert_eq!(answers(&all(of_each(reported, found))), answers(&expected));

    let mut talk = chat(&own);
    let mut guest = chat(&own);
    for says in [message(), "Question: Who lost it?".to_string()] {
        let expected = talk.ask(&mut own, &says, |_| ControlFlow::Continue(())).expect("a reply");
        guest.say(&says);
        let mut heard = String::new();
        while !guest.is_done() {
            host.frame(&mut guest);
            heard.extend(std::iter::from_fn(|| guest.progress()).map(|piece| match piece {
                Delta::Content(text) => text,
                Delta::Reasoning(text) => panic!("the model has no marks for the thought {text}"),
            }));
        }
        let reply = guest.finish().expect("a reply");
        assert_eq!((&reply.text, reply.finish_reason), (&expected.text, expected.finish_reason));
        assert_eq!(heard, reply.text);
    }
    assert_eq!(guest.messages().len(), 4);
    assert_eq!(format!("{:?}", guest.messages()), format!("{:?}", talk.messages()));
}

fn n_tokens(answer: &Answer) -> usize {
    answer.pieces.iter().map(|piece| piece.tokens).sum()
}

#[test]
fn a_guest_embeds_and_has_an_embedder_choose() {
    let (Some(mut host), Some(mut own)) = (Host::new(), own()) else { return };
    let Some(gpu) = common::exact() else { return };
    for model in ["bert-classifier", "roberta-classifier", "distilbert-classifier", "modernbert-classifier"] {
        let mut alone = classifier(&gpu, model);
        host.encoder = Some(classifier(&host.gpu, model));
        for output in [Output::Embedding, Output::Logits] {
            // Two more that have no tokens: the others go on.
            let texts = [&STORIES[..2], &["", " "][..], &STORIES[2..]].concat();
            let expected = all(tasks::encode(&mut alone, &STORIES, output, &mut |_| {}));
            let task = EncodeTask::new(host.encoder(), &texts, output);
            let (found, reported) = host.drive(task.expect("a task"));
            assert_eq!(reported.len(), texts.len(), "all were reported");
            let mut found = of_each(reported, found).expect("values");
            for empty in found.drain(2..4) {
                assert!(matches!(empty, Err(TaskError::Empty { what: "text" })), "{empty:?}");
            }
            for (found, expected) in all(Ok(found)).iter().zip(&expected) {
                assert_eq!((found.n_tokens, found.n_cut), (expected.n_tokens, expected.n_cut));
                let (found, expected) = (&found.values, &expected.values);
                assert!(!found.is_empty() && found.len() == expected.len());
                found.iter().zip(expected).for_each(|(a, b)| near((*a).into(), (*b).into()));
            }
        }
    }

    // The embedder chooses four pieces of more.
    let mut alone = classifier(&gpu, "modernbert-classifier");
    host.engine = Some(demo(&host.gpu));
    let text = [document(), document().replace("Olga", "Rosa")].join("\n\n");
    let mut embed =
        |texts: &[&str]| tasks::vectors(tasks::encode(&mut alone, texts, Output::Embedding, &mut |_| {})?);
    let expected = tasks::answer(&mut own, &text, QUESTION, &options(), Some(&mut embed), &mut go_on);
    let mut task = AnswerTask::new(host.engine(), &text, QUESTION, &options()).expect("a task");
    task.choose_with(host.encoder()).expect("texts that it can read");
    let (found, _) = host.drive(task);
    let found = found.expect("an answer");
    assert_eq!(found.pieces.iter().filter(|piece| piece.answer.is_some()).count(), 4);
    same_answer(&found, &expected.expect("an answer"));
}

#[test]
fn a_guest_transcribes() {
    let Some(mut host) = Host::new() else { return };
    let Some(gpu) = common::exact() else { return };
    let (mut own, transcriber) = hearing(&gpu);
    let mut expected = Vec::new();
    let transcript = transcriber.transcribe(&mut own, recording(), |heard| {
        expected.push(heard.clone());
        ControlFlow::Continue(())
    });
    let transcript = transcript.expect("a transcript");
    assert!(transcript.segments.len() > 1);

    let (engine, transcriber) = hearing(&host.gpu);
    let task = transcriber.begin(&engine, recording()).expect("a task");
    host.engine = Some(engine);
    let (found, heard) = host.drive(task);
    let found = found.expect("a transcript");
    assert_eq!((&found.language, found.duration), (&transcript.language, transcript.duration));
    assert_eq!(found.segments, [], "all were reported");
    assert_eq!(heard.len(), expected.len());
    for (heard, expected) in heard.iter().zip(&expected) {
        match (heard, expected) {
            (TranscriptEvent::Segment(heard), TranscriptEvent::Segment(expected)) => {
                assert_eq!((&heard.text, &heard.tokens), (&expected.text, &expected.tokens));
                near(heard.start, expected.start);
                near(heard.end, expected.end);
                assert_eq!(heard.words.as_ref().map(Vec::len), expected.words.as_ref().map(Vec::len));
            }
            (TranscriptEvent::Window { tokens, .. }, TranscriptEvent::Window { tokens: expected, .. }) => {
                assert_eq!(tokens, expected);
            }
            (TranscriptEvent::Language { code, .. }, TranscriptEvent::Language { code: expected, .. }) => {
                assert_eq!(code, expected)
            }
            _ => panic!("{heard:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn blocking_calls_are_refused_on_an_adopted_device() {
    fn is_adopted(error: &EngineError) -> bool {
        matches!(error, EngineError::Gpu(GpuError::Adopted))
    }
    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, TaskError>) {
        let error = result.expect_err("the queue is the host's");
        assert!(matches!(&error, TaskError::Engine(error) if is_adopted(error)), "{error}");
    }
    let Some(mut host) = Host::new() else { return };
    let mut engine = demo(&host.gpu);
    refused(tasks::answer(&mut engine, &document(), QUESTION, &options(), None, &mut go_on));
    refused(tasks::summarize(&mut engine, &document(), None, &options(), &mut go_on));
    refused(tasks::classify(&mut engine, &inputs(), &labels(), &mut go_on));
    refused(tasks::perplexity(&mut engine, &document(), None, &mut go_on));
    refused(tasks::exact_match(&mut engine, &items(), 16, &mut go_on));
    let error = chat(&engine).ask(&mut engine, "Hello!", |_| ControlFlow::Continue(())).expect_err("refused");
    assert!(is_adopted(&error), "{error}");
    let mut encoder = classifier(&host.gpu, "bert-classifier");
    refused(tasks::encode(&mut encoder, &STORIES, Output::Logits, &mut |_| {}).map(|_| ()));
    let (mut hearing, transcriber) = hearing(&host.gpu);
    let error = transcriber.transcribe(&mut hearing, recording(), |_| ControlFlow::Continue(()));
    let error = error.expect_err("refused");
    assert!(matches!(&error, TranscribeError::Engine(error) if is_adopted(error)), "{error}");

    // Refused requests leave nothing behind.
    host.engine = Some(hearing);
    host.drain();
    let task = transcriber.begin(host.engine(), recording()).expect("a task");
    assert!(host.drive(task).1.len() > 2);
    (host.engine, host.encoder) = (Some(engine), Some(encoder));
    host.drain();
    let task = answer_task(host.engine());
    assert!(host.drive(task).0.expect("an answer").answer.contains("strange voice"));
}

#[test]
fn a_task_without_its_engine_ends() {
    let Some(own) = own() else { return };
    let is_missing = |error: &EngineError| error.to_string().contains("`engines` is no language model");
    let mut task = answer_task(&own);
    while !task.is_done() {
        task.advance(&mut Engines::default());
    }
    let error = task.finish().expect_err("no engine");
    assert!(matches!(&error, TaskError::Engine(error) if is_missing(error)), "{error}");
    let mut task = classify_task(&own);
    task.advance(&mut Engines::default());
    assert!(task.is_done() && task.finish().is_err());
    let mut talk = chat(&own);
    talk.say("Hello!");
    talk.advance(&mut Engines::default());
    assert!(talk.is_done() && is_missing(&talk.finish().expect_err("no engine")));
    assert!(talk.messages().is_empty());
}

// --- several at a time ---

#[test]
fn tasks_share_an_engine_and_each_gets_what_it_gets_alone() {
    let Some(mut engine) = own() else { return };
    let expected_answer =
        tasks::answer(&mut engine, &document(), QUESTION, &options(), None, &mut go_on).expect("an answer");
    let expected_labels = all(tasks::classify(&mut engine, &inputs(), &labels(), &mut go_on));
    let mut alone = chat(&engine);
    let expected_replies = [message(), "Question: Who lost it?".to_string()]
        .map(|says| alone.ask(&mut engine, &says, |_| ControlFlow::Continue(())).expect("a reply").text);

    let mut talk = chat(&engine);
    let (mut answer, mut classify) = (answer_task(&engine), classify_task(&engine));
    let mut replies = Vec::new();
    let mut together = 0;
    let says = [message(), "Question: Who lost it?".to_string()];
    talk.say(&says[0]);
    while !(talk.is_done() && answer.is_done() && classify.is_done()) {
        let engines = &mut Engines::from(&mut *engine);
        talk.advance(engines);
        answer.advance(engines);
        classify.advance(engines);
        together += usize::from(!talk.is_done() && !answer.is_done() && !classify.is_done());
        let mut events: Events = engine.pump().expect("it runs").into();
        classify.observe(&mut events);
        talk.observe(&mut events);
        answer.observe(&mut events);
        assert!(events.language.is_empty(), "{events:?} belong to nobody");
        if talk.is_done() && replies.len() < 2 {
            replies.push(talk.finish().expect("a reply").text);
            if replies.len() < 2 {
                talk.say(&says[1]);
            }
        }
    }
    assert!(together > 2, "{together} rounds of all three");
    assert!(engine.is_idle());
    same_answer(&answer.finish().expect("an answer"), &expected_answer);
    let labels: Vec<Vec<_>> = expected_labels.into_iter().map(|c| c.labels).collect();
    // A host that ignores progress finds everything in the result.
    let found = all(of_each(Vec::new(), classify.finish()));
    assert_eq!(found.into_iter().map(|c| c.labels).collect::<Vec<_>>(), labels, "to the last bit");
    assert_eq!(replies, expected_replies);
}

#[test]
fn tasks_wait_for_room_in_a_full_queue() {
    let (Some(mut own), Some(gpu)) = (own(), common::exact()) else { return };
    let expected_labels = all(tasks::classify(&mut own, &inputs(), &labels(), &mut go_on));
    let expected_reply =
        chat(&own).ask(&mut own, &message(), |_| ControlFlow::Continue(())).expect("a reply").text;
    let options = EngineOptions { max_seqs: 2, max_waiting: 2, ..EngineOptions::default() };
    let mut engine = demo_with(&gpu, options);
    let (mut classify, mut talk) = (classify_task(&engine), chat(&engine));
    talk.say(&message());
    let mut n_full = 0;
    while !(talk.is_done() && classify.is_done()) {
        classify.advance(&mut Engines::from(&mut engine));
        n_full += usize::from(!engine.has_room());
        talk.advance(&mut Engines::from(&mut engine));
        let mut events = engine.pump().expect("it runs").into();
        talk.observe(&mut events);
        classify.observe(&mut events);
    }
    assert!(n_full > 2, "{n_full} rounds without room");
    same_labels(&all(of_each(Vec::new(), classify.finish())), &expected_labels);
    assert_eq!(talk.finish().expect("a reply").text, expected_reply);
}

// --- an early end ---

/// Some steps of a task, then the end.
fn begin<T: Task>(task: &mut T, engine: &mut Engine, n_steps: usize) {
    for _ in 0..n_steps {
        task.advance(&mut Engines::from(&mut *engine));
        task.observe(&mut engine.pump().expect("it runs").into());
    }
    assert!(!task.is_done(), "half way");
}

/// Cancels a task and lets it come to its end.
fn cancel<T: Task>(task: &mut T, engine: &mut Engine) -> Result<T::Output, T::Error> {
    task.cancel(&mut Engines::from(&mut *engine));
    for n in 0.. {
        if task.is_done() {
            break;
        }
        task.advance(&mut Engines::from(&mut *engine));
        task.observe(&mut engine.pump().expect("it runs").into());
        assert!(n < 100, "it ends soon");
    }
    // Nothing happens to a task that is done.
    task.cancel(&mut Engines::from(&mut *engine));
    assert!(task.is_done());
    task.finish()
}

#[test]
fn tasks_end_early_and_the_engine_goes_on() {
    let Some(mut engine) = own() else { return };
    for n_steps in [0, 1, 2, 5] {
        let mut task = answer_task(&engine);
        begin(&mut task, &mut engine, n_steps);
        assert!(matches!(cancel(&mut task, &mut engine), Err(TaskError::Stopped)));
        assert!(engine.is_idle());
        let mut task = classify_task(&engine);
        begin(&mut task, &mut engine, n_steps.min(2));
        assert!(matches!(cancel(&mut task, &mut engine), Err(TaskError::Stopped)));
        assert!(engine.is_idle());
    }
    // One text is what is generated of it so far. Neither ends by itself.
    let long = DocumentOptions { sampling: endless(), max_tokens: Some(200), ..options() };
    let mut task = AnswerTask::new(&engine, STORIES[3], "Who found the ball?", &long).expect("a task");
    begin(&mut task, &mut engine, 12);
    let cut = cancel(&mut task, &mut engine).expect("what is there");
    assert_eq!(cut.finish_reason, FinishReason::Cancelled);
    assert!(!cut.answer.is_empty() && cut.usage.completion_tokens < 100, "{cut:?}");
    let mut talk = chat(&engine);
    talk.sampling = endless();
    talk.say(&message());
    begin(&mut talk, &mut engine, 12);
    let reply = cancel(&mut talk, &mut engine).expect("what is there");
    assert_eq!(reply.finish_reason, FinishReason::Cancelled);
    assert!(!reply.text.is_empty() && talk.messages().len() == 2, "{reply:?}");
    talk.say("Question: Who lost it?");
    assert_eq!(cancel(&mut talk, &mut engine).expect("nothing").text, "");

    // Dropped: its requests run to their end, and their events reach no task.
    for n_steps in [1, 2, 4] {
        let (mut task, mut other) = (answer_task(&engine), classify_task(&engine));
        begin(&mut task, &mut engine, n_steps);
        begin(&mut other, &mut engine, 1);
    }
    let found = tasks::answer(&mut engine, &document(), QUESTION, &options(), None, &mut go_on);
    assert!(found.expect("an answer").answer.contains("strange voice"));
    engine.run(|_| {}).expect("it runs");
    assert!(engine.is_idle());
}

#[test]
fn a_task_that_is_cancelled_between_two_rounds_begins_no_other() {
    let Some(mut engine) = own() else { return };
    /// Runs a task of several pieces to the end of its first round, and cancels it there.
    fn check<T: Task<Progress = Progress, Error = TaskError>>(mut task: T, engine: &mut Engine) {
        let is_over = |progress: Progress| matches!(progress, Progress::Done { n_done, n_pieces } if n_done == n_pieces);
        loop {
            task.advance(&mut Engines::from(&mut *engine));
            task.observe(&mut engine.pump().expect("it runs").into());
            let mut reported = std::iter::from_fn(|| task.progress());
            if reported.any(is_over) {
                break;
            }
        }
        assert!(!task.is_done(), "another round would follow");
        assert!(matches!(cancel(&mut task, engine), Err(TaskError::Stopped)));
        assert!(engine.is_idle(), "no other round has begun");
    }
    check(answer_task(&engine), &mut engine);
    let short = DocumentOptions { piece_tokens: Some(120), ..options() };
    check(SummarizeTask::new(&engine, &document(), Some(20), &short).expect("a task"), &mut engine);
}

#[test]
fn a_message_that_is_too_long_takes_no_earlier_ones_with_it() {
    let Some(mut engine) = own() else { return };
    let mut talk = chat(&engine);
    talk.max_tokens = Some(8);
    for turn in 0..2 {
        let reply = talk.ask(&mut engine, &message(), |_| ControlFlow::Continue(())).expect("a reply");
        assert!(!reply.text.is_empty(), "turn {turn}");
    }
    let long = "the ball and the hill ".repeat(engine.ctx());
    let error = talk.ask(&mut engine, &long, |_| ControlFlow::Continue(())).expect_err("too long");
    assert!(
        matches!(error, EngineError::PromptTooLong { .. } | EngineError::CacheTooSmall { .. }),
        "{error}"
    );
    assert_eq!(talk.messages().len(), 4, "two turns are left");
    talk.ask(&mut engine, "Question: Who lost it?", |_| ControlFlow::Continue(())).expect("it goes on");
}

#[test]
fn another_message_takes_the_place_of_one_on_its_way() {
    let Some(mut engine) = own() else { return };
    let expected =
        chat(&engine).ask(&mut engine, &message(), |_| ControlFlow::Continue(())).expect("a reply");
    let mut talk = chat(&engine);
    talk.sampling = endless();
    talk.say("Tell me a story.");
    begin(&mut talk, &mut engine, 3);
    talk.sampling = Sampling::greedy();
    talk.say("What?");
    talk.say(&message());
    while !talk.is_done() {
        talk.advance(&mut Engines::from(&mut *engine));
        let mut events = engine.pump().expect("it runs").into();
        talk.observe(&mut events);
        assert!(events.language.is_empty(), "those of the first message are heard, too");
    }
    assert_eq!(talk.finish().expect("a reply").text, expected.text);
    assert_eq!(talk.messages().len(), 2);
    talk.sampling = endless();
    talk.say("Tell me a story.");
    begin(&mut talk, &mut engine, 3);
    talk.reset();
    assert!(talk.is_done() && talk.messages().is_empty());
    assert!(matches!(talk.finish(), Err(EngineError::EmptyPrompt)), "nothing was said");
    talk.advance(&mut Engines::from(&mut *engine));
    engine.run(|_| {}).expect("it runs");
    assert!(engine.is_idle());
}

#[test]
fn a_transcription_ends_early_and_the_engine_goes_on() {
    let Some(gpu) = common::exact() else { return };
    let (mut engine, transcriber) = hearing(&gpu);
    let begun =
        |engine: &Engine| -> Transcription { transcriber.begin(engine, recording()).expect("a task") };
    for n_steps in [0, 1, 2, 4] {
        let mut task = begun(&engine);
        begin(&mut task, &mut engine, n_steps);
        let transcript = cancel(&mut task, &mut engine).expect("what was heard");
        assert_eq!(transcript.segments, []);
    }
    // Dropped: the engine has one place for a clip, and it is free again.
    for n_steps in [1, 2, 4] {
        begin(&mut begun(&engine), &mut engine, n_steps);
    }
    let mut whole = begun(&engine);
    let transcript = tasks::run(&mut whole, &mut Engines::from(&mut engine), |_| ControlFlow::Continue(()));
    assert_eq!(transcript.expect("a transcript").segments, [], "all were reported");
    assert!(engine.is_idle());

    // A host that ignores progress finds everything in the transcript.
    let mut task = begun(&engine);
    while !task.is_done() {
        task.advance(&mut Engines::from(&mut engine));
        task.observe(&mut engine.pump().expect("it runs").into());
    }
    assert!(task.finish().expect("a transcript").segments.len() > 1);
}

// --- many ---

#[test]
fn sixty_thousand_texts_are_done_and_can_be_taken_back_at_once() {
    const N: usize = 60_000;
    let Some(gpu) = common::gpu() else { return };
    let mut encoder = classifier(&gpu, "bert-classifier");
    let texts: Vec<Vec<u32>> = (0..N).map(|i| vec![2 + (i % 7) as u32, 2 + (i % 11) as u32]).collect();
    let mut task = EncodeTask::from_tokens(texts.clone(), Output::Logits);
    for _ in 0..4 {
        task.advance(&mut Engines::from(&mut encoder));
        task.observe(&mut encoder.pump().expect("it runs").into());
    }
    assert!(!task.is_done());
    let begin = Instant::now();
    task.cancel(&mut Engines::from(&mut encoder));
    assert!(task.is_done() && matches!(task.finish(), Err(TaskError::Stopped)));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    encoder.run(|_| {}).expect("it runs");
    assert!(encoder.is_idle());

    let mut n_reported = 0;
    let found = all(tasks::encode_tokens(&mut encoder, texts, Output::Logits, &mut |n| n_reported = n));
    assert_eq!((found.len(), n_reported), (N, N));
    // The same text again, in another batch.
    assert!(!found[0].values.is_empty() && (0..N).all(|i| found[i] == found[i % 77]));
    assert_ne!(found[0], found[1]);
}

#[test]
fn thousands_of_questions_are_taken_back_at_once() {
    let Some(mut engine) = own() else { return };
    let inputs = vec![ClassifyInput::Prompt("Is it?"); 5000];
    let mut task = ClassifyTask::new(&engine, &inputs, &labels()).expect("a task");
    begin(&mut task, &mut engine, 3);
    let begin = Instant::now();
    assert!(matches!(cancel(&mut task, &mut engine), Err(TaskError::Stopped)));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(engine.is_idle());
}
