//! Rotary position embedding: the frequencies of each scaling, as a table of cosines and sines.
//!
//! The host computes the table in f64, because a device's sine is accurate only near zero, and positions times
//! frequencies reach a hundred thousand radians.

use std::f64::consts::PI;
use std::ops::RangeInclusive;

use crate::dtype::Dtype;
use crate::gpu::{Gpu, Tensor};
use crate::models::ModelError;
use crate::models::settings::{ROWS, Read, Settings};
use crate::ops::Rotary;

/// Positions computed and written at once.
const PIECE: usize = 1024;

/// The base of the frequencies. Published models have 10 thousand to 100 million.
pub(crate) const THETA: RangeInclusive<f64> = 2.0..=1e15;
/// The factor by which a context is extended. Published models have 2 to 128.
const FACTOR: RangeInclusive<f64> = 0.01..=1e6;
/// Numbers of rotations within the original context, and factors between them.
const ROTATIONS: RangeInclusive<f64> = 1e-3..=1e6;
/// Factors on scores.
const SCORES: RangeInclusive<f64> = 0.0..=1e3;

/// The method for positions beyond those of the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RopeType {
    /// No scaling (Su et al. 2021).
    Default,
    /// Positions divided by the factor (Chen et al. 2023).
    Linear,
    /// As `Default` within the trained length. Beyond it, the frequencies would depend on the length of each text.
    Dynamic,
    /// Low frequencies divided, high ones kept, blended between (Llama 3.1).
    Llama3,
    /// Each frequency divided by a factor of its own: how GGUF files have `Llama3`.
    FrequencyFactors,
    /// As `Llama3`, by the number of rotations in the original context, and with a factor on scores (Peng et al. 2023).
    Yarn,
    /// Each frequency divided by a factor of its own, of two lists: one for the original context, one for a longer one
    /// (Ding et al. 2024).
    LongRope,
}

impl RopeType {
    /// By their names. `su` is the earlier one of `longrope`.
    const NAMES: [(&str, RopeType); 8] = [
        ("default", RopeType::Default),
        ("linear", RopeType::Linear),
        ("dynamic", RopeType::Dynamic),
        ("llama3", RopeType::Llama3),
        ("yarn", RopeType::Yarn),
        ("frequency_factors", RopeType::FrequencyFactors),
        ("longrope", RopeType::LongRope),
        ("su", RopeType::LongRope),
    ];
}

/// What an object with the keys of a scaling leaves to those around it, and what those leave to a family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    /// The model's maximum number of positions.
    pub trained: usize,
    /// That before the scaling. It counts more than the object's.
    pub original: Option<usize>,
    /// The base of the frequencies, if the object has none.
    pub theta: f64,
    /// The part of a head that is rotated, if the object has none.
    pub partial: f64,
}

/// The rotation that a config describes.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Frequencies of the rotated pairs of a head, in radians per position.
    pub frequencies: Vec<f64>,
    /// The factor on cosines and sines.
    pub factor: f64,
    /// The most positions for which the frequencies hold. Default: any number.
    limit: Option<usize>,
    /// The original context, and the frequencies for a longer one.
    long: Option<(usize, Vec<f64>)>,
}

impl Rope {
    /// Reads the keys in both forms that exist: `rope_parameters` of transformers 5, or `rope_scaling` with
    /// `rope_theta` of earlier versions.
    pub(crate) fn read(s: &Settings<'_>, head_dim: usize, default: Around) -> Read<Rope> {
        let theta = s.real("rope_theta", THETA, default.theta)?;
        let scaling = Rope::scaling(s)?;
        let partial = s.real("partial_rotary_factor", 0.0..=1.0, default.partial)?;
        let original = s.some_whole("original_max_position_embeddings", ROWS, default.original)?;
        match scaling {
            Some(scaling) => {
                let around = Around { trained: default.trained, original, theta, partial };
                Rope::scaled(&scaling, head_dim, around)
            }
            None => Rope::plain(head_dim, theta, partial)
                .ok_or_else(|| s.wrong_value("partial_rotary_factor", partial, rotates(head_dim))),
        }
    }

    /// The object with the keys of the scaling, if there is one.
    pub(crate) fn scaling<'a>(s: &Settings<'a>) -> Read<Option<Settings<'a>>> {
        // transformers 5 takes `rope_scaling`, if it is there and not empty.
        let earlier = s.object("rope_scaling")?.filter(|scaling| scaling.entries().next().is_some());
        match earlier {
            Some(scaling) => Ok(Some(scaling)),
            None => s.object("rope_parameters"),
        }
    }

    /// Reads the rotation of the layers of one type: from the object `layers` in `rope_parameters` of transformers 5, and
    /// from `earlier`, an object of earlier versions whose keys count more, but which has no base.
    pub(crate) fn of_layers(
        s: &Settings<'_>,
        layers: &str,
        earlier: Option<Settings<'_>>,
        head_dim: usize,
        around: Around,
    ) -> Read<Rope> {
        let own = match s.object("rope_parameters")? {
            Some(all) => all.object(layers)?,
            None => None,
        };
        let theta = match &own {
            Some(own) => own.real("rope_theta", THETA, around.theta)?,
            None => around.theta,
        };
        match earlier.or(own) {
            Some(scaling) => Rope::scaled(&scaling, head_dim, Around { theta, ..around }),
            None => Ok(Rope::plain(head_dim, theta, around.partial).expect("heads have 4 elements or more")),
        }
    }

    /// Reads an object with the keys of a scaling. The formulas are those of transformers' `modeling_rope_utils.py`.
    pub(crate) fn scaled(s: &Settings<'_>, head_dim: usize, around: Around) -> Read<Rope> {
        let trained = around.trained;
        let theta = s.real("rope_theta", THETA, around.theta)?;
        let partial = s.real("partial_rotary_factor", 0.0..=1.0, around.partial)?;
        let Some(plain) = Rope::plain(head_dim, theta, partial) else {
            return Err(s.wrong_value("partial_rotary_factor", partial, rotates(head_dim)));
        };
        let need = |key: &str, range: RangeInclusive<f64>| {
            let missing = || s.wrong(key, format!("a number from {} to {}", range.start(), range.end()));
            s.some_real(key, range.clone())?.ok_or_else(missing)
        };
        // The second is the key's earlier name. Files have either or both.
        let kind = match s.some_one_of("rope_type", &RopeType::NAMES)? {
            Some(kind) => kind,
            None => s.some_one_of("type", &RopeType::NAMES)?.unwrap_or(RopeType::Default),
        };
        let kind = match kind {
            // Another name that early files have for it.
            RopeType::Yarn if s.has("long_factor") => RopeType::LongRope,
            kind => kind,
        };
        let original = s.some_whole("original_max_position_embeddings", ROWS, None)?;
        let original = around.original.or(original).unwrap_or(trained) as f64;
        match kind {
            RopeType::Default => Ok(plain),
            RopeType::Linear => {
                let factor = need("factor", FACTOR)?;
                Ok(plain.map(|_, f| f / factor))
            }
            RopeType::Dynamic => {
                need("factor", FACTOR)?;
                Ok(Rope { limit: Some(trained), ..plain })
            }
            RopeType::Llama3 => {
                let factor = need("factor", FACTOR)?;
                let low = need("low_freq_factor", ROTATIONS)?;
                let high = need("high_freq_factor", ROTATIONS)?;
                if high <= low {
                    let expected = format!("a number above `low_freq_factor`, which is {low}");
                    return Err(s.wrong("high_freq_factor", expected));
                }
                Ok(plain.map(|_, f| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength < original / high {
                        f
                    } else if wavelength > original / low {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                }))
            }
            RopeType::FrequencyFactors => plain.divided(s, "frequency_factors"),
            RopeType::LongRope => {
                let factor = s.some_real("factor", FACTOR)?.unwrap_or(trained as f64 / original);
                let on_scores = s.some_real("attention_factor", SCORES)?.unwrap_or_else(|| {
                    let longer =
                        if factor > 1.0 && original > 1.0 { factor.ln() / original.ln() } else { 0.0 };
                    (1.0 + longer).sqrt()
                });
                let long = plain.clone().divided(s, "long_factor")?.frequencies;
                let short = plain.divided(s, "short_factor")?;
                Ok(Rope { factor: on_scores, long: Some((original as usize, long)), ..short })
            }
            RopeType::Yarn => {
                let factor = s.some_real("factor", FACTOR)?.unwrap_or(trained as f64 / original);
                let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let (m, all) = (s.some_real("mscale", SCORES)?, s.some_real("mscale_all_dim", SCORES)?);
                let on_scores = s.some_real("attention_factor", SCORES)?.unwrap_or_else(|| match (m, all) {
                    (Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
                    _ => mscale(1.0),
                });
                let fast = s.real("beta_fast", ROTATIONS, 32.0)?;
                let slow = s.real("beta_slow", ROTATIONS, 1.0)?;
                if fast < slow {
                    let expected = format!("at least `beta_slow`, which is {slow}");
                    return Err(s.wrong_value("beta_fast", fast, expected));
                }
                // The dimension that rotates `n` times within the original context.
                let dim = (head_dim as f64 * partial).floor();
                let turning = |n: f64| dim * (original / (n * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (turning(fast), turning(slow));
                if s.flag("truncate", true)? {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blended = plain.map(|i, f| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                });
                Ok(Rope { factor: on_scores, ..blended })
            }
        }
    }

    /// A rotation with no scaling of the first `partial` of a head's elements; `None` if that is not even a pair.
    pub(crate) fn plain(head_dim: usize, theta: f64, partial: f64) -> Option<Rope> {
        let dim = (head_dim as f64 * partial) as usize;
        // Of an odd number, the last one is rotated with the element after it, as in transformers.
        let frequencies = (0..dim.div_ceil(2)).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect();
        (dim > 1).then_some(Rope { frequencies, factor: 1.0, limit: None, long: None })
    }

    /// Each frequency divided by its number in the list `key`.
    fn divided(self, s: &Settings<'_>, key: &str) -> Read<Rope> {
        let n = self.frequencies.len();
        let expected = format!("a list of {n} numbers from {} to {}", FACTOR.start(), FACTOR.end());
        let factors: Option<Vec<f64>> = s.of_type(key, &expected)?;
        match factors.filter(|all| all.len() == n && all.iter().all(|x| FACTOR.contains(x))) {
            Some(factors) => Ok(self.map(|i, f| f / factors[i])),
            None => Err(s.wrong(key, expected)),
        }
    }

    fn map(self, scaled: impl Fn(usize, f64) -> f64) -> Rope {
        let frequencies = self.frequencies.iter().enumerate().map(|(i, f)| scaled(i, *f)).collect();
        Rope { frequencies, ..self }
    }

    /// The frequencies of a table for `n_positions`. With two lists of factors they depend on it: the keys in the cache
    /// stay as they were rotated, however long a text becomes. llama.cpp and vLLM choose by the length of the context
    /// too; transformers chooses anew for each text, and computes it again when it grows beyond the original context.
    fn frequencies_of(&self, n_positions: usize) -> &[f64] {
        match &self.long {
            Some((original, long)) if n_positions > *original => long,
            _ => &self.frequencies,
        }
    }

    /// The table for `n_positions` positions in device memory.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] if the frequencies do not hold for so many positions; [`ModelError::Weights`] if the
    /// device has no memory.
    pub fn table(&self, gpu: &Gpu, n_positions: usize) -> Result<Rotary, ModelError> {
        if let Some(limit) = self.limit.filter(|limit| n_positions > *limit) {
            return Err(ModelError::Unsupported {
                key: "rope_type",
                found: "dynamic".into(),
                expected: format!("another one for a context of {n_positions}: it holds up to {limit}"),
            });
        }
        let frequencies = self.frequencies_of(n_positions);
        let n_rot = 2 * frequencies.len();
        let cos_sin = Tensor::zeros(gpu, "cos_sin", [n_positions, n_rot], Dtype::U32)?;
        let mut piece = Vec::with_capacity(PIECE * n_rot);
        let n_filled = if gpu.is_plan() { 0 } else { n_positions };
        for first in (0..n_filled).step_by(PIECE) {
            piece.clear();
            for pos in first..(first + PIECE).min(n_filled) {
                for f in frequencies {
                    let (sin, cos) = (pos as f64 * f).sin_cos();
                    piece.extend([cos, sin].map(|x| ((x * self.factor) as f32).to_bits()));
                }
            }
            cos_sin.write(gpu, first, bytemuck::cast_slice(&piece));
        }
        Ok(Rotary { cos_sin, n_rot, interleaved: false, temperature: None })
    }
}

/// What `partial_rotary_factor` must be.
fn rotates(head_dim: usize) -> String {
    format!("a number that rotates at least 2 of the {head_dim} elements of a head")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::settings::SettingError;

    fn read(config: &str, head_dim: usize) -> Result<Rope, SettingError> {
        let default = Around { trained: 512, original: None, theta: 10_000.0, partial: 1.0 };
        Rope::read(&Settings::parse(config).expect("an object"), head_dim, default)
    }

    /// Compares with transformers' `ROPE_INIT_FUNCTIONS`, which computes in f32.
    fn check(config: &str, head_dim: usize, expected: &[f64], factor: f64) {
        let found = read(config, head_dim).expect("a rotation");
        assert_eq!(found.frequencies.len(), head_dim / 2);
        for (f, e) in found.frequencies.iter().zip(expected) {
            assert!((f - e).abs() < 2e-6 * e, "{config}: {f}, expected {e}");
        }
        assert!((found.factor - factor).abs() < 1e-9, "{config}: {}, expected {factor}", found.factor);
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

    /// As `_compute_longrope_parameters` has them.
    #[test]
    fn longrope_has_frequencies_for_a_longer_context() {
        let config = |more: &str| {
            format!(
                r#"{{"original_max_position_embeddings": 128, "rope_scaling": {{{more}
                "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 9.0, 27.0]}}}}"#
            )
        };
        let plain = [1.0, 0.1, 0.01, 0.001];
        let divided = |by: [f64; 4]| std::array::from_fn::<f64, 4, _>(|i| plain[i] / by[i]);
        let (short, long) = (divided([1.0, 1.5, 2.0, 2.5]), divided([1.0, 3.0, 9.0, 27.0]));
        for (kind, factor) in [
            (r#""type": "longrope","#, 1.1338934190276817),
            (r#""rope_type": "su", "original_max_position_embeddings": 64,"#, 1.1338934190276817),
            (r#""type": "yarn","#, 1.1338934190276817),
            (r#""type": "longrope", "factor": 8,"#, 1.1952286093343936),
            (r#""type": "longrope", "factor": 0.5,"#, 1.0),
            (r#""type": "longrope", "attention_factor": 1.25,"#, 1.25),
        ] {
            check(&config(kind), 8, &short, factor);
            let found = read(&config(kind), 8).expect("a rotation");
            for (n_positions, expected) in [(1, &short), (128, &short), (129, &long), (512, &long)] {
                let found = found.frequencies_of(n_positions);
                assert!(
                    found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12),
                    "{kind} {n_positions}"
                );
            }
        }
    }

    #[test]
    fn the_original_length_is_the_trained_one_if_no_key_has_it() {
        let llama3 = |around: &str, within: &str| {
            let config = format!(
                r#"{{{around} "rope_scaling": {{{within} "rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0}}}}"#
            );
            read(&config, 32).expect("a rotation").frequencies
        };
        let key = |n: usize| format!(r#""original_max_position_embeddings": {n},"#);
        assert_eq!(llama3("", ""), llama3("", &key(512)));
        assert_eq!(llama3(&key(64), &key(512)), llama3("", &key(64)));
        assert_ne!(llama3("", ""), llama3("", &key(64)));
    }

    #[test]
    fn a_part_of_a_head_can_be_rotated() {
        let found = read(r#"{"partial_rotary_factor": 0.25}"#, 32).expect("a rotation").frequencies;
        assert_eq!(found.len(), 4);
        assert!((found[1] - 0.1).abs() < 1e-12, "10000^(-2/8)");
        let odd = read(r#"{"partial_rotary_factor": 0.75}"#, 12).expect("a rotation").frequencies;
        assert!(odd.len() == 5 && (odd[4] - 10_000f64.powf(-8.0 / 9.0)).abs() < 1e-12, "{odd:?}");
        let error = read(r#"{"partial_rotary_factor": 0.01}"#, 32).expect_err("no pair").to_string();
        assert!(error.contains("`partial_rotary_factor` is `0.01`, expected"), "{error}");
    }

    #[test]
    fn dynamic_scaling_is_plain_within_the_trained_length() {
        let plain = read("{}", 32).expect("a rotation");
        let dynamic = r#"{"rope_scaling": {"type": "dynamic", "factor": 4.0}}"#;
        let dynamic = read(dynamic, 32).expect("a rotation");
        assert_eq!((&dynamic.frequencies, dynamic.factor), (&plain.frequencies, 1.0));
        assert_eq!((dynamic.limit, plain.limit), (Some(512), None));
    }

    #[test]
    fn what_a_scaling_lacks_is_named() {
        let error = |scaling: &str| {
            let config = format!(r#"{{"rope_scaling": {scaling}}}"#);
            read(&config, 32).expect_err(scaling).to_string()
        };
        for (scaling, key) in [
            (r#"{"type": "llama3"}"#, "rope_scaling.factor` is missing"),
            (r#"{"type": "llama3", "factor": 8, "low_freq_factor": 1}"#, "high_freq_factor` is missing"),
            (
                r#"{"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}"#,
                "high_freq_factor` is `4`, expected a number above `low_freq_factor`, which is 4",
            ),
            (r#"{"type": "linear", "factor": 0}"#, "factor` is `0`, expected a number from 0.01 to 1000000"),
            (r#"{"type": "linear", "factor": -2.0}"#, "factor` is `-2.0`, expected"),
            (r#"{"type": "linear", "factor": 1e300}"#, "factor` is `1e300`, expected"),
            (
                r#"{"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2}"#,
                "beta_fast` is `1`, expected",
            ),
            (r#"{"type": "mrope", "factor": 4}"#, "rope_scaling.type` is `mrope`, expected `default`"),
            (
                r#"{"type": "longrope"}"#,
                "long_factor` is missing, expected a list of 16 numbers from 0.01 to",
            ),
            (r#"{"type": "su", "long_factor": [1, 2]}"#, "long_factor` is `[1, 2]`, expected a list of 16"),
            (
                r#"{"type": "longrope", "long_factor": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1], "short_factor": [0]}"#,
                "short_factor` is `[0]`, expected a list of 16 numbers",
            ),
            (r#"{"rope_type": 4}"#, "rope_type` is `4`, expected"),
            ("[]", "`rope_scaling` is `[]`, expected an object"),
        ] {
            assert!(error(scaling).contains(key), "{scaling}: {}", error(scaling));
        }
    }
}
