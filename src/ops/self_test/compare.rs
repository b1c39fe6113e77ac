//! Compares two variants' outputs.

use crate::dtype::Dtype;

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// The outputs differ by no more than rounding.
    Same,
    /// They differ, by so many tolerances; `None` if the variant's outputs are not finite.
    Differs(Option<f64>),
    /// The portable variant's outputs say nothing: they are not finite, or all zero.
    Unclear,
}

impl Verdict {
    /// The verdict on several outputs: the largest difference, else whether one says nothing.
    pub fn worst(all: Vec<Verdict>) -> Verdict {
        let rank = |verdict: &Verdict| match verdict {
            Verdict::Same => (0, 0.0),
            Verdict::Unclear => (1, 0.0),
            Verdict::Differs(error) => (2, error.unwrap_or(f64::INFINITY)),
        };
        let worst = all.into_iter().max_by(|a, b| rank(a).partial_cmp(&rank(b)).expect("no NaN"));
        worst.unwrap_or(Verdict::Unclear)
    }
}

/// How far two ways to compute the same sums may differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    eps: f64,
    n_terms: usize,
    scale: f64,
}

/// Covers the few units in the last place that WGSL allows `exp`, `tanh` and division, in both variants.
const C: f64 = 8.0;
/// Above this, a float is a mark: log-probabilities of tokens that are filtered out, logits of forbidden ones.
const MARK: f64 = 1e29;

impl Tolerance {
    /// For sums of `n_terms` F32 values: `C · eps · sqrt(n_terms) · scale` times the largest output.
    pub fn new(n_terms: usize, scale: f64) -> Tolerance {
        Tolerance { eps: f64::from(f32::EPSILON), n_terms, scale }
    }

    /// For products whose factors are rounded to F16. These errors are relative to a term, and cancel like the terms.
    pub fn of_f16(self) -> Tolerance {
        Tolerance { eps: half::f16::EPSILON.to_f64(), n_terms: 1, ..self }
    }

    fn allowed(self, largest: f64) -> f64 {
        C * self.eps * (self.n_terms.max(1) as f64).sqrt() * self.scale * largest
    }
}

/// Compares the bytes of an output. Integers must be equal.
pub(super) fn compare(tolerance: Tolerance, dtype: Dtype, got: &[u8], want: &[u8]) -> Verdict {
    let floats = |bytes: &[u8]| -> Vec<f64> {
        match dtype {
            Dtype::F16 => {
                bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
            }
            _ => bytes
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
        }
    };
    let (got, want) = match dtype {
        Dtype::F32 | Dtype::F16 => (floats(got), floats(want)),
        _ if got == want => return Verdict::Same,
        _ => return Verdict::Differs(None),
    };
    // What is stored in F16 may be rounded to either side.
    let tolerance = if dtype == Dtype::F16 { tolerance.of_f16() } else { tolerance };
    if want.iter().any(|x| !x.is_finite()) {
        return Verdict::Unclear;
    }
    let largest = want.iter().map(|x| x.abs()).filter(|x| *x < MARK).fold(0.0, f64::max);
    let allowed = tolerance.allowed(largest);
    if allowed == 0.0 {
        return Verdict::Unclear;
    }
    let error = |(got, want): (&f64, &f64)| if got == want { 0.0 } else { (got - want).abs() / allowed };
    if got.iter().any(|x| !x.is_finite()) {
        return Verdict::Differs(None);
    }
    let error = got.iter().zip(&want).map(error).fold(0.0, f64::max);
    if error > 1.0 { Verdict::Differs(Some(error)) } else { Verdict::Same }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(got: &[f32], want: &[f32]) -> Verdict {
        compare(Tolerance::new(4, 1.0), Dtype::F32, bytemuck::cast_slice(got), bytemuck::cast_slice(want))
    }

    #[test]
    fn differences_are_in_units_of_rounding() {
        let allowed = (C * 2.0 * 4.0) as f32 * f32::EPSILON;
        assert_eq!(of(&[1.0, -4.0], &[1.0, -4.0]), Verdict::Same);
        assert_eq!(of(&[1.0 + 0.9 * allowed, -4.0], &[1.0, -4.0]), Verdict::Same);
        let Verdict::Differs(Some(error)) = of(&[1.0 + 3.0 * allowed, -4.0], &[1.0, -4.0]) else {
            panic!("it is noticed")
        };
        assert!((error - 3.0).abs() < 0.1, "{error}");
        assert_eq!(of(&[f32::NAN, -4.0], &[1.0, -4.0]), Verdict::Differs(None));
        // A mark is not a scale, and is either there or not.
        assert_eq!(of(&[-1e30, 4.0], &[-1e30, 4.0]), Verdict::Same);
        assert!(matches!(of(&[-1e30, 4.01], &[-1e30, 4.0]), Verdict::Differs(Some(_))));
        assert!(matches!(of(&[3.0, 4.0], &[-1e30, 4.0]), Verdict::Differs(Some(_))));
    }

    #[test]
    fn a_portable_variant_that_says_nothing_condemns_nobody() {
        assert_eq!(of(&[1.0, 2.0], &[0.0, 0.0]), Verdict::Unclear);
        assert_eq!(of(&[1.0, 2.0], &[1.0, f32::INFINITY]), Verdict::Unclear);
        assert_eq!(Verdict::worst(vec![]), Verdict::Unclear);
        let all = vec![Verdict::Same, Verdict::Differs(Some(7.0)), Verdict::Unclear];
        assert_eq!(Verdict::worst(all), Verdict::Differs(Some(7.0)));
    }

    #[test]
    fn integers_are_equal_or_not() {
        let of = |got: [u32; 2]| {
            let [got, want] = [got, [7, 9]].map(|words| bytemuck::cast_vec::<u32, u32>(words.to_vec()));
            compare(
                Tolerance::new(1, 1.0),
                Dtype::U32,
                bytemuck::cast_slice(&got),
                bytemuck::cast_slice(&want),
            )
        };
        assert_eq!((of([7, 9]), of([7, 8])), (Verdict::Same, Verdict::Differs(None)));
    }
}
