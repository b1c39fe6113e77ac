//! What the next step computes: decoding rows, then prompts in the order they came, then whoever finds room.

use super::pages::ROOT;
use super::plan::Plan;
use super::sequence::Sequence;
use super::{Engine, Logits, PAGE_SIZE, RequestId, SpeechRules, Work};
use crate::ops::SpeechRecord;
use bytemuck::Zeroable;

impl Engine {
    /// Decides what comes next: a clip if one waits and has room, else a step.
    pub(super) fn next_work(&mut self) -> Option<Work> {
        let forward = &mut self.forward;
        if let Some(clips) = &mut forward.clips
            && let Some(clip) = clips.admit(&self.gpu, || forward.pages.new_root())
        {
            clips.hold(clip);
            return Some(Work::Clip(clip));
        }
        self.plan().map(|plan| Work::Step(Box::new(plan)))
    }

    /// Decides what the next step computes, and admits sequences that find room.
    fn plan(&mut self) -> Option<Plan> {
        let mut plan = Plan::default();
        let caps = self.gpu.caps();
        let block_rows = self.shape.attention.iter().map(|a| a.block_rows(caps)).min().unwrap_or(1);
        self.running.sort_by_key(|s| s.slot);
        for s in self.running.iter_mut().filter(|s| s.decodes()) {
            let row = plan.rows.len() as u32;
            let pos = s.n_recorded;
            plan.rows.push([s.slot as u32, pos as u32]);
            plan.blocks.push([row, 1]);
            plan.sampled.push(row);
            plan.draws.push(s.id);
            plan.longest = plan.longest.max(pos + 1);
            s.n_recorded += 1;
            s.n_drawn += 1;
            s.n_in_flight += 1;
        }
        plan.n.n_decode = plan.rows.len();
        // Prompts: those that began first go on first.
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_key(|i| self.running[*i].id);
        for i in order {
            self.plan_prompt(&mut plan, i, block_rows);
        }
        while plan.rows.len() < self.options.max_rows && self.admit(&mut plan) {
            self.plan_prompt(&mut plan, self.running.len() - 1, block_rows);
        }
        if plan.rows.is_empty() {
            return None;
        }
        plan.n.n_prompt = plan.rows.len() - plan.n.n_decode;
        let drawing = |id: &RequestId| self.running.iter().find(|s| s.id == *id);
        for s in plan.draws.iter().filter_map(drawing) {
            plan.penalizes |= s.request.sampling.penalizes();
            plan.rules |= s.request.speech.as_ref().is_some_and(|speech| speech.rules.is_some());
            plan.logprobs = plan.logprobs.max(s.request.logprobs);
        }
        Some(plan)
    }

    /// Adds rows of the prompt of running sequence `i`.
    fn plan_prompt(&mut self, plan: &mut Plan, i: usize, block_rows: usize) {
        let s = &mut self.running[i];
        let mut n = s.n_prompt_left().min(self.options.max_rows - plan.rows.len());
        if n > 0 {
            n = n.min(s.n_rows_within(s.n_recorded, self.options.max_sampled() - plan.sampled.len()));
        }
        if n == 0 {
            return;
        }
        let first_row = plan.rows.len();
        for pos in s.n_recorded..s.n_recorded + n {
            let row = plan.rows.len() as u32;
            if s.wants_logits(pos) {
                plan.sampled.insert(plan.draws.len() + plan.logits.len(), row);
                plan.logits.push((s.id, pos));
            }
            if s.aligns() {
                plan.aligned.push((s.id, pos, plan.rows.len()));
            }
            if s.wants_score(pos) {
                plan.sampled.push(row);
                plan.scores.push((s.id, pos + 1));
            }
            plan.rows.push([s.slot as u32, pos as u32]);
        }
        for at in (0..n).step_by(block_rows) {
            plan.blocks.push([(first_row + at) as u32, block_rows.min(n - at) as u32]);
        }
        s.n_recorded += n;
        s.n_in_flight += 1;
        if s.n_prompt_left() == 0 && s.request.writes() {
            // Rows that draw come before all others.
            plan.sampled.insert(plan.draws.len(), plan.rows.len() as u32 - 1);
            plan.draws.push(s.id);
            s.n_drawn += 1;
        }
        if self.options.prefix_cache {
            self.forward.pages.publish(s.root, &s.pages, &s.tokens[..s.n_recorded.min(s.tokens.len())]);
        }
    }

    /// Gives the next waiting sequence a slot and pages, if there are any.
    fn admit(&mut self, plan: &mut Plan) -> bool {
        // Who listens to a clip that has no place yet lets others pass.
        let clips = self.forward.clips.as_ref();
        let root = |s: &Sequence| match (&s.request.speech, clips) {
            (Some(speech), Some(clips)) => clips.root(speech.clip),
            _ => Some(ROOT),
        };
        let next = self.waiting.iter().enumerate().find_map(|(at, s)| Some((at, s, root(s)?)));
        let (Some((at, next, root)), Some(slot)) = (next, self.free_slots.last().copied()) else {
            return false;
        };
        // The last token that is drawn is never computed, so it needs no place in the cache.
        let n_positions = next.n_prompt() + next.most.saturating_sub(1);
        let needs_all_rows = next.request.logits == Some(Logits::All) || next.aligns();
        let shares = self.options.prefix_cache && !needs_all_rows;
        // A token's log-probability needs the row before it computed.
        let n_shared = next.request.prompt_logprobs.unwrap_or(next.n_prompt());
        let prefix = if shares { &next.request.prompt[..n_shared] } else { &[] };
        let n_pages = n_positions.div_ceil(PAGE_SIZE);
        let Some((pages, n_cached)) = self.forward.pages.take(root, prefix, n_pages) else {
            return false;
        };
        let Some(mut s) = self.waiting.remove(at) else { return false };
        self.free_slots.pop();
        s.admit(slot, root, pages, n_cached);
        // Nothing in flight touches the slot, so its rows of the tables are written directly.
        let (gpu, tables) = (&self.gpu, &self.forward.slots);
        if let (Some(clips), Some(speech)) = (&mut self.forward.clips, &s.request.speech) {
            clips.hold(speech.clip);
            let rules = speech.rules.as_ref().map_or(SpeechRecord::zeroed(), SpeechRules::record);
            clips.write(gpu, slot, speech.clip, &rules);
        }
        tables.tokens.write(gpu, slot, bytemuck::cast_slice(&s.request.prompt));
        tables.pages.write(gpu, slot, bytemuck::cast_slice(&s.pages));
        let record = s.request.sampling.record(s.seed);
        tables.sampling.write(gpu, slot, bytemuck::bytes_of(&record));
        let bias: Vec<[u32; 2]> =
            s.request.sampling.logit_bias.iter().map(|(token, b)| [*token, b.to_bits()]).collect();
        tables.bias.write(gpu, slot, bytemuck::cast_slice(&bias));
        if s.request.sampling.counts() {
            plan.count.push((slot, s.n_prompt()));
        }
        self.running.push(s);
        true
    }
}
