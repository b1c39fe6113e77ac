//! Trials of operations on logits.

use super::super::{
    Draws, SamplingRecord, SpeechRecord, sample as draw, softmax as normalise, speech_rules as rules,
    token_logprob as logprob, top_k as best,
};
use super::{Launch, Setup, Tolerance, is_set};
use crate::gpu::{GpuError, Tensor, Variant};

/// An odd number of tokens, more than any workgroup has lanes.
const N_VOCAB: usize = 1031;
const N_ROWS: usize = 3;
/// Positions of a sequence.
const CTX: usize = 9;

/// (sequence, position) of each row of the batch.
const PLACES: [[u32; 2]; N_ROWS] = [[2, 4], [0, 7], [1, 3]];

impl Setup<'_> {
    /// Logits with outliers, as a model's are.
    fn logits(&mut self) -> Result<Tensor, GpuError> {
        self.normal([N_ROWS, N_VOCAB], crate::dtype::Dtype::F32, 0.0, 3.0)
    }

    /// The batch's rows, and the row of the batch of each row of logits.
    fn rows(&mut self) -> Result<[Tensor; 2], GpuError> {
        Ok([self.table([N_ROWS, 2], PLACES.as_flattened())?, self.table([1, N_ROWS], &[1, 2, 0])?])
    }

    /// Ids of three sequences.
    fn tokens(&mut self) -> Result<Tensor, GpuError> {
        let ids: Vec<u32> = (0..(N_ROWS * CTX) as u32).map(|i| i * 389 % N_VOCAB as u32).collect();
        self.table([N_ROWS, CTX], &ids)
    }
}

pub(super) fn softmax(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let (x, y) = (setup.logits()?, setup.results([N_ROWS, N_VOCAB])?);
    // The inverse temperature, and the smallest logit that counts.
    let filters: Vec<u32> = [1.25f32, -0.7].repeat(N_ROWS).into_iter().map(f32::to_bits).collect();
    let filters = setup.table([N_ROWS, 2], &filters)?;
    let (log, is_filtered) = (is_set(variant, "LOG"), is_set(variant, "FILTER"));
    setup.tolerance = Tolerance::new(N_VOCAB, 4.0);
    Ok(Box::new(move |rec| {
        normalise::softmax(rec, &x, is_filtered.then_some(&filters), log, &y, N_ROWS);
    }))
}

/// One row takes the most probable token, the others draw with every filter.
pub(super) fn sample(setup: &mut Setup<'_>, _: &Variant) -> Result<Launch, GpuError> {
    let greedy = SamplingRecord {
        seed_low: 11,
        seed_high: 3,
        top_p: 1.0,
        repetition_penalty: 1.0,
        ..bytemuck::Zeroable::zeroed()
    };
    let few = SamplingRecord { temperature: 0.8, top_k: 17, ..greedy };
    let many = SamplingRecord { seed_low: 5, temperature: 1.1, top_p: 0.9, min_p: 0.01, counts: 1, ..greedy };
    let records = [greedy, few, many];
    let records: &[u32] = bytemuck::cast_slice(&records);
    let sampling = setup.table([N_ROWS, records.len() / N_ROWS], records)?;
    let index = setup.table([1, N_ROWS], &[1, 2, 0])?;
    let z = setup.logits()?;
    let rows = setup.changed([N_ROWS, 2], PLACES.as_flattened())?;
    let tokens = setup.changed([N_ROWS, CTX], &[7; N_ROWS * CTX])?;
    let counts = setup.changed([N_ROWS, N_VOCAB], &[0; N_ROWS * N_VOCAB])?;
    let chosen = setup.changed([1, N_ROWS], &[0; N_ROWS])?;
    // The host does not read them: the softmax over what is left does.
    let filters = setup.table([N_ROWS, 2], &[0; 2 * N_ROWS])?;
    Ok(Box::new(move |rec| {
        let draws = Draws { rows: &rows, index: &index, sampling: &sampling, counts: &counts };
        draw::sample(rec, draws, &z, &tokens, &chosen, &filters, N_ROWS);
    }))
}

pub(super) fn top_k(setup: &mut Setup<'_>, _: &Variant) -> Result<Launch, GpuError> {
    let k = 5;
    let (x, chosen) = (setup.logits()?, setup.table([1, N_ROWS], &[1030, 0, 517])?);
    let y = setup.changed([N_ROWS, 2 * (1 + k)], &[0; N_ROWS * 12])?;
    Ok(Box::new(move |rec| best::top_k(rec, &x, &chosen, k, &y, N_ROWS)))
}

pub(super) fn token_logprob(setup: &mut Setup<'_>, _: &Variant) -> Result<Launch, GpuError> {
    let ([rows, index], tokens, z) = (setup.rows()?, setup.tokens()?, setup.logits()?);
    let y = setup.results([1, N_ROWS])?;
    setup.tolerance = Tolerance::new(N_VOCAB, 4.0);
    Ok(Box::new(move |rec| logprob::token_logprob(rec, &rows, &index, &tokens, &z, 0..N_ROWS, &y)))
}

pub(super) fn speech_rules(setup: &mut Setup<'_>, _: &Variant) -> Result<Launch, GpuError> {
    let ([rows, index], tokens) = (setup.rows()?, setup.tokens()?);
    let record = |prompt_len: u32| SpeechRecord {
        on: 1,
        prompt_len,
        end: 800,
        timestamps: 1,
        first: 850,
        no_timestamps: 849,
        max_initial: 50,
        pad: 0,
        suppress_first: [3, 9, u32::MAX, u32::MAX],
    };
    // The second sequence has no token yet, the others have some.
    let records = [record(2), record(4), record(3)];
    let records: &[u32] = bytemuck::cast_slice(&records);
    let table = setup.table([N_ROWS, records.len() / N_ROWS], records)?;
    let z = setup.results([N_ROWS, N_VOCAB])?;
    setup.tolerance = Tolerance::new(1, 1.0);
    Ok(Box::new(move |rec| rules::speech_rules(rec, &rows, &index, &table, &tokens, &z, N_ROWS)))
}
