//! How much of what is recorded goes into a slice: the budget of a frame, and where the recording is cut. Plain numbers,
//! no device.
//!
//! What is recorded is walked in parts (layers). A part is a fixed sequence of pieces: dispatches, or the pieces of a
//! dispatch that can be cut. A walk that the budget cuts is repeated later, and what was recorded before is skipped.

use std::ops::Range;

use super::cost::{Costs, Load};

/// By how much 99 of 100 frames may exceed their budget: 20 %.
const TOLERANCE: f64 = 1.2;

/// Cuts recordings to the budget of a frame.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    costs: Costs,
    /// Of the frame, in milliseconds, and the predicted time of what it has.
    budget_ms: f64,
    spent_ms: f64,
    n_spent: usize,
    /// Nothing more goes into this frame.
    is_full: bool,
    /// Records everything, whatever it takes.
    is_forced: bool,
    /// What the slice has.
    load: Load,
    /// Pieces of the part that are recorded, and those that the walk has passed.
    n_recorded: usize,
    n_passed: usize,
    /// Of a piece that exceeded its budget: kernel, predicted milliseconds, and the budget's.
    too_slow: Option<(&'static str, f64, f64)>,
}

impl Meter {
    /// Begins a frame.
    pub fn frame(&mut self, budget_ms: f64) {
        (self.budget_ms, self.spent_ms, self.n_spent, self.is_full) = (budget_ms, 0.0, 0, false);
    }

    /// Whether nothing more goes into the frame.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// What is left of the frame's budget, in milliseconds.
    pub fn left_ms(&self) -> f64 {
        (self.budget_ms - self.spent_ms).max(0.0)
    }

    /// The predicted time of what the frame has, in milliseconds.
    pub fn spent_ms(&self) -> f64 {
        self.spent_ms
    }

    /// Counts time that was measured otherwise.
    pub fn spend(&mut self, ms: f64) {
        self.spent_ms += ms;
        self.is_full |= self.spent_ms >= self.budget_ms;
    }

    /// Begins a walk over a part, of which `n_recorded` pieces are recorded. If it is forced, everything is.
    pub fn begin_part(&mut self, n_recorded: usize, is_forced: bool) {
        (self.n_recorded, self.n_passed, self.is_forced) = (n_recorded, 0, is_forced);
    }

    /// Ends the walk. Returns how many pieces are recorded if some are not.
    pub fn end_part(&mut self) -> Option<usize> {
        self.is_forced = false;
        (self.n_recorded < self.n_passed).then_some(self.n_recorded)
    }

    /// Ends the slice. Returns what it has, for [`Meter::landed`].
    pub fn end_slice(&mut self) -> Load {
        std::mem::take(&mut self.load)
    }

    /// Learns from a slice that took `ms`.
    pub fn landed(&mut self, load: &Load, ms: f64) {
        self.costs.learn(load, ms);
    }

    /// Learns from a slice on a device with no clock, which was seen to finish after `ms`, as late as a frame comes: if that was
    /// in time, it may have taken less than predicted, and later ones grow; if it was not, all of it.
    pub fn seen(&mut self, load: &Load, ms: f64, in_time: bool) {
        let guess = self.costs.predict(load).map_or(self.budget_ms / 4.0, |ms| ms * 0.9);
        self.costs.learn(load, if in_time { ms.min(guess) } else { ms });
    }

    /// The longest time of a piece that cannot be cut, in milliseconds. `None` if nothing was measured.
    pub fn longest_piece_ms(&self) -> Option<f64> {
        self.costs.longest_piece()
    }

    /// A piece that exceeded its budget since the last call: kernel, predicted milliseconds, and the budget's.
    pub fn take_too_slow(&mut self) -> Option<(&'static str, f64, f64)> {
        self.too_slow.take()
    }

    /// Passes something that takes no time worth counting. Returns whether to record it now.
    pub fn pass(&mut self) -> bool {
        self.n_passed += 1;
        let is_next = self.n_recorded + 1 == self.n_passed;
        let records = is_next && (self.is_forced || !self.is_full);
        self.n_recorded += usize::from(records);
        records
    }

    /// Passes a dispatch of `n_pieces` and of `units` workgroups, or whatever its size is counted in; `key` identifies its
    /// kind. Returns the pieces to record now.
    pub fn take(&mut self, key: u64, name: &'static str, n_pieces: usize, units: f64) -> Range<usize> {
        let before = self.n_passed;
        self.n_passed += n_pieces;
        let first = self.n_recorded.saturating_sub(before).min(n_pieces);
        let n_left = n_pieces - first;
        // What was recorded; or an earlier piece is not.
        if n_left == 0 || self.n_recorded < before || self.is_full && !self.is_forced {
            return first..first;
        }
        let piece = units / n_pieces as f64;
        let curve = self.costs.curve(key, name, piece);
        let n = if self.is_forced { n_left } else { self.fitting(curve, n_left, piece) };
        if n > 0 {
            self.spent_ms += self.costs.ms(curve, n as f64 * piece).unwrap_or_default();
            self.n_spent += 1;
            self.load.add(curve, n as f64 * piece);
            self.n_recorded = before + first + n;
        }
        self.is_full |= n < n_left;
        first..first + n
    }

    /// How many of `n` pieces fit in the frame. It gets at least one if it has nothing.
    fn fitting(&mut self, curve: usize, n: usize, piece: f64) -> usize {
        let is_first = self.n_spent == 0;
        if self.costs.ms(curve, piece).is_none() {
            // What was never measured has a frame of its own, so that its time is known after it.
            self.is_full = true;
            return usize::from(is_first);
        }
        let spread = self.costs.spread(self.n_spent + 1);
        let budget_ms = self.budget_ms * (TOLERANCE / spread).min(1.0);
        let ms = |n: usize| self.costs.ms(curve, n as f64 * piece).unwrap_or(f64::INFINITY);
        let fits = |n: usize| self.spent_ms + ms(n) <= budget_ms;
        if fits(n) {
            return n;
        }
        let (mut most, mut beyond) = (0, n);
        while beyond - most > 1 {
            let middle = most + (beyond - most) / 2;
            *(if fits(middle) { &mut most } else { &mut beyond }) = middle;
        }
        if most == 0 && is_first {
            if self.budget_ms > 0.0 && ms(1) > self.budget_ms * TOLERANCE {
                self.too_slow = Some((self.costs.name(curve), ms(1), self.budget_ms));
            }
            self.is_full = true;
            return 1;
        }
        most
    }
}

/// The place of a walk: parts that are recorded, and pieces of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub part: usize,
    pub n_pieces: usize,
}

impl Place {
    /// Walks over parts from here until the last of `n_parts` is recorded or the frame is full. `walk` records a part; `meter`
    /// is the meter of what it records with. Returns what the last part returned, if it is recorded.
    pub fn go_on<R, T, E>(
        &mut self,
        n_parts: usize,
        is_forced: bool,
        recorder: &mut R,
        meter: impl Fn(&mut R) -> &mut Meter,
        mut walk: impl FnMut(&mut R, usize) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let mut last = None;
        while self.part < n_parts {
            meter(recorder).begin_part(self.n_pieces, is_forced);
            let result = walk(recorder, self.part)?;
            if let Some(n) = meter(recorder).end_part() {
                self.n_pieces = n;
                return Ok(None);
            }
            *self = Place { part: self.part + 1, n_pieces: 0 };
            last = Some(result);
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of ten equal dispatches of four pieces each; returns the pieces that it has.
    fn frame(meter: &mut Meter, budget_ms: f64, recorded: &mut usize) -> usize {
        meter.frame(budget_ms);
        meter.begin_part(*recorded, false);
        let n = (0..10).map(|_| meter.take(1, "kernel", 4, 4.0).len()).sum();
        *recorded = meter.end_part().unwrap_or(0);
        n
    }

    #[test]
    fn a_walk_goes_on_where_it_was_cut() {
        let mut meter = Meter::default();
        let mut recorded = 0;
        // Nothing is known: one piece. It takes half a millisecond.
        assert_eq!(frame(&mut meter, 4.0, &mut recorded), 1);
        let load = meter.end_slice();
        meter.landed(&load, 0.5);
        let mut all = 1;
        while recorded > 0 {
            let n = frame(&mut meter, 4.0, &mut recorded);
            assert!(n > 0, "every frame gets on");
            all += n;
            let load = meter.end_slice();
            meter.landed(&load, 0.5 * n as f64);
        }
        assert_eq!(all, 40, "each piece is recorded once");
        // With no budget, one piece a frame.
        assert_eq!([0; 3].map(|_| frame(&mut meter, 0.0, &mut recorded)), [1, 1, 1]);
        assert_eq!(meter.take_too_slow(), None, "whoever has no budget expects nothing");
    }

    #[test]
    fn copies_are_passed_once() {
        let mut meter = Meter::default();
        meter.frame(1.0);
        meter.begin_part(0, false);
        assert!(meter.pass());
        assert_eq!(meter.take(1, "kernel", 1, 1.0), 0..1);
        // It has a frame of its own: what follows waits.
        assert!(!meter.pass() && meter.take(2, "another", 2, 1.0).is_empty());
        assert_eq!(meter.end_part(), Some(2));
        meter.frame(1.0);
        meter.begin_part(2, false);
        assert!(!meter.pass() && meter.take(1, "kernel", 1, 1.0).is_empty(), "they are recorded");
        assert!(meter.pass());
        assert_eq!(meter.take(2, "another", 2, 1.0), 0..1);
    }

    #[test]
    fn without_a_clock_slices_grow_until_they_are_late() {
        let mut meter = Meter::default();
        let (mut recorded, mut last) = (0, 0);
        let mut most = 0;
        for _ in 0..400 {
            let n = frame(&mut meter, 4.0, &mut recorded);
            let load = meter.end_slice();
            // 0.5 ms a piece; what takes longer than a frame of 10 ms is seen two frames later.
            let in_time = 0.5 * n as f64 <= 10.0;
            meter.seen(&load, if in_time { 10.0 } else { 20.0 }, in_time);
            (most, last) = (most.max(n), n);
        }
        assert!(most >= 8, "they grow: {most} pieces");
        assert!(last >= 1);
    }
}
