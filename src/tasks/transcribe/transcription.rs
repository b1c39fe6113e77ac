//! A recording, window by window.

use std::collections::VecDeque;
use std::sync::Arc;

use super::segments::{self, FRAMES_PER_SECOND, Split};
use super::tokens::Language;
use super::window::{Decoded, Step, Window};
use super::words::{self, Alignment};
use super::{Heard, Plan, Segment, TranscribeError, Transcript};
use crate::audio::{AudioError, AudioReader, MelFrames};
use crate::engine::Engine;
use crate::tasks::{Engines, Events, Task};

/// Frames without speech that end a window: shorter pauses belong to what is said. (The `min_silence_duration_ms` of
/// faster-whisper.)
const LONG_PAUSE: usize = 200;
/// Above this temperature, text is too free to be what the next window goes on from.
const MOST_COHERENT: f32 = 0.5;

/// A recording on its way to text.
///
/// [`super::Transcriber::transcribe`] drives one and waits. A guest drives it as every [`Task`]. Nothing waits but the
/// reading of the recording, a window at a time.
pub struct Transcription {
    plan: Arc<Plan>,
    mel: MelFrames,
    /// Frames of a window.
    n_window: usize,
    /// The frame at which the next stretch begins, and the one at which all ends.
    cursor: usize,
    last: usize,
    /// Frames before this one are forgotten.
    first_kept: usize,
    /// No stretch follows.
    is_exhausted: bool,
    /// In order of time.
    stretches: VecDeque<Stretch>,
    language: Option<Language>,
    past: Past,
    /// What was not reported yet.
    heard: VecDeque<Heard>,
    n_segments: usize,
    /// What broke the recording off.
    failure: Option<TranscribeError>,
}

/// What a window is told of those before.
#[derive(Clone, Default)]
struct Past {
    /// Their text, or what stands for it.
    tokens: Vec<u32>,
    /// When the last segment ended, in seconds.
    speech_end: f64,
}

/// A part of the recording that fits in a window. Where stretches are decoded side by side, one may take several windows:
/// what the first leaves unfinished is the beginning of the next.
struct Stretch {
    /// Log-mel frames from `start` to `end`, then as many of silence as a window has.
    features: Vec<f32>,
    /// The first frame, and the one after the last.
    start: usize,
    end: usize,
    /// The frame at which the next window begins.
    seek: usize,
    /// Whether the rest belongs to the next stretch.
    is_single: bool,
    is_done: bool,
    past: Past,
    window: Option<Window>,
    /// What waits for the times of its words.
    decoded: Option<(Decoded, Split)>,
    heard: Vec<Heard>,
}

impl Transcription {
    pub(super) fn new(plan: Arc<Plan>, engine: &Engine, audio: AudioReader) -> Result<Self, TranscribeError> {
        let shape = engine.shape();
        let Some(sound) = &shape.audio else {
            return Err(TranscribeError::NotSpeech { architecture: shape.architecture });
        };
        let tokens = match plan.options.initial_prompt.as_deref().map(str::trim) {
            Some(text) if !text.is_empty() => plan.tokenizer.encode_plain(&format!(" {text}"))?,
            _ => Vec::new(),
        };
        let frames = |seconds: f64| (seconds * FRAMES_PER_SECOND).round() as usize;
        let first = frames(plan.options.offset);
        Ok(Transcription {
            mel: MelFrames::new(audio, sound.n_mels)?,
            n_window: sound.n_frames,
            cursor: first,
            last: plan.options.duration.map_or(usize::MAX, |seconds| first + frames(seconds)),
            first_kept: 0,
            is_exhausted: false,
            stretches: VecDeque::new(),
            language: plan.language,
            past: Past { tokens, speech_end: 0.0 },
            heard: VecDeque::new(),
            n_segments: 0,
            failure: None,
            plan,
        })
    }

    /// The code of the language, once it is known.
    pub fn language(&self) -> Option<&'static str> {
        match self.language {
            Some(language) => Some(language.code),
            None => self.plan.tokens.languages.is_empty().then_some("en"),
        }
    }

    /// The recording's length in seconds: what its container says at first, what was read at the end. A stream is as long
    /// as it has been heard.
    pub fn duration(&self) -> f64 {
        self.mel.duration().unwrap_or(self.cursor as f64 / FRAMES_PER_SECOND)
    }

    /// Reads and asks for what comes next.
    ///
    /// # Errors
    /// What the engine refuses or a request failed with.
    fn proceed(&mut self, engine: &mut Engine) -> Result<(), TranscribeError> {
        loop {
            // While the language is unknown, the first stretch alone is looked at.
            let is_unknown = self.language.is_none() && !self.plan.tokens.languages.is_empty();
            let most = if is_unknown { 1 } else { self.plan.options.batch_size };
            while !self.is_exhausted && self.stretches.len() < most {
                match self.next_stretch()? {
                    Some(stretch) => self.stretches.push_back(stretch),
                    None => self.is_exhausted = true,
                }
            }
            for stretch in &mut self.stretches {
                stretch.advance(engine, &self.plan, &mut self.language)?;
            }
            let is_found = is_unknown && self.language.is_some();
            if !self.collect() && !is_found {
                return Ok(());
            }
        }
    }

    /// Ends all that was asked for.
    fn stop(&mut self, engine: &mut Engine) {
        for mut window in self.stretches.drain(..).filter_map(|stretch| stretch.window) {
            window.cancel(engine);
        }
        self.is_exhausted = true;
    }

    /// Moves what the first stretches tell to what is told, and drops those that are done; whether one was.
    fn collect(&mut self) -> bool {
        let mut dropped = false;
        while let Some(stretch) = self.stretches.front_mut() {
            for mut heard in stretch.heard.drain(..) {
                if let Heard::Segment(segment) = &mut heard {
                    segment.id = self.n_segments;
                    self.n_segments += 1;
                }
                self.heard.push_back(heard);
            }
            if !stretch.is_done {
                break;
            }
            dropped = true;
            if let Some(stretch) = self.stretches.pop_front().filter(|stretch| stretch.is_single) {
                self.cursor = stretch.seek;
                self.past = stretch.past;
            }
        }
        dropped
    }

    /// Cuts the next stretch, if there is one.
    fn next_stretch(&mut self) -> Result<Option<Stretch>, TranscribeError> {
        let is_single = self.plan.options.batch_size == 1;
        let mut start = self.cursor;
        self.forget(start)?;
        if self.plan.options.vad {
            while !self.sound(|mel| mel.is_speech(start))? {
                if start >= self.last || self.mel.n_frames().is_some_and(|n| start >= n) {
                    return Ok(None);
                }
                start += 1;
                if start.is_multiple_of(LONG_PAUSE) {
                    self.forget(start)?;
                }
            }
        }
        let full = start.saturating_add(self.n_window);
        self.sound(|mel| mel.fill_to(full))?;
        let n_frames = self.mel.n_frames().unwrap_or(usize::MAX);
        let mut end = full.min(self.last).min(n_frames);
        if start >= end {
            return Ok(None);
        }
        if self.plan.options.vad {
            end = self.long_pause(start, end)?;
        }
        if !is_single && end == full && full < self.last.min(n_frames) {
            // In the last third of what fits.
            let from = full - (full - start) / 3;
            end = self.sound(|mel| mel.quietest(from..full))?;
        }
        let n_rows = end - start + self.n_window;
        // The frames after the last whole one still hear its end.
        let heard = if end == n_frames { full } else { end };
        let features = self.sound(|mel| mel.clip(start..heard, n_rows))?;
        self.forget(if is_single { start } else { end })?;
        self.cursor = end;
        Ok(Some(Stretch {
            features,
            start,
            end,
            seek: start,
            is_single,
            is_done: false,
            past: self.past.clone(),
            window: None,
            decoded: None,
            heard: Vec::new(),
        }))
    }

    /// The frame at which the first long pause in `start .. end` begins, or `end`.
    fn long_pause(&mut self, start: usize, end: usize) -> Result<usize, TranscribeError> {
        let mut pause = start;
        for frame in start..end {
            if self.sound(|mel| mel.is_speech(frame))? {
                pause = frame + 1;
            } else if frame + 1 - pause == LONG_PAUSE {
                return Ok(pause);
            }
        }
        Ok(end)
    }

    /// Reads on to `frame`, and keeps nothing before it.
    fn forget(&mut self, frame: usize) -> Result<(), TranscribeError> {
        while self.first_kept < frame {
            let next = frame.min(self.first_kept + self.n_window);
            self.sound(|mel| mel.fill_to(next))?;
            self.mel.discard_before(next);
            self.first_kept = next;
            if self.mel.n_frames().is_some_and(|n| next >= n) {
                self.first_kept = frame;
            }
        }
        Ok(())
    }

    /// Asks for frames. A recording that breaks is kept in mind and counts as ended where it broke.
    fn sound<T>(
        &mut self,
        mut ask: impl FnMut(&mut MelFrames) -> Result<T, AudioError>,
    ) -> Result<T, TranscribeError> {
        match ask(&mut self.mel) {
            Err(failure) if self.failure.is_none() => {
                self.failure = Some(failure.into());
                Ok(ask(&mut self.mel)?)
            }
            result => Ok(result?),
        }
    }
}

impl Task for Transcription {
    type Output = Transcript;
    type Error = TranscribeError;
    type Progress = Heard;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        match engines.language() {
            Ok(engine) => {
                if let Err(error) = self.proceed(engine) {
                    self.stop(engine);
                    self.failure = Some(error);
                }
            }
            Err(error) => {
                self.stretches.clear();
                self.is_exhausted = true;
                self.failure = Some(error.into());
            }
        }
    }

    fn observe(&mut self, events: &mut Events) {
        for window in self.stretches.iter_mut().filter_map(|stretch| stretch.window.as_mut()) {
            window.observe(events, &self.plan);
        }
    }

    /// What was heard, in order of time. A recording may be long: what was reported is not kept.
    fn progress(&mut self) -> Option<Heard> {
        self.heard.pop_front()
    }

    /// Stops: what was reported is all.
    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(engine) = engines.language() {
            self.stop(engine);
            self.heard.clear();
        }
    }

    /// Whether the recording is at its end, or cancelled.
    fn is_done(&self) -> bool {
        self.is_exhausted && self.stretches.is_empty()
    }

    /// The transcript, with those segments that [`Task::progress`] has not reported.
    ///
    /// # Errors
    /// The engine's, and what broke the recording off: [`TranscribeError::Audio`].
    fn finish(&mut self) -> Result<Transcript, TranscribeError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let segments = self.heard.drain(..).filter_map(|heard| match heard {
            Heard::Segment(segment) => Some(segment),
            _ => None,
        });
        let segments: Vec<Segment> = segments.collect();
        let language = self.language().map(str::to_string);
        Ok(Transcript { task: self.plan.options.task, language, duration: self.duration(), segments })
    }
}

impl Stretch {
    /// Goes on as far as results are there.
    fn advance(
        &mut self,
        engine: &mut Engine,
        plan: &Plan,
        language: &mut Option<Language>,
    ) -> Result<(), TranscribeError> {
        while !self.is_done {
            let Some(window) = &mut self.window else {
                self.open(engine, plan, *language)?;
                continue;
            };
            match window.proceed(engine, plan)? {
                Step::Waits => return Ok(()),
                Step::Language(found, probability) => {
                    *language = Some(found);
                    self.heard.push(Heard::Language { code: found.code, probability });
                }
                Step::Decoded(decoded) => {
                    let split =
                        segments::split(&decoded.tokens, plan.tokens.first_timestamp, self.end - self.seek);
                    // Only what becomes part of a segment has words in this window.
                    let said = split.spans.iter().flat_map(|span| plan.words(&span.tokens));
                    let text: Vec<u32> = said.filter(|_| plan.options.word_timestamps).collect();
                    if text.is_empty() || plan.options.is_silent(&decoded) {
                        self.conclude(engine, plan, decoded, split, None)?;
                    } else {
                        window.align(engine, plan, text);
                        self.decoded = Some((decoded, split));
                    }
                }
                Step::Aligned(tokens, alignment) => {
                    if let Some((decoded, split)) = self.decoded.take() {
                        self.conclude(engine, plan, decoded, split, Some((tokens, alignment)))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Begins the next window.
    fn open(
        &mut self,
        engine: &mut Engine,
        plan: &Plan,
        language: Option<Language>,
    ) -> Result<(), TranscribeError> {
        let shape = engine.shape();
        let Some(sound) = &shape.audio else {
            return Err(TranscribeError::NotSpeech { architecture: shape.architecture });
        };
        // One place less than half the context is for earlier text, as in the original.
        let most = (engine.ctx() / 2).saturating_sub(1);
        let tokens = &self.past.tokens;
        let history = match plan.tokens.previous {
            Some(previous) if !tokens.is_empty() => {
                let recent = &tokens[tokens.len().saturating_sub(most)..];
                std::iter::once(previous).chain(recent.iter().copied()).collect()
            }
            _ => Vec::new(),
        };
        let (from, n_mels) = (self.seek - self.start, sound.n_mels);
        let clip = engine.listen(&self.features[from * n_mels..(from + sound.n_frames) * n_mels])?;
        self.window = Some(Window::new(engine, clip, history, language));
        Ok(())
    }

    /// Turns what was decoded into segments, and moves on.
    fn conclude(
        &mut self,
        engine: &mut Engine,
        plan: &Plan,
        decoded: Decoded,
        split: Split,
        aligned: Option<(Vec<u32>, Alignment)>,
    ) -> Result<(), TranscribeError> {
        let Some(window) = self.window.take() else { return Ok(()) };
        engine.forget(window.clip());
        let n_frames = self.end - self.seek;
        if plan.options.is_silent(&decoded) {
            self.close(self.end, decoded.tokens);
            return Ok(());
        }
        let time = |frame: usize| (self.seek + frame) as f64 / FRAMES_PER_SECOND;
        let mut segments = Vec::new();
        for span in &split.spans {
            segments.push(Segment {
                seek: self.seek,
                start: time(span.start),
                end: time(span.end),
                text: plan.text(&span.tokens)?,
                tokens: span.tokens.clone(),
                temperature: decoded.temperature,
                avg_logprob: decoded.avg_logprob,
                compression_ratio: decoded.compression_ratio,
                no_speech_prob: decoded.no_speech_prob,
                ..Segment::default()
            });
        }
        let mut seek = self.seek + split.advance;
        if plan.options.word_timestamps {
            let timings = match &aligned {
                Some((tokens, alignment)) => {
                    let code = window.language().map_or("en", |language| language.code);
                    words::align(tokens, alignment, n_frames, &plan.tokenizer, code)?
                }
                None => Vec::new(),
            };
            let n_tokens: Vec<usize> =
                split.spans.iter().map(|span| plan.words(&span.tokens).len()).collect();
            let offset = time(0);
            words::distribute(&mut segments, &n_tokens, timings, offset, self.past.speech_end);
            let word = segments.iter().rev().flat_map(|s| s.words.iter().flatten().next_back()).next();
            let end = word.map(|word| word.end).or(segments.last().map(|segment| segment.end));
            if let Some(end) = end {
                // The next window begins after the last word, not after the timestamp.
                if !split.ends_in_silence && end > offset {
                    seek = ((end * FRAMES_PER_SECOND).round() as usize).max(self.seek + 1);
                }
                self.past.speech_end = end;
            }
        }
        segments.retain(|segment| segment.start != segment.end && !segment.text.trim().is_empty());
        self.past.tokens.extend(segments.iter().flat_map(|segment| &segment.tokens));
        if !plan.options.condition_on_previous_text || decoded.temperature > MOST_COHERENT {
            self.past.tokens.clear();
        }
        let n = self.past.tokens.len();
        self.past.tokens.drain(..n.saturating_sub(engine.shape().max_seq_len));
        self.heard.extend(segments.into_iter().map(Heard::Segment));
        self.close(seek, decoded.tokens);
        Ok(())
    }

    /// Ends a window; the next begins at `seek`.
    fn close(&mut self, seek: usize, tokens: Vec<u32>) {
        self.seek = seek;
        let until = seek.min(self.end) as f64 / FRAMES_PER_SECOND;
        self.heard.push(Heard::Window { until, tokens });
        self.is_done = self.is_single || seek >= self.end;
    }
}
