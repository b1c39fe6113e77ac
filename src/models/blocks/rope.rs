//! Rotary position embedding: the frequencies of each scaling, as a table of cosines and sines.
//!
//! The host computes the table in f64, because a device's sine is accurate only near zero, and positions times
//! frequencies reach a hundred thousand radians.

use std::f64::consts::PI;

use serde::Deserialize;

use crate::dtype::Dtype;
use crate::gpu::{Gpu, Tensor};
use crate::models::ModelError;
use crate::ops::Rotary;

/// Positions computed and written at once.
const PIECE: usize = 1024;

/// The method for positions beyond those of the training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeType {
    /// No scaling (Su et al. 2021).
    #[default]
    Default,
    /// Positions divided by the factor (Chen et al. 2023).
    Linear,
    /// Low frequencies divided, high ones kept, blended between (Llama 3.1).
    Llama3,
    /// As `Llama3`, by the number of rotations in the original context, and with a factor on scores (Peng et al. 2023).
    Yarn,
}

/// `rope_parameters` of transformers 5, `rope_scaling` of earlier ones.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RopeScaling {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_type: Option<RopeType>,
    /// The key's earlier name. Files have either or both.
    r#type: Option<RopeType>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
}

/// The keys of a config for rotation, in both forms that exist.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Rope {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeScaling>,
}

impl Rope {
    /// A rotation with this scaling, and `theta` if that has none.
    pub fn new(scaling: Option<RopeScaling>, theta: f64) -> Rope {
        Rope { rope_theta: Some(theta), rope_parameters: scaling, ..Rope::default() }
    }

    /// Frequencies of the rotated pairs of a head in radians per position, and the factor on cosines and sines.
    ///
    /// The formulas are those of transformers' `modeling_rope_utils.py`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if a key of the scaling is missing.
    pub fn frequencies(&self, head_dim: usize, max_seq_len: usize) -> Result<(Vec<f64>, f64), ModelError> {
        let s = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).cloned().unwrap_or_default();
        let theta = s.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let partial = s.partial_rotary_factor.or(self.partial_rotary_factor).unwrap_or(1.0);
        let dim = (head_dim as f64 * partial) as usize / 2 * 2;
        if dim == 0 || dim > head_dim || theta.is_nan() || theta <= 1.0 {
            let message =
                format!("`rope_theta` {theta} with `partial_rotary_factor` {partial} rotates nothing");
            return Err(ModelError::Config { message });
        }
        let need = |value: Option<f64>, key: &str| {
            value.ok_or_else(|| ModelError::Config { message: format!("`rope_scaling` lacks `{key}`") })
        };
        let plain: Vec<f64> = (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect();
        let original = s.original_max_position_embeddings;
        match s.rope_type.or(s.r#type).unwrap_or_default() {
            RopeType::Default => Ok((plain, 1.0)),
            RopeType::Linear => {
                let factor = need(s.factor, "factor")?;
                Ok((plain.iter().map(|f| f / factor).collect(), 1.0))
            }
            RopeType::Llama3 => {
                let factor = need(s.factor, "factor")?;
                let low = need(s.low_freq_factor, "low_freq_factor")?;
                let high = need(s.high_freq_factor, "high_freq_factor")?;
                let original = need(original, "original_max_position_embeddings")?;
                let scaled = |f: f64| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < original / high {
                        f
                    } else if wavelength > original / low {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                Ok((plain.into_iter().map(scaled).collect(), 1.0))
            }
            RopeType::Yarn => {
                let original = original.unwrap_or(max_seq_len as f64);
                let factor = s.factor.unwrap_or(max_seq_len as f64 / original);
                let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let attention_factor =
                    s.attention_factor.unwrap_or_else(|| match (s.mscale, s.mscale_all_dim) {
                        (Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
                        _ => mscale(1.0),
                    });
                // The dimension that rotates `n` times within the original context.
                let turning = |n: f64| dim as f64 * (original / (n * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let mut low = turning(s.beta_fast.unwrap_or(32.0));
                let mut high = turning(s.beta_slow.unwrap_or(1.0));
                if s.truncate.unwrap_or(true) {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |(i, f): (usize, f64)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                };
                Ok((plain.into_iter().enumerate().map(blend).collect(), attention_factor))
            }
        }
    }

    /// The table for `n_positions` positions in device memory.
    ///
    /// # Errors
    /// As [`Rope::frequencies`]; [`ModelError::Weights`] if the device has no memory.
    pub fn table(
        &self,
        gpu: &Gpu,
        head_dim: usize,
        max_seq_len: usize,
        n_positions: usize,
    ) -> Result<Rotary, ModelError> {
        let (frequencies, factor) = self.frequencies(head_dim, max_seq_len)?;
        let n_rot = 2 * frequencies.len();
        let cos_sin = Tensor::zeros(gpu, "cos_sin", [n_positions, n_rot], Dtype::U32)?;
        let mut piece = Vec::with_capacity(PIECE * n_rot);
        let n_filled = if gpu.is_plan() { 0 } else { n_positions };
        for first in (0..n_filled).step_by(PIECE) {
            piece.clear();
            for pos in first..(first + PIECE).min(n_filled) {
                for f in &frequencies {
                    let (sin, cos) = (pos as f64 * f).sin_cos();
                    piece.extend([(cos * factor) as f32, (sin * factor) as f32].map(f32::to_bits));
                }
            }
            cos_sin.write(gpu, first, bytemuck::cast_slice(&piece));
        }
        Ok(Rotary { cos_sin, n_rot, interleaved: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with transformers' `ROPE_INIT_FUNCTIONS`, which computes in f32.
    fn check(config: &str, head_dim: usize, expected: &[f64], factor: f64) {
        let rope: Rope = serde_json::from_str(config).expect("config");
        let (found, found_factor) = rope.frequencies(head_dim, 512).expect("frequencies");
        assert_eq!(found.len(), head_dim / 2);
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 2e-6 * e, "{config}: {f}, expected {e}");
        }
        assert!((found_factor - factor).abs() < 1e-9, "{config}: {found_factor}, expected {factor}");
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        let linear = r#"{"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}"#;
        check(linear, 32, &[0.25, 0.14058533, 0.079056941, 0.044456985, 0.025, 0.014058532], 1.0);
        let llama3 = r#"{"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        check(llama3, 32, &[1.0, 0.44036663, 0.079403013, 0.010674638, 0.0047007538, 0.0020700551], 1.0);
        let yarn = r#"{"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "type": "yarn",
            "factor": 4.0, "original_max_position_embeddings": 128}}"#;
        let expected = [1.0, 0.49204865, 0.23717082, 0.11114246, 0.049999997, 0.021087799, 0.0079056947];
        check(yarn, 32, &expected, 1.138629436111989);
        let yarn = r#"{"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 40.0,
            "original_max_position_embeddings": 4096, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.0,
            "mscale_all_dim": 0.8, "truncate": false}}"#;
        let expected = [
            1.0,
            0.64938164,
            0.42169651,
            0.27384198,
            0.17782794,
            0.1154782,
            0.074989416,
            0.048696753,
            0.031622779,
            0.018818378,
            0.0095208623,
            0.0044297008,
            0.0017382191,
            0.00038954557,
            5.9284346e-05,
        ];
        check(yarn, 64, &expected, 1.0569662567531275);
    }

    #[test]
    fn a_part_of_a_head_can_be_rotated() {
        let rope: Rope = serde_json::from_str(r#"{"partial_rotary_factor": 0.25}"#).expect("config");
        let (found, _) = rope.frequencies(32, 512).expect("frequencies");
        assert_eq!(found.len(), 4);
        assert!((found[1] - 0.1).abs() < 1e-12, "10000^(-2/8)");
    }

    #[test]
    fn what_a_scaling_lacks_is_named() {
        let rope: Rope = serde_json::from_str(r#"{"rope_scaling": {"type": "llama3"}}"#).expect("config");
        let error = rope.frequencies(32, 512).expect_err("no factor").to_string();
        assert!(error.contains("`factor`"), "{error}");
    }
}
