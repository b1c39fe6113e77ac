//! How large an engine is built.

use crate::dtype::Dtype;

/// How large an engine is built. Everything is allocated then, nothing later.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Context length in tokens. Default: the model's maximum, capped at 4096.
    pub ctx: Option<usize>,
    /// Sequences at a time.
    pub max_seqs: usize,
    /// Rows of one step: prompts are computed in chunks of so many.
    pub max_rows: usize,
    /// Requests that wait for a place; beyond them [`Engine::submit`](super::Engine::submit) answers
    /// [`EngineError::Busy`](super::EngineError::Busy).
    pub max_waiting: usize,
    /// Positions that the cache holds for all sequences together. Default: `max_seqs` times `ctx`, within what a
    /// binding can span. With fewer, the youngest sequence is computed again later where the others need its room.
    pub kv_tokens: Option<usize>,
    /// Type that matrices are quantised to while they are loaded: `Q8_0`, `Q4_0` or `Q4_K`. The embedding and the head,
    /// which weigh most in the result, become `Q8_0`. Default: as they are stored.
    pub quantize: Option<Dtype>,
    /// Type of the cache, `F32`, `F16` or `Q8_0`.
    pub kv_dtype: Dtype,
    /// Most log-probabilities that a request may ask for.
    pub max_logprobs: usize,
    /// Requests may ask for logits.
    pub logits: bool,
    /// Clips that a model that hears keeps at a time.
    pub max_clips: usize,
    /// (layer, head) of the decoder's heads whose attention to a clip requests may ask for.
    pub alignment_heads: Vec<[usize; 2]>,
    /// Positions of prompts whose log-probabilities one step computes at most; with 0 requests may not ask for them.
    pub prompt_logprobs: usize,
    /// Share prefixes between sequences.
    pub prefix_cache: bool,
    /// Record steps before the results of earlier ones have arrived.
    pub run_ahead: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            ctx: None,
            max_seqs: 8,
            max_rows: 256,
            max_waiting: 4096,
            kv_tokens: None,
            quantize: None,
            kv_dtype: Dtype::F16,
            max_logprobs: 0,
            logits: false,
            max_clips: 1,
            alignment_heads: Vec::new(),
            prompt_logprobs: 0,
            prefix_cache: true,
            run_ahead: true,
        }
    }
}
