//! Compares a kernel's outputs with the reference.

/// A sample of outputs, and the reference's values.
#[derive(Clone, Debug, Default)]
pub struct Check {
    got: Vec<f64>,
    want: Vec<f64>,
    eps: f64,
    n_terms: usize,
    scale: f64,
    /// The tolerance, if it is not a share of the largest value.
    absolute: Option<f64>,
}

/// Covers the few units in the last place that WGSL allows `exp`, `tanh` and division.
const C: f64 = 4.0;

impl Check {
    /// For sums of `n_terms` F32 values: the tolerance is `C · eps · sqrt(n_terms) · scale` times the largest value.
    pub(super) fn f32(n_terms: usize, scale: f64) -> Check {
        Check { eps: f64::from(f32::EPSILON), n_terms, scale, ..Check::default() }
    }

    /// The tolerance as a share of the largest value.
    pub(super) fn relative(&self) -> f64 {
        C * self.eps * (self.n_terms.max(1) as f64).sqrt() * self.scale
    }

    /// For values that may be off by `allowed`, whatever their size and their inputs' types.
    pub(super) fn absolute(allowed: f64) -> Check {
        Check { absolute: Some(allowed), ..Check::default() }
    }

    /// For values stored in F16 or BF16.
    pub(super) fn rounded_to(self, eps: f64) -> Check {
        Check { eps, ..self }
    }

    /// For products whose factors are rounded to F16, as on cooperative matrices. These errors are relative to a term,
    /// and cancel like the terms.
    pub(super) fn of_f16_inputs(self) -> Check {
        Check { n_terms: 1, ..self }.rounded_to(half::f16::EPSILON.to_f64())
    }

    pub(super) fn push(&mut self, got: f64, want: f64) {
        self.got.push(got);
        self.want.push(want);
    }

    pub(super) fn extend(&mut self, got: &[f64], want: &[f64]) {
        self.got.extend_from_slice(got);
        // A missing value counts as wrong.
        self.want.extend((0..got.len()).map(|i| want.get(i).copied().unwrap_or(f64::NAN)));
    }

    /// The largest error. `perturbation`, in units of the tolerance, is added to one output, to test that an error is
    /// noticed.
    pub(super) fn worst(&self, perturbation: f64) -> Worst {
        let largest = self.want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let allowed =
            self.absolute.filter(|_| !self.got.is_empty()).unwrap_or_else(|| self.relative() * largest);
        if !(allowed > 0.0 && allowed.is_finite()) {
            return Worst { error: f64::INFINITY, n: self.got.len(), ..Worst::default() };
        }
        let moved = self.want.len() / 2;
        let error = |(i, (got, want)): (usize, (&f64, &f64))| {
            let got = if i == moved { got + perturbation * allowed } else { *got };
            let error = (got - want).abs() / allowed;
            let error = if error.is_nan() { f64::INFINITY } else { error };
            Worst { error, got, want: *want, at: i, n: self.got.len() }
        };
        let all = self.got.iter().zip(&self.want).enumerate().map(error);
        all.reduce(|worst, one| if one.error > worst.error { one } else { worst }).unwrap_or_default()
    }
}

/// The value with the largest error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Worst {
    /// The error in units of the tolerance: above 1 it is wrong. Infinite if the value is no number, or if there is
    /// nothing to compare.
    pub error: f64,
    /// What the device computed.
    pub got: f64,
    /// The reference.
    pub want: f64,
    /// Index among the compared values.
    pub at: usize,
    /// The number of compared values.
    pub n: usize,
}

impl std::fmt::Display for Worst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Worst { error, got, want, at, n } = self;
        write!(f, "{got} instead of {want} (value {at} of {n}, {error:.1} times the tolerance)")
    }
}

#[cfg(test)]
mod tests {
    use super::Check;

    #[test]
    fn errors_are_in_units_of_rounding() {
        let mut check = Check::f32(4, 1.0);
        check.extend(&[1.0, -2.0, 0.5], &[1.0, -2.0, 0.5]);
        assert_eq!(check.worst(0.0).error, 0.0);
        assert!((check.worst(3.0).error - 3.0).abs() < 1e-6);
        let allowed = 4.0 * f64::from(f32::EPSILON) * 2.0 * 2.0;
        check.push(1.0 + 2.0 * allowed, 1.0);
        assert!((check.worst(0.0).error - 2.0).abs() < 1e-6);
        check.push(f64::NAN, 1.0);
        assert_eq!(check.worst(0.0).error, f64::INFINITY);
        assert_eq!(Check::f32(4, 1.0).worst(0.0).error, f64::INFINITY, "nothing was compared");
        let mut short = Check::f32(4, 1.0);
        short.extend(&[1.0, 1.0], &[1.0]);
        assert_eq!(short.worst(0.0).error, f64::INFINITY);
        let mut absolute = Check::absolute(0.5).of_f16_inputs();
        assert_eq!(absolute.worst(0.0).error, f64::INFINITY, "nothing was compared");
        absolute.extend(&[1e9, 0.0], &[1e9, 0.0]);
        assert_eq!((absolute.worst(0.0).error, absolute.worst(3.0).error), (0.0, 3.0));
        absolute.push(1e9, 1e9 + 1.0);
        assert_eq!(absolute.worst(0.0).error, 2.0);
    }
}
