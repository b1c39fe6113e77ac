//! Resampling from any rate to [`SAMPLE_RATE`].

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _, WindowFunction};

use super::SAMPLE_RATE;

/// Least samples per block at the lower of the two rates. The filter has this length; it passes frequencies below
/// 98.6 % of the lower Nyquist frequency.
const BLOCK: u32 = 1024;

/// A windowed-sinc filter, applied in blocks by FFT, with its delay removed.
pub(super) struct Resampler {
    fft: Fft<f32>,
    rate: u32,
    /// Input that does not yet fill a block.
    input: Vec<f32>,
    output: Vec<f32>,
    n_in: u64,
    n_out: u64,
    /// Output samples still to drop: the filter's delay.
    n_early: usize,
}

impl Resampler {
    /// A resampler from `rate` Hz, which is not zero.
    pub(super) fn new(rate: u32) -> Self {
        let divisor = gcd(rate, SAMPLE_RATE);
        let (least_in, least_out) = (rate / divisor, SAMPLE_RATE / divisor);
        // With blocks of even length, the delay is a whole number of samples at both rates.
        let n = BLOCK.div_ceil(least_in.min(least_out)).next_multiple_of(2);
        let block_in = (least_in * n) as usize;
        let fft = Fft::new_custom(
            rate as usize,
            SAMPLE_RATE as usize,
            block_in,
            1,
            1,
            WindowFunction::BlackmanHarris2,
            FixedSync::Both,
        );
        let fft = fft.expect("rates and a block that are not zero");
        Self {
            n_early: fft.output_delay(),
            output: vec![0.0; fft.output_frames_max()],
            input: Vec::with_capacity(2 * block_in),
            fft,
            rate,
            n_in: 0,
            n_out: 0,
        }
    }

    /// Takes samples at the source's rate and appends the finished output to `out`.
    pub(super) fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        self.n_in += samples.len() as u64;
        self.input.extend_from_slice(samples);
        self.process(out);
    }

    /// Appends the rest. The total is the source's duration times [`SAMPLE_RATE`], rounded up.
    pub(super) fn finish(mut self, out: &mut Vec<f32>) {
        let n_all = (self.n_in * u64::from(SAMPLE_RATE)).div_ceil(u64::from(self.rate));
        while self.n_out < n_all {
            self.input.resize(self.fft.input_frames_next(), 0.0);
            self.process(out);
        }
        out.truncate(out.len() - (self.n_out - n_all) as usize);
    }

    fn process(&mut self, out: &mut Vec<f32>) {
        let n = self.fft.input_frames_next();
        let mut taken = 0;
        while self.input.len() - taken >= n {
            let n_given = self.output.len();
            let input = InterleavedSlice::new(&self.input[taken..taken + n], 1, n).expect("one channel of n");
            let mut output =
                InterleavedSlice::new_mut(&mut self.output, 1, n_given).expect("one channel of its length");
            let (_, given) =
                self.fft.process_into_buffer(&input, &mut output, None).expect("buffers of the right length");
            taken += n;
            let early = self.n_early.min(given);
            self.n_early -= early;
            out.extend_from_slice(&self.output[early..given]);
            self.n_out += (given - early) as u64;
        }
        self.input.drain(..taken);
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
