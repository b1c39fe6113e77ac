//! Log-mel frames in f64 by the definition, after `whisper/audio.py` and `librosa.filters.mel`.

use std::f64::consts::PI;

const N_FFT: usize = 400;
const HOP: usize = 160;
const RATE: f64 = 16000.0;

/// Deliberate errors, for tests of the comparison.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    SymmetricWindow,
    ZerosAtStart,
    HtkScale,
    NoNorm,
    HopOfOneMore,
}

/// The first `n_frames` frames `[n_frames, n_mels]` of `samples` followed by zeros.
pub fn log_mel(samples: &[f32], n_mels: usize, n_frames: usize, fault: Fault) -> Vec<f64> {
    let period = if fault == Fault::SymmetricWindow { N_FFT - 1 } else { N_FFT };
    let hop = if fault == Fault::HopOfOneMore { HOP + 1 } else { HOP };
    let sample = |at: i64| {
        let at = if at < 0 && fault == Fault::ZerosAtStart { usize::MAX } else { at.unsigned_abs() as usize };
        samples.get(at).map_or(0.0, |value| f64::from(*value))
    };
    let filters = filters(n_mels, fault);
    let mut logs = Vec::new();
    for t in 0..n_frames {
        let mut power = vec![0.0; N_FFT / 2 + 1];
        for (k, power) in power.iter_mut().enumerate() {
            let (mut re, mut im) = (0.0, 0.0);
            for i in 0..N_FFT {
                let hann = 0.5 - 0.5 * (2.0 * PI * i as f64 / period as f64).cos();
                let x = hann * sample((t * hop + i) as i64 - N_FFT as i64 / 2);
                // Reduced first, so that the angle is exact.
                let angle = 2.0 * PI * ((i * k) % N_FFT) as f64 / N_FFT as f64;
                re += x * angle.cos();
                im -= x * angle.sin();
            }
            *power = re * re + im * im;
        }
        for filter in &filters {
            let mel: f64 = filter.iter().zip(&power).map(|(w, p)| w * p).sum();
            logs.push(mel.max(1e-10).log10());
        }
    }
    let top = logs.iter().fold(f64::MIN, |top, value| top.max(*value));
    logs.iter().map(|value| (value.max(top - 8.0) + 4.0) / 4.0).collect()
}

/// `[n_mels][n_bins]`.
fn filters(n_mels: usize, fault: Fault) -> Vec<Vec<f64>> {
    let to_hz = |mel: f64| match fault {
        Fault::HtkScale => 700.0 * (10f64.powf(mel / 2595.0) - 1.0),
        _ if mel >= 15.0 => 1000.0 * 6.4f64.powf((mel - 15.0) / 27.0),
        _ => mel * 200.0 / 3.0,
    };
    let top = match fault {
        Fault::HtkScale => 2595.0 * (1.0 + 8000.0 / 700.0f64).log10(),
        _ => 15.0 + 27.0 * 8f64.ln() / 6.4f64.ln(),
    };
    let hz: Vec<f64> = (0..n_mels + 2).map(|i| to_hz(top * i as f64 / (n_mels + 1) as f64)).collect();
    let filter = |m: usize| {
        let norm = if fault == Fault::NoNorm { 1.0 } else { 2.0 / (hz[m + 2] - hz[m]) };
        let bin = |k: usize| {
            let f = k as f64 * RATE / N_FFT as f64;
            let (up, down) = ((f - hz[m]) / (hz[m + 1] - hz[m]), (hz[m + 2] - f) / (hz[m + 2] - hz[m + 1]));
            norm * up.min(down).max(0.0)
        };
        (0..=N_FFT / 2).map(bin).collect()
    };
    (0..n_mels).map(filter).collect()
}
