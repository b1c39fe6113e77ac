//! The transcription of a recording, window by window.

use std::collections::VecDeque;
use std::sync::Arc;

use super::segments::{self, FRAMES_PER_SECOND, Split};
use super::tokens::Language;
use super::window::{Step, Window};
use super::words::{self, Alignment};
use super::{Decoded, Plan, Segment, TranscribeError, Transcript, TranscriptEvent};
use crate::audio::{AudioError, AudioReader, MelFrames};
use crate::engine::Engine;
use crate::tasks::{Engines, Events, Task};

/// Frames without speech that end a window. Shorter pauses belong to the speech. (`min_silence_duration_ms` of
/// faster-whisper.)
const LONG_PAUSE: usize = 200;
/// Above this temperature, a window's text is not used as the prompt of the next window.
const MOST_COHERENT: f32 = 0.5;

/// A transcription in progress.
///
/// [`super::Transcriber::transcribe`] runs one and waits. A guest drives it like every [`Task`]. Only reading the
/// recording, one window at a time, may wait.
pub struct Transcription {
    plan: Arc<Plan>,
    mel: MelFrames,
    /// Frames per window.
    n_window: usize,
    /// The frame at which the next stretch begins, and the frame at which the transcription ends.
    cursor: usize,
    last: usize,
    /// Frames before this one have been discarded.
    first_kept: usize,
    /// No stretch follows.
    is_exhausted: bool,
    /// In order of time.
    stretches: VecDeque<Stretch>,
    language: Option<Language>,
    past: Past,
    /// Reports that have not been taken yet.
    progress: VecDeque<TranscriptEvent>,
    n_segments: usize,
    /// The error that ended the recording.
    failure: Option<TranscribeError>,
}

/// The context of a window: the windows before it.
#[derive(Clone, Default)]
struct Past {
    /// Their text, or the initial prompt.
    tokens: Vec<u32>,
    /// The end of the last segment in seconds.
    speech_end: f64,
}

/// A part of the recording that fits in a window. If several stretches are decoded at once, one may need several
/// windows: the unfinished part of a window is the beginning of the next.
struct Stretch {
    /// Log-mel frames from `start` to `end`, padded with one window of silence.
    features: Vec<f32>,
    /// The first frame, and the end (exclusive).
    start: usize,
    end: usize,
    /// The frame at which the next window begins.
    seek: usize,
    /// Whether the rest belongs to the next stretch.
    is_single: bool,
    is_done: bool,
    past: Past,
    window: Option<Window>,
    /// Segments that wait for the times of their words.
    decoded: Option<(Decoded, Split)>,
    progress: Vec<TranscriptEvent>,
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
            progress: VecDeque::new(),
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

    /// The recording's length in seconds: by its container, and at the end by what was read. The length of a stream is
    /// what has been read so far.
    pub fn duration(&self) -> f64 {
        self.mel.duration().unwrap_or(self.cursor as f64 / FRAMES_PER_SECOND)
    }

    /// Reads the recording, and submits the next requests.
    ///
    /// # Errors
    /// Those of the engine and of a request.
    fn proceed(&mut self, engine: &mut Engine) -> Result<(), TranscribeError> {
        loop {
            // While the language is unknown, only the first stretch is decoded.
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

    /// Cancels all requests.
    fn stop(&mut self, engine: &mut Engine) {
        for mut window in self.stretches.drain(..).filter_map(|stretch| stretch.window) {
            window.cancel(engine);
        }
        self.is_exhausted = true;
    }

    /// Collects the reports of the first stretches, and drops those that are done. Returns whether one was done.
    fn collect(&mut self) -> bool {
        let mut dropped = false;
        while let Some(stretch) = self.stretches.front_mut() {
            for mut event in stretch.progress.drain(..) {
                if let TranscriptEvent::Segment(segment) = &mut event {
                    segment.id = self.n_segments;
                    self.n_segments += 1;
                }
                self.progress.push_back(event);
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
        // The frames after the last whole one still contain its end.
        let sound_end = if end == n_frames { full } else { end };
        let features = self.sound(|mel| mel.clip(start..sound_end, n_rows))?;
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
            progress: Vec::new(),
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

    /// Reads up to `frame`, and discards frames before it.
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

    /// Reads frames. If the recording is damaged, keeps the error and counts the recording as ended there.
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
    type Progress = TranscriptEvent;

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

    /// The reports, in order of time. Reported segments are not kept, because a recording may be long.
    fn progress(&mut self) -> Option<TranscriptEvent> {
        self.progress.pop_front()
    }

    /// Stops the transcription.
    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(engine) = engines.language() {
            self.stop(engine);
            self.progress.clear();
        }
    }

    /// Whether the recording is at its end, or cancelled.
    fn is_done(&self) -> bool {
        self.is_exhausted && self.stretches.is_empty()
    }

    /// The transcript, with the segments that [`Task::progress`] has not reported.
    ///
    /// # Errors
    /// Those of the engine; [`TranscribeError::Audio`] for a damaged recording.
    fn finish(&mut self) -> Result<Transcript, TranscribeError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let segments = self.progress.drain(..).filter_map(|event| match event {
            TranscriptEvent::Segment(segment) => Some(segment),
            _ => None,
        });
        let segments: Vec<Segment> = segments.collect();
        let language = self.language().map(str::to_string);
        Ok(Transcript { task: self.plan.options.task, language, duration: self.duration(), segments })
    }
}

impl Stretch {
    /// Continues as far as results have arrived.
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
                    self.progress.push(TranscriptEvent::Language { code: found.code, probability });
                }
                Step::Decoded(decoded) => {
                    let split =
                        segments::split(&decoded.tokens, plan.tokens.first_timestamp, self.end - self.seek);
                    // Only text that becomes part of a segment has words in this window.
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

    /// Starts the next window.
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
        // Earlier text may have half the context minus one token, as in the original.
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

    /// Turns the decoded text into segments, and moves on.
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
                // The next window begins after the last word, not after the timestamp. A model with no timestamps
                // has written down the whole window, and would only invent speech in the rest.
                if plan.options.timestamps && !split.ends_in_silence && end > offset {
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
        self.progress.extend(segments.into_iter().map(TranscriptEvent::Segment));
        self.close(seek, decoded.tokens);
        Ok(())
    }

    /// Ends a window. The next one begins at `seek`.
    fn close(&mut self, seek: usize, tokens: Vec<u32>) {
        self.seek = seek;
        let until = seek.min(self.end) as f64 / FRAMES_PER_SECOND;
        self.progress.push(TranscriptEvent::Window { until, tokens });
        self.is_done = self.is_single || seek >= self.end;
    }
}
