//! Statistics.

/// The `q`-quantile of `sorted`; 0 if it is empty.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((q * last as f64).round() as usize).copied().unwrap_or(0.0)
}

pub(super) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Mean and standard deviation of a sample (divided by n − 1; 0 for one value).
pub(super) fn mean_and_sigma(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_deviation() {
        let values = sorted(vec![3.0, 1.0, 2.0, 5.0, 4.0]);
        assert_eq!([0.0, 0.5, 1.0].map(|q| quantile(&values, q)), [1.0, 3.0, 5.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
        let (mean, sigma) = mean_and_sigma(&values);
        assert!((mean - 3.0).abs() < 1e-12 && (sigma - 2.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_sigma(&[7.0]), (7.0, 0.0));
    }
}
