//! The scheduler: which rows the next step computes, and what its results mean. Plain data, no device.
//!
//! Requests are served in their order. A sequence is admitted when a slot is free and the cache has pages for its
//! prompt. It takes pages for generated tokens as it needs them. When no page is left, the youngest running sequence is
//! preempted: it releases its pages once nothing of it is in flight, waits at its place in the order, and is computed
//! again later, every token with the kind of row that computed it first, and so to the same bits.
//!
//! The contract with the runner is a [`Step`] (or a [`Clip`]) in one direction and [`StepResults`] in the other. Steps
//! are planned before the results of earlier ones have arrived: the device reads the token that a step draws in the
//! next step, so the scheduler gets it late, and needs it only to find the end of a text.

mod clips;
mod pages;
mod sequence;
mod step;
mod submit;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Weak;

pub use clips::ClipId;
pub(in crate::engine) use clips::{Clip, ClipPlace, ClipTable};
pub use pages::PAGE_SIZE;
use pages::{Node, PageTable, Prefix, Published, ROOT, Token};
use sequence::{Sequence, Wanted};
use step::Row;
pub(in crate::engine) use step::{Admission, Keep, PageEntry, Step, StepResults};

use super::{EngineError, Event, FinishReason, Logprobs, RequestId};
use crate::gpu::GpuError;
use crate::text::Tokenizer;

/// The sizes of the runner's tables, and the outputs that it supports.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// `model_type` of the model, for messages.
    pub architecture: &'static str,
    pub vocab_size: usize,
    /// Most positions of a sequence.
    pub ctx: usize,
    /// Pages of the cache.
    pub n_pages: usize,
    /// Most running sequences, and single rows of a step.
    pub max_seqs: usize,
    /// Most rows of a step.
    pub max_rows: usize,
    /// Most rows of a step that get logits.
    pub max_sampled: usize,
    /// Most waiting requests.
    pub max_waiting: usize,
    /// Most prompt rows of an attention block.
    pub block_rows: usize,
    pub max_logprobs: usize,
    pub has_logits: bool,
    /// Rows of the table of logits that stay on the device.
    pub kept_rows: usize,
    pub has_prompt_logprobs: bool,
    pub has_alignment: bool,
    pub prefix_cache: bool,
}

/// Most waiting sequences that are passed over because a running one computes their prefix, which bounds the search.
const LOOK_AHEAD: usize = 32;

/// The next work of the runner.
#[derive(Debug)]
pub(super) enum Work {
    /// A forward pass over a batch.
    Step(Box<Step>),
    /// The audio encoder over a clip.
    Clip(Box<Clip>),
}

/// Requests, sequences, pages and events of one engine.
pub(super) struct Scheduler {
    limits: Limits,
    tokenizer: Option<Tokenizer>,
    end_tokens: Vec<u32>,
    pages: PageTable,
    /// The root of the prefixes of sequences without a clip.
    root: Node,
    /// If the model has an audio encoder.
    clips: Option<ClipTable>,
    free_slots: Vec<usize>,
    /// In the order of submission, including preempted sequences.
    waiting: BTreeMap<RequestId, Sequence>,
    running: Vec<Sequence>,
    events: Vec<Event>,
    next_id: u64,
    /// Steps and clips whose results have arrived.
    n_landed: u64,
}

impl Scheduler {
    pub fn new(
        limits: Limits,
        clips: Option<ClipTable>,
        tokenizer: Option<Tokenizer>,
        end_tokens: Vec<u32>,
    ) -> Self {
        Scheduler {
            tokenizer,
            end_tokens,
            pages: PageTable::new(limits.n_pages),
            root: ROOT,
            clips,
            free_slots: (0..limits.max_seqs).rev().collect(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            events: Vec::new(),
            next_id: 1,
            n_landed: 0,
            limits,
        }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// From the next step on, other variants run, with blocks of attention of at most `block_rows` rows. What they compute
    /// may differ in its last bits, so sequences share no prefixes with earlier ones.
    pub fn variants_changed(&mut self, block_rows: usize) {
        let Scheduler { pages, clips, .. } = self;
        self.limits.block_rows = block_rows;
        self.root = pages.new_root();
        clips.iter_mut().for_each(|clips| clips.renew_roots(|| pages.new_root()));
    }

    /// Steps and clips whose results have arrived.
    pub fn n_landed(&self) -> u64 {
        self.n_landed
    }

    /// The device is lost, with its tables, pages and clips, and `works` have no results. Sequences wait again, with the
    /// tokens that have arrived: what comes after those is computed and drawn once more, by the same kinds of rows, from
    /// the same seeds and positions.
    pub fn lost(&mut self, works: Vec<Work>) {
        let mut clips = self.clips.as_mut();
        for work in works {
            if let (Some(clips), Work::Clip(clip)) = (&mut clips, work) {
                clips.release(clip.id);
            }
        }
        clips.into_iter().for_each(ClipTable::lost);
        self.pages = PageTable::new(self.limits.n_pages);
        self.root = ROOT;
        self.free_slots = (0..self.limits.max_seqs).rev().collect();
        for mut s in std::mem::take(&mut self.running) {
            s.give_up_pages();
            (s.n_in_flight, s.is_preempted) = (0, false);
            match s.finished {
                Some(_) => self.end(s),
                None => drop(self.waiting.insert(s.id, s)),
            }
        }
    }

    /// There is a device again, or the first one: its cache has `n_pages`, its blocks of attention `block_rows` rows.
    /// Nothing runs yet.
    pub fn placed(&mut self, n_pages: usize, block_rows: usize) {
        debug_assert!(self.running.is_empty(), "nothing runs without a device");
        (self.limits.n_pages, self.limits.block_rows) = (n_pages, block_rows);
        self.pages = PageTable::new(n_pages);
        // A device with smaller bindings has a smaller cache. What fits in it is shorter.
        let holds = n_pages * PAGE_SIZE;
        let (fitting, too_long) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(_, s)| s.tokens.len() <= holds);
        self.waiting = fitting;
        let too_long: BTreeMap<RequestId, Sequence> = too_long;
        for mut s in too_long.into_values() {
            let error = EngineError::CacheTooSmall { found: s.tokens.len(), expected: holds };
            s.fail(error, &mut self.events);
            self.end(s);
        }
        self.waiting.values_mut().for_each(|s| s.most = s.most.min(holds - s.n_prompt() + 1));
    }

    /// Queues a clip for the audio encoder.
    pub fn listen(&mut self, features: &[f32]) -> Result<ClipId, EngineError> {
        let architecture = self.limits.architecture;
        let problem = super::error::NO_AUDIO_ENCODER;
        self.clips.as_mut().ok_or(EngineError::Speech { architecture, problem })?.listen(features)
    }

    /// Drops the clip once no request refers to it.
    pub fn forget(&mut self, clip: ClipId) {
        self.clips.iter_mut().for_each(|clips| clips.forget(clip));
    }

    /// Drops the clip so once `owner` has been dropped.
    pub fn forget_with(&mut self, clip: ClipId, owner: Weak<()>) {
        self.clips.iter_mut().for_each(|clips| clips.forget_with(clip, owner.clone()));
    }

    /// Cancels a request: immediately if it waits, else before its next step. Its last event still comes.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(mut sequence) = self.waiting.remove(&id) {
            sequence.finished = Some(FinishReason::Cancelled);
            self.end(sequence);
        } else if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) {
            sequence.finished.get_or_insert(FinishReason::Cancelled);
            self.retire();
        }
    }

    /// Requests that wait or run.
    #[cfg(test)]
    pub fn n_open(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// Whether no request or clip waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.running.is_empty()
            && self.clips.as_ref().is_none_or(|clips| !clips.has_waiting())
    }

    /// Events since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Decides what comes next: a clip if one waits and has a place, else a step.
    pub fn next(&mut self) -> Option<Work> {
        let (clips, pages) = (&mut self.clips, &mut self.pages);
        if let Some(clip) = clips.as_mut().and_then(|clips| clips.admit(|| pages.new_root())) {
            return Some(Work::Clip(Box::new(clip)));
        }
        self.plan().map(|step| Work::Step(Box::new(step)))
    }

    /// Decides what the next step computes, and admits sequences that fit.
    fn plan(&mut self) -> Option<Step> {
        self.retire();
        let mut step = Step::default();
        let mut batch = Batch::default();
        // The oldest sequences get pages first. Decode rows are in the order of slots, so that steady steps have equal
        // tables.
        self.running.sort_by_key(|s| s.id);
        for i in 0..self.running.len() {
            if self.running[i].decodes() && self.provide(i, &mut step) {
                batch.add_next(&mut self.running[i]);
            }
        }
        batch.single.sort_by_key(|row| row.slot);
        // Then fed tokens. The oldest sequence takes the remaining rows, except a page's worth for each younger one. So
        // short prompts do not slow down a long one, and do not wait for its end.
        let unfed: Vec<usize> =
            (0..self.running.len()).filter(|i| !self.running[*i].unfed().is_empty()).collect();
        let has_candidate = !self.free_slots.is_empty() && !self.waiting.is_empty();
        for (k, i) in unfed.iter().enumerate() {
            let n_younger = unfed.len() - 1 - k + usize::from(has_candidate);
            let left = self.limits.max_rows - batch.n_rows();
            let n = left.saturating_sub(n_younger * PAGE_SIZE).max(PAGE_SIZE.min(left));
            self.feed(*i, n, &mut batch, &mut step);
        }
        while batch.n_rows() < self.limits.max_rows && self.admit(&mut step) {
            let n = self.limits.max_rows - batch.n_rows();
            self.feed(self.running.len() - 1, n, &mut batch, &mut step);
        }
        // The rows that are left over.
        for i in unfed {
            let n = self.limits.max_rows - batch.n_rows();
            self.feed(i, n, &mut batch, &mut step);
        }
        if batch.n_rows() == 0 {
            debug_assert!(step.admitted.is_empty() && step.pages.is_empty(), "an admitted sequence has rows");
            return None;
        }
        step.assemble(&batch.single, &batch.prompt, self.limits.block_rows);
        let drawing = |id: &RequestId| self.running.iter().find(|s| s.id == *id);
        for s in step.draws.iter().filter_map(drawing) {
            step.penalizes |= s.request.sampling.penalizes();
            step.rules |= s.request.speech.as_ref().is_some_and(|speech| speech.rules.is_some());
            step.logprobs = step.logprobs.max(s.request.logprobs);
        }
        step.members = batch.members;
        Some(step)
    }

    /// Adds up to `n` rows of fed tokens of running sequence `i`, in order, until pages, single rows or rows with
    /// logits run out.
    fn feed(&mut self, i: usize, n: usize, batch: &mut Batch, step: &mut Step) {
        let Limits { max_seqs, max_sampled, prefix_cache, .. } = self.limits;
        let mut n_left = n;
        for pos in self.running[i].unfed() {
            let (token, wanted) = (self.running[i].tokens[pos], self.running[i].wanted(pos));
            let is_full = n_left == 0
                || token.is_generated() && batch.single.len() == max_seqs
                || wanted.is_sampled() && batch.n_sampled == max_sampled;
            if is_full || !self.provide(i, step) {
                break;
            }
            n_left -= 1;
            batch.add(&mut self.running[i], wanted, token.is_generated());
        }
        let s = &mut self.running[i];
        if prefix_cache && n_left < n {
            self.pages.publish(&mut s.published, &s.pages, &s.tokens[..s.n_recorded]);
        }
    }

    /// Makes sure that the next row of running sequence `i` has a page. If none is left, preempts the youngest of the
    /// sequences that came later, whose pages are released once nothing of it is in flight. If `i` is the youngest, it
    /// waits.
    fn provide(&mut self, i: usize, step: &mut Step) -> bool {
        let Sequence { id, slot, n_recorded, .. } = self.running[i];
        let index = n_recorded / PAGE_SIZE;
        if index < self.running[i].pages.len() {
            return true;
        }
        let page = loop {
            if let Some(page) = self.pages.take() {
                break page;
            }
            if self.running.iter().any(|s| !s.is_active() && s.n_in_flight > 0) {
                return false; // pages will be released soon
            }
            let younger = self.running.iter_mut().filter(|s| s.is_active() && s.id > id);
            let Some(youngest) = younger.max_by_key(|s| s.id) else { return false };
            youngest.is_preempted = true;
            if youngest.n_in_flight == 0 {
                let (published, pages) = youngest.give_up_pages();
                self.vacate(published, &pages);
            }
        };
        self.running[i].pages.push(page);
        match step.admitted.iter_mut().find(|admission| admission.slot == slot) {
            Some(admission) => admission.pages.push(page),
            None => step.pages.push(PageEntry { slot, index, page }),
        }
        true
    }

    /// Gives the next waiting sequence a slot and the cached pages of its prefix, if there are pages for the rest.
    fn admit(&mut self, step: &mut Step) -> bool {
        let Some(slot) = self.free_slots.last().copied() else { return false };
        let Some((id, prefix, root)) = self.candidate() else { return false };
        let Some(mut s) = self.waiting.remove(&id) else { return false };
        self.free_slots.pop();
        self.pages.share(&prefix);
        s.admit(slot, root, prefix);
        let clips = self.clips.as_ref();
        let clip = s.request.speech.as_ref().and_then(|speech| {
            let (place, _) = clips?.place(speech.clip)?;
            Some((place, speech.rules.clone()))
        });
        step.admitted.push(Admission {
            slot,
            tokens: s.tokens.iter().map(|token| token.id()).collect(),
            n_prompt: s.n_prompt(),
            pages: s.pages.clone(),
            sampling: s.request.sampling.clone(),
            seed: s.seed,
            clip,
        });
        self.running.push(s);
        true
    }

    /// The next waiting sequence, its cached prefix, and the root of its prefixes. `None` if none waits or the next one
    /// does not fit.
    fn candidate(&self) -> Option<(RequestId, Prefix, u64)> {
        let mut n_looked_at = 0;
        for s in self.waiting.values() {
            // A sequence whose clip has no place yet is passed over.
            let root = match (&s.request.speech, &self.clips) {
                (Some(speech), Some(clips)) => match clips.place(speech.clip) {
                    Some((_, root)) => root,
                    None => continue,
                },
                _ => self.root,
            };
            let n_shareable = if self.limits.prefix_cache { s.n_shareable() } else { 0 };
            let prefix = self.pages.find(root, &s.tokens[..n_shareable]);
            if n_looked_at < LOOK_AHEAD && self.is_being_computed(s, n_shareable, &prefix, root) {
                n_looked_at += 1;
                continue;
            }
            // Requires pages for all its known tokens, and, so that nothing is preempted immediately, for the tokens
            // that running sequences have not computed yet, plus one page each to continue.
            let running = self.running.iter().filter(|s| s.is_active());
            let promised: usize = running.map(|s| s.n_pages_to_feed() + 1).sum();
            let own = Step::n_pages(s.tokens.len()) - prefix.pages.len();
            let available = self.pages.n_available() - prefix.n_idle;
            return (own + promised <= available).then_some((s.id, prefix, root));
        }
        None
    }

    /// Whether a running sequence is about to compute more of `s`'s prefix than the cache has, so that waiting saves
    /// work.
    fn is_being_computed(&self, s: &Sequence, n_shareable: usize, prefix: &Prefix, root: u64) -> bool {
        let wanted = &s.tokens[..n_shareable.saturating_sub(1)];
        self.running.iter().filter(|other| other.root == root && !other.unfed().is_empty()).any(|other| {
            let end = other.unfed().end.min(other.tokens.len());
            let n_same = wanted.iter().zip(&other.tokens[..end]).take_while(|(a, b)| a == b).count();
            n_same / PAGE_SIZE * PAGE_SIZE > prefix.n_tokens
        })
    }

    /// The audio encoder has finished a clip.
    pub fn clip_landed(&mut self, clip: ClipId) {
        self.n_landed += 1;
        self.clips.iter_mut().for_each(|clips| clips.release(clip));
    }

    /// Passes a step's results to its sequences.
    pub fn step_landed(&mut self, step: &Step, results: StepResults) {
        self.n_landed += 1;
        for s in self.running.iter_mut().filter(|s| step.members.contains(&s.id)) {
            s.n_in_flight -= 1;
        }
        let mut logprobs = results.logprobs.into_iter();
        for (id, token) in step.draws.iter().zip(results.tokens) {
            let logprobs = logprobs.next();
            let Some(s) = self.running.iter_mut().find(|s| s.id == *id) else { continue };
            let Some(token) = token else {
                if s.finished.is_none() {
                    let position = s.tokens.len() - 1;
                    s.fail(EngineError::NotFinite { position }, &mut self.events);
                }
                continue;
            };
            let logprobs = s.request.logprobs.zip(logprobs).map(|(k, [mut top, mut sampled_top])| {
                top.truncate(1 + k);
                sampled_top.truncate(1 + k);
                let (chosen, sampled) = (top.remove(0), sampled_top.remove(0));
                Logprobs { chosen, top, sampled, sampled_top }
            });
            let ends = s.request.stop_tokens.as_ref().unwrap_or(&self.end_tokens).contains(&token);
            s.arrived(token, ends, logprobs, &mut self.events);
        }
        for ((id, position, _), weights) in step.aligned.iter().zip(results.alignments) {
            let Some(s) = unfinished(&mut self.running, *id) else { continue };
            s.n_aligned = position + 1;
            self.events.push(Event::Alignment { id: *id, position: *position, weights });
        }
        for ((id, position), values) in step.logits.iter().zip(results.logits) {
            let Some(s) = unfinished(&mut self.running, *id) else { continue };
            if !values.iter().all(|v| v.is_finite()) {
                s.fail(EngineError::NotFinite { position: *position }, &mut self.events);
                continue;
            }
            s.n_reported = position + 1;
            if position + 1 == s.n_prompt() {
                s.finished = Some(FinishReason::Length);
            }
            self.events.push(Event::Logits { id: *id, position: *position, values });
        }
        self.scored(&step.scores, &results.scores);
        for (id, _) in &step.kept {
            if let Some(s) = unfinished(&mut self.running, *id) {
                s.n_reported = s.n_prompt();
                s.finished = Some(FinishReason::Length);
            }
        }
        self.retire();
    }

    /// Passes log-probabilities of prompts' tokens to their sequences, those of one sequence in one event.
    fn scored(&mut self, tokens: &[(RequestId, usize)], values: &[f32]) {
        let mut values = values.iter();
        for tokens in tokens.chunk_by(|a, b| a.0 == b.0) {
            let (id, position) = tokens[0];
            let logprobs: Vec<f32> = values.by_ref().take(tokens.len()).copied().collect();
            let Some(s) = unfinished(&mut self.running, id) else { continue };
            if let Some(at) = logprobs.iter().position(|p| !p.is_finite()) {
                s.fail(EngineError::NotFinite { position: position + at - 1 }, &mut self.events);
                continue;
            }
            let end = position + logprobs.len();
            s.n_reported = end - 1;
            if end == s.n_prompt() {
                s.finished = Some(FinishReason::Length);
            }
            self.events.push(Event::PromptLogprobs { id, position, logprobs });
        }
    }

    /// The device does no more work: ends every open request, and drops the clips.
    pub fn abandon(&mut self, error: &GpuError) {
        let running = std::mem::take(&mut self.running).into_iter().map(|s| (s.id, s));
        let open: BTreeMap<RequestId, Sequence> = running.chain(std::mem::take(&mut self.waiting)).collect();
        for mut s in open.into_values() {
            if s.finished.is_none() {
                s.fail(error.clone().into(), &mut self.events);
            }
            self.events.extend(s.done());
        }
        self.clips.iter_mut().for_each(ClipTable::abandon);
    }

    /// Releases slots and pages of sequences that are finished or preempted and have nothing in flight.
    fn retire(&mut self) {
        let mut i = 0;
        while i < self.running.len() {
            if self.running[i].is_active() || self.running[i].n_in_flight > 0 {
                i += 1;
                continue;
            }
            let mut s = self.running.swap_remove(i);
            let (published, pages) = s.give_up_pages();
            // The page that a failed sequence was filling is not shared.
            self.vacate(published.filter(|_| !s.failed), &pages);
            self.free_slots.push(s.slot);
            if s.finished.is_some() {
                self.end(s);
            } else {
                s.is_preempted = false;
                self.waiting.insert(s.id, s);
            }
        }
    }

    /// Releases a sequence's pages. Later prefixes find their contents if they are published.
    fn vacate(&mut self, leaves: Option<(Published, Vec<Token>)>, pages: &[u32]) {
        if let (Some((published, tokens)), true) = (leaves, self.limits.prefix_cache) {
            self.pages.leave(published, pages, &tokens);
        }
        self.pages.release(pages);
    }

    /// Reports the end of a sequence.
    fn end(&mut self, mut s: Sequence) {
        if let (Some(clips), Some(speech)) = (&mut self.clips, &s.request.speech) {
            clips.release(speech.clip);
        }
        self.events.extend(s.done());
    }
}

fn unfinished(running: &mut [Sequence], id: RequestId) -> Option<&mut Sequence> {
    running.iter_mut().find(|s| s.id == id && s.finished.is_none())
}

/// The rows of a step while it is planned.
#[derive(Default)]
struct Batch {
    single: Vec<Row>,
    prompt: Vec<Row>,
    n_sampled: usize,
    members: Vec<RequestId>,
}

impl Batch {
    fn n_rows(&self) -> usize {
        self.single.len() + self.prompt.len()
    }

    /// Adds the next row of a sequence.
    fn add(&mut self, s: &mut Sequence, wanted: Wanted, is_single: bool) {
        if self.members.last() != Some(&s.id) && !self.members.contains(&s.id) {
            self.members.push(s.id);
            s.n_in_flight += 1;
        }
        let row = Row { id: s.id, slot: s.slot, pos: s.n_recorded, wanted };
        if is_single {
            self.single.push(row)
        } else {
            self.prompt.push(row)
        }
        self.n_sampled += usize::from(wanted.is_sampled());
        s.n_recorded += 1;
        s.n_drawn += usize::from(wanted.draw);
    }

    /// Adds the row of the token that the last row draws.
    fn add_next(&mut self, s: &mut Sequence) {
        self.add(s, Wanted { draw: true, ..Wanted::default() }, true);
    }
}
