//! Times of dispatches, learnt from the times of whole slices. Plain numbers, no device.

use std::collections::HashMap;

/// Share of an error that a curve takes over, once it has seen a few slices: a drift is followed within some ten
/// slices, and the noise of one slice moves little.
const GAIN: f64 = 0.15;
/// A slice that takes more than so many times what was predicted, or less than its inverse, is odd: the machine may
/// have stalled.
const ODD: f64 = 2.0;
/// So many odd slices in a row are no stall but a new speed.
const MANY_ODD: u32 = 3;
/// Step of the estimated spread, and the share of slices that may exceed it.
const SPREAD_STEP: f64 = 0.03;
const EXCEED: f64 = 0.01;
/// Spreads are kept for slices of one dispatch, of two or three, of four to seven and so on: the noise of many cancels out.
const N_SPREADS: usize = 6;
/// The spread until slices have been seen.
const FIRST_SPREAD: f64 = 1.3;

/// A part of a slice: dispatches of one kind, and their size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Taken {
    curve: usize,
    /// Size of each dispatch.
    units: f64,
    n: u32,
}

/// What a slice is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Load(Vec<Taken>);

impl Load {
    /// Whether it has no dispatch.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a dispatch.
    pub fn add(&mut self, curve: usize, units: f64) {
        match self.0.iter_mut().find(|taken| taken.curve == curve && taken.units == units) {
            Some(taken) => taken.n += 1,
            None => self.0.push(Taken { curve, units, n: 1 }),
        }
    }

    fn n_dispatches(&self) -> usize {
        self.0.iter().map(|taken| taken.n as usize).sum()
    }
}

/// The time of one kind of dispatch over its size, linear between powers of two. So a fixed part and a part that grows
/// are both found, and a size that was never seen takes what its neighbours say.
#[derive(Clone, Debug, Default)]
struct Curve {
    name: &'static str,
    /// (logarithm of the size, milliseconds), in order. Empty until something was measured.
    knots: Vec<(i32, f64)>,
    n_seen: u32,
    /// Size of the smallest piece of the last dispatch.
    piece: f64,
}

impl Curve {
    fn ms(&self, units: f64) -> Option<f64> {
        let (low, high, share) = ends(units);
        Some(self.knot(low)? * (1.0 - share) + self.knot(high)? * share)
    }

    /// The time at a knot; if none is there, the nearest one's in proportion.
    fn knot(&self, at: i32) -> Option<f64> {
        let below = self.knots.iter().rev().find(|(i, _)| *i <= at);
        let (i, ms) = below.or(self.knots.first())?;
        Some(ms * f64::from(at - i).exp2())
    }

    /// Makes the time at `units` what was measured, if nothing was.
    fn begin(&mut self, units: f64, ms: f64) {
        let (low, high, _) = ends(units);
        self.knots = [low, high].map(|i| (i, ms * f64::from(i).exp2() / units.max(1.0))).to_vec();
        self.n_seen = 1;
    }

    /// Multiplies the time at `units`.
    fn scale(&mut self, units: f64, factor: f64) {
        let (low, high, _) = ends(units);
        for (at, ms) in [low, high].map(|at| (at, self.knot(at))) {
            if let Some(ms) = ms {
                let place = self.knots.partition_point(|(i, _)| *i < at);
                match self.knots.get_mut(place).filter(|(i, _)| *i == at) {
                    Some(knot) => knot.1 = ms * factor,
                    None => self.knots.insert(place, (at, ms * factor)),
                }
            }
        }
    }
}

/// The knots around a size, and its share of the way between them.
fn ends(units: f64) -> (i32, i32, f64) {
    let units = units.max(1.0);
    let low = units.log2().floor();
    (low as i32, low as i32 + 1, units / low.exp2() - 1.0)
}

/// The times of all kinds of dispatches of a recorder.
#[derive(Clone, Debug)]
pub(crate) struct Costs {
    index: HashMap<u64, usize>,
    curves: Vec<Curve>,
    /// What 99 of 100 slices stay below, as a multiple of what was predicted, for each number of dispatches.
    spreads: [f64; N_SPREADS],
    /// Odd slices in a row.
    n_odd: u32,
}

impl Default for Costs {
    fn default() -> Self {
        Costs { index: HashMap::new(), curves: Vec::new(), spreads: [FIRST_SPREAD; N_SPREADS], n_odd: 0 }
    }
}

impl Costs {
    /// The curve of dispatches with this key; `piece` is the size of the smallest part of the next one.
    pub fn curve(&mut self, key: u64, name: &'static str, piece: f64) -> usize {
        let curves = &mut self.curves;
        let at = *self.index.entry(key).or_insert_with(|| {
            curves.push(Curve { name, ..Curve::default() });
            curves.len() - 1
        });
        curves[at].piece = piece;
        at
    }

    /// The predicted time in milliseconds; `None` if no such dispatch was measured.
    pub fn ms(&self, curve: usize, units: f64) -> Option<f64> {
        self.curves[curve].ms(units)
    }

    /// Name of the curve's kernel.
    pub fn name(&self, curve: usize) -> &'static str {
        self.curves[curve].name
    }

    /// The longest time of a part of a dispatch that cannot be cut, in milliseconds. `None` if nothing was measured.
    pub fn longest_piece(&self) -> Option<f64> {
        self.curves.iter().filter_map(|curve| curve.ms(curve.piece)).reduce(f64::max)
    }

    /// What 99 of 100 slices of `n` dispatches stay below, as a multiple of the predicted time.
    pub fn spread(&self, n: usize) -> f64 {
        self.spreads[spread_index(n)]
    }

    /// The predicted time of a slice in milliseconds; `None` if something of it was never measured.
    pub fn predict(&self, load: &Load) -> Option<f64> {
        load.0.iter().map(|taken| Some(self.ms(taken.curve, taken.units)? * f64::from(taken.n))).sum()
    }

    /// Learns from a slice that took `ms`.
    pub fn learn(&mut self, load: &Load, ms: f64) {
        if load.is_empty() || !ms.is_finite() || ms < 0.0 {
            return;
        }
        let each = |taken: &Taken| self.ms(taken.curve, taken.units).map(|ms| ms * f64::from(taken.n));
        let times: Vec<Option<f64>> = load.0.iter().map(each).collect();
        let predicted: f64 = times.iter().flatten().sum();
        let n_new: u32 =
            load.0.iter().zip(&times).filter(|(_, t)| t.is_none()).map(|(taken, _)| taken.n).sum();
        if n_new > 0 {
            // New kinds are recorded alone where they can be. Else they share what the others leave.
            let rest = (ms - predicted).max(0.05 * ms) / f64::from(n_new);
            for (taken, _) in load.0.iter().zip(&times).filter(|(_, time)| time.is_none()) {
                self.curves[taken.curve].begin(taken.units, rest);
            }
            return;
        }
        if predicted <= 0.0 {
            return;
        }
        let ratio = ms / predicted;
        let spread = &mut self.spreads[spread_index(load.n_dispatches())];
        *spread += SPREAD_STEP * if ratio > *spread { 1.0 - EXCEED } else { -EXCEED };
        *spread = spread.clamp(1.0, ODD);
        let is_odd = !(1.0 / ODD..=ODD).contains(&ratio);
        self.n_odd = if is_odd { self.n_odd + 1 } else { 0 };
        let ratio = match self.n_odd {
            0 => ratio,
            n if n < MANY_ODD => ratio.clamp(1.0 / ODD, ODD).sqrt(),
            _ => ratio.min(2.0 * ODD),
        };
        // The smallest change that explains the slice: larger parts take more of the error, which is likelier theirs.
        let squares: f64 = times.iter().flatten().map(|time| time * time).sum();
        for (taken, time) in load.0.iter().zip(times) {
            let curve = &mut self.curves[taken.curve];
            let gain = GAIN.max(1.0 / f64::from(curve.n_seen + 1));
            let share = predicted * time.unwrap_or_default() / squares.max(f64::MIN_POSITIVE);
            curve.scale(taken.units, 1.0 + (gain * (ratio - 1.0) * share).clamp(-0.5, 1.0));
            curve.n_seen = curve.n_seen.saturating_add(1);
        }
    }
}

fn spread_index(n: usize) -> usize {
    (n.max(1).ilog2() as usize).min(N_SPREADS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(costs: &mut Costs, parts: &[(u64, f64)]) -> Load {
        let mut load = Load::default();
        for (key, units) in parts {
            load.add(costs.curve(*key, "kernel", *units), *units);
        }
        load
    }

    fn predicted(costs: &mut Costs, key: u64, units: f64) -> f64 {
        let curve = costs.curve(key, "kernel", units);
        costs.ms(curve, units).expect("it was measured")
    }

    /// Noise between 1 − `by` and 1 + `by`.
    fn noise(state: &mut u64, by: f64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1.0 + by * ((*state >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
    }

    #[test]
    fn a_fixed_part_and_one_that_grows_are_both_found() {
        let (mut costs, mut state) = (Costs::default(), 1);
        let truth = |depth: f64| 0.3 + 0.002 * depth;
        for i in 0..4000u32 {
            let depth = f64::from(1 << (i % 11)) * (1.0 + f64::from(i % 7) / 7.0);
            let load = load(&mut costs, &[(1, depth)]);
            costs.learn(&load, truth(depth) * noise(&mut state, 0.33));
        }
        for depth in [1.0, 3.0, 50.0, 300.0, 700.0, 1900.0] {
            let found = predicted(&mut costs, 1, depth);
            assert!((found / truth(depth) - 1.0).abs() < 0.3, "{depth}: {found}, expected {}", truth(depth));
        }
    }

    #[test]
    fn parts_are_told_apart_from_sums() {
        let (mut costs, mut state) = (Costs::default(), 2);
        let truth = [0.2, 3.0, 0.05];
        for i in 0..3000u64 {
            // Each is measured alone once, with an error of half.
            let load = match i {
                0..3 => load(&mut costs, &[(i, 64.0)]),
                _ if i % 3 == 0 => load(&mut costs, &[(0, 64.0), (0, 64.0), (2, 64.0)]),
                _ => load(&mut costs, &[(0, 64.0), (1, 64.0), (2, 64.0), (2, 64.0)]),
            };
            let sum: f64 = load.0.iter().map(|t| truth[t.curve] * f64::from(t.n)).sum();
            costs.learn(&load, sum * if i < 3 { 1.5 } else { noise(&mut state, 0.2) });
        }
        let found = [0, 1].map(|key| predicted(&mut costs, key, 64.0));
        assert!(
            (found[0] / truth[0] - 1.0).abs() < 0.25 && (found[1] / truth[1] - 1.0).abs() < 0.15,
            "{found:?}"
        );
    }

    #[test]
    fn a_stall_changes_little_and_a_new_speed_is_followed() {
        let mut costs = Costs::default();
        for _ in 0..50 {
            let load = load(&mut costs, &[(1, 8.0)]);
            costs.learn(&load, 1.0);
        }
        let stalled = load(&mut costs, &[(1, 8.0)]);
        costs.learn(&stalled, 500.0);
        assert!(predicted(&mut costs, 1, 8.0) < 1.1, "one stall");
        for _ in 0..12 {
            costs.learn(&stalled, 4.0);
        }
        let found = predicted(&mut costs, 1, 8.0);
        assert!((3.0..4.5).contains(&found), "a quarter of the speed: {found}");
        for _ in 0..40 {
            costs.learn(&stalled, 1.0);
        }
        let found = predicted(&mut costs, 1, 8.0);
        assert!((0.9..1.2).contains(&found), "and back: {found}");
    }

    #[test]
    fn a_stall_in_the_first_measurement_is_forgotten() {
        let mut costs = Costs::default();
        for i in 0..40 {
            let load = load(&mut costs, &[(1, 8.0)]);
            costs.learn(&load, if i == 0 { 60.0 } else { 1.0 });
        }
        let found = predicted(&mut costs, 1, 8.0);
        assert!((0.9..1.3).contains(&found), "{found}");
    }

    #[test]
    fn the_spread_is_that_of_the_noise() {
        let (mut costs, mut state) = (Costs::default(), 3);
        for _ in 0..20_000 {
            for n in [1, 16] {
                let load = load(&mut costs, &vec![(1, 8.0); n]);
                let sum: f64 = (0..n).map(|_| noise(&mut state, 0.33)).sum();
                costs.learn(&load, sum);
            }
        }
        assert!((1.2..1.6).contains(&costs.spread(1)), "{}", costs.spread(1));
        assert!((1.02..1.25).contains(&costs.spread(16)), "{}", costs.spread(16));
    }
}
