//! What a load will take, held against what is free before anything is allocated.

use super::{EngineError, MemoryNeed};
use crate::dtype::Dtype;
use crate::gpu::Gpu;

/// Shortest context that is suggested.
const SHORTEST_CTX: usize = 128;

/// Checks that there is memory for a context of `ctx` tokens, with weights as stored or quantised. `need` plans a load
/// with other such numbers, to find some that fit.
///
/// # Errors
/// [`EngineError::Memory`]; those of `need`. Where nobody tells how much is free, nothing is checked.
pub(super) fn check(
    gpu: &Gpu,
    ctx: usize,
    quantize: Option<Dtype>,
    need: impl Fn(usize, Option<Dtype>) -> Result<MemoryNeed, EngineError>,
) -> Result<(), EngineError> {
    let Some(free_bytes) = gpu.free_bytes() else { return Ok(()) };
    let fits = |need: &MemoryNeed| need.total_bytes() <= free_bytes;
    let found = need(ctx, quantize)?;
    if fits(&found) {
        return Ok(());
    }
    let shorter = std::iter::successors(Some(ctx), |n| Some(n / 2).filter(|n| *n >= SHORTEST_CTX));
    let smaller = [quantize, Some(Dtype::Q8_0), Some(Dtype::Q4_K)];
    let mut others = shorter.flat_map(|ctx| smaller.map(|quantize| (ctx, quantize)));
    let fitting = others.find(|(ctx, quantize)| need(*ctx, *quantize).is_ok_and(|need| fits(&need)));
    Err(EngineError::Memory {
        need: found,
        free_bytes,
        fitting_ctx: fitting.map(|(n, _)| n).filter(|n| *n != ctx),
        fitting_quantize: fitting.and_then(|(_, dtype)| dtype).filter(|dtype| Some(*dtype) != quantize),
    })
}
