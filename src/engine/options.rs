//! Sizes and settings of an engine.

use std::time::Duration;

use crate::dtype::Dtype;
use crate::models::ModelShape;

/// Longest default context in tokens: models allow 128 K and more, for which few machines have the memory.
pub const DEFAULT_CTX: usize = 4096;

/// How long an engine tries to get its device back: a driver that was reset, or updated, is there again after some
/// seconds.
pub(super) const DEFAULT_RECOVERY: Option<Duration> = Some(Duration::from_secs(60));

/// Sizes and settings of an engine. All device memory is allocated when it is built.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Context length in tokens. Default: the model's maximum, capped at 4096.
    pub ctx: Option<usize>,
    /// Most sequences that run at once.
    pub max_seqs: usize,
    /// Most rows per step: prompts are computed in chunks of this size.
    pub max_rows: usize,
    /// Most waiting requests. Beyond that, [`Engine::submit`](super::Engine::submit) returns
    /// [`EngineError::Busy`](super::EngineError::Busy).
    pub max_waiting: usize,
    /// Capacity of the KV cache in tokens, for all sequences together. Default: `max_seqs` times `ctx`, limited by the
    /// size of a binding. If the cache is full, the youngest sequence gives way and is computed again later.
    pub kv_tokens: Option<usize>,
    /// Type that matrices are quantised to while loading: `Q8_0`, `Q4_0` or `Q4_K`. The embedding and the head, which
    /// affect the result most, become `Q8_0`. Default: as stored.
    pub quantize: Option<Dtype>,
    /// Type of the KV cache: `F32`, `F16` or `Q8_0`.
    pub kv_dtype: Dtype,
    /// Most log-probabilities per token that a request may ask for.
    pub max_logprobs: usize,
    /// Whether requests may ask for logits.
    pub logits: bool,
    /// Rows of [`Engine::kept`](super::Engine::kept), of 4 bytes for each token of the vocabulary. Default: 0.
    pub kept_rows: usize,
    /// Most audio clips that a speech model keeps at once. The features of each stay in host memory as long as it is kept,
    /// 1 MB for 30 seconds, because a device can be lost.
    pub max_clips: usize,
    /// (layer, head) of the decoder's heads whose attention to a clip requests may ask for, for word timestamps.
    pub alignment_heads: Vec<[usize; 2]>,
    /// Most prompt positions per step whose log-probabilities are computed. If 0, requests may not ask for them.
    pub prompt_logprobs: usize,
    /// Whether sequences share the pages of common prefixes.
    pub prefix_cache: bool,
    /// Whether steps are recorded before the results of earlier ones have arrived.
    pub run_ahead: bool,
    /// How long to try to get a device again after a loss. Until then requests wait; afterwards they go on where they were,
    /// or fail. On a host's device the engine waits for [`Engine::replace_device`](super::Engine::replace_device), however
    /// long that takes. `None`: a loss ends every open request with [`Event::Failed`](super::Event::Failed), and the
    /// engine is of no more use. Default: 60 seconds.
    pub recovery: Option<Duration>,
}

impl EngineOptions {
    /// The options with the default context of a model, if none is set.
    pub(super) fn for_model(self, shape: &ModelShape) -> EngineOptions {
        EngineOptions { ctx: self.ctx.or(Some(shape.max_seq_len.min(DEFAULT_CTX))), ..self }
    }
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
            kept_rows: 0,
            max_clips: 1,
            alignment_heads: Vec::new(),
            prompt_logprobs: 0,
            prefix_cache: true,
            run_ahead: true,
            recovery: DEFAULT_RECOVERY,
        }
    }
}
