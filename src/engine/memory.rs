//! What a load will take, held against what is free before anything is allocated.

use super::{EngineError, MemoryNeed};
use crate::dtype::Dtype;
use crate::gpu::Gpu;

/// Shortest context that is suggested.
const SHORTEST_CTX: usize = 128;

/// What a load will take, and whether there is memory for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFit {
    /// Context length in tokens.
    pub ctx: usize,
    /// What it takes.
    pub need: MemoryNeed,
    /// What is free. `None` where nobody tells: then everything counts as fitting.
    pub free_bytes: Option<u64>,
    /// If it does not fit: a shorter context that would, or would together with `fitting_quantize`.
    pub fitting_ctx: Option<usize>,
    /// If it does not fit: a quantised type with which it would, or would together with `fitting_ctx`.
    pub fitting_quantize: Option<Dtype>,
}

impl MemoryFit {
    /// Holds a context of `ctx` tokens, with weights as stored or quantised, against the free memory. `need` plans a load
    /// with other such numbers, to find some that fit.
    ///
    /// # Errors
    /// Those of `need`.
    pub(super) fn new(
        gpu: &Gpu,
        ctx: usize,
        quantize: Option<Dtype>,
        need: impl Fn(usize, Option<Dtype>) -> Result<MemoryNeed, EngineError>,
    ) -> Result<MemoryFit, EngineError> {
        let free_bytes = gpu.free_bytes();
        let fits = |need: &MemoryNeed| free_bytes.is_none_or(|free_bytes| need.total_bytes() <= free_bytes);
        let found = need(ctx, quantize)?;
        let all = MemoryFit { ctx, need: found, free_bytes, fitting_ctx: None, fitting_quantize: None };
        if fits(&found) {
            return Ok(all);
        }
        let shorter = std::iter::successors(Some(ctx), |n| Some(n / 2).filter(|n| *n >= SHORTEST_CTX));
        let smaller = [quantize, Some(Dtype::Q8_0), Some(Dtype::Q4_K)];
        let mut others = shorter.flat_map(|ctx| smaller.map(|quantize| (ctx, quantize)));
        let fitting = others.find(|(ctx, quantize)| need(*ctx, *quantize).is_ok_and(|need| fits(&need)));
        Ok(MemoryFit {
            fitting_ctx: fitting.map(|(n, _)| n).filter(|n| *n != ctx),
            fitting_quantize: fitting.and_then(|(_, dtype)| dtype).filter(|dtype| Some(*dtype) != quantize),
            ..all
        })
    }

    /// Whether there is memory for it.
    pub fn fits(&self) -> bool {
        self.missing_bytes() == 0
    }

    /// What is missing.
    pub fn missing_bytes(&self) -> u64 {
        self.free_bytes.map_or(0, |free_bytes| self.need.total_bytes().saturating_sub(free_bytes))
    }

    /// # Errors
    /// [`EngineError::Memory`] if there is no memory for it.
    pub(super) fn check(self) -> Result<(), EngineError> {
        let MemoryFit { need, fitting_ctx, fitting_quantize, .. } = self;
        match self.free_bytes {
            Some(free_bytes) if !self.fits() => {
                Err(EngineError::Memory { need, free_bytes, fitting_ctx, fitting_quantize })
            }
            _ => Ok(()),
        }
    }
}
