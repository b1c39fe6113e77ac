//! A model in device memory. Several engines on one device can share it.

use std::sync::Arc;

use super::scheduler::PAGE_SIZE;
use super::{EngineError, Sampling};
use crate::checkpoint::ModelFiles;
use crate::dtype::Dtype;
use crate::gpu::Gpu;
use crate::models::{Labels, Loader, Model, ModelKind, ModelShape, Upload, check_device};
use crate::ops::{Attention, KvLayer};
use crate::text::{TextError, Tokenizer};

/// A model in device memory: weights, which never change, tokenizer, labels and settings. Each engine on it has its own
/// activations, KV cache and sequences.
pub struct LoadedModel {
    pub(super) name: String,
    pub(super) shape: ModelShape,
    pub(super) weights: Arc<dyn Model>,
    /// Longest sequence in tokens.
    pub(super) max_seq_len: usize,
    pub(super) tokenizer: Result<Tokenizer, TextError>,
    pub(super) labels: Option<Labels>,
    pub(super) unused_tensors: Vec<String>,
    pub(super) weights_bytes: u64,
    sampling: Sampling,
}

impl LoadedModel {
    /// Checks and allocates a model for sequences of up to `max_seq_len` tokens. The returned upload fills its weights.
    ///
    /// # Errors
    /// As [`LoadedModel::allocate`].
    pub(super) fn plan(
        gpu: &Gpu,
        files: ModelFiles,
        kind: ModelKind,
        max_seq_len: usize,
        quantize: Option<Dtype>,
    ) -> Result<(LoadedModel, Upload), EngineError> {
        let (weights, loader) = LoadedModel::allocate(gpu, &files, kind, max_seq_len, quantize)?;
        let shape = files.architecture.shape();
        match files.tokenizer.as_ref().map(Tokenizer::vocab_size) {
            Ok(found) if found > shape.vocab_size => log::warn!(
                "the tokenizer has {found} tokens, the model {}: a prompt with one of the others will be refused",
                shape.vocab_size
            ),
            _ => {}
        }
        let model = LoadedModel {
            shape,
            name: files.name,
            weights,
            max_seq_len,
            tokenizer: files.tokenizer,
            labels: files.labels,
            unused_tensors: loader.unused().into_iter().map(str::to_string).collect(),
            weights_bytes: loader.device_bytes(),
            sampling: Sampling::from(&files.generation),
        };
        Ok((model, loader.finish()))
    }

    /// Checks a model and allocates its weights.
    ///
    /// # Errors
    /// [`EngineError`] with the file, tensor or limit.
    pub(super) fn allocate(
        gpu: &Gpu,
        files: &ModelFiles,
        kind: ModelKind,
        max_seq_len: usize,
        quantize: Option<Dtype>,
    ) -> Result<(Arc<dyn Model>, Loader), EngineError> {
        files.expect(kind)?;
        let shape = files.architecture.shape();
        check_device(&shape, gpu.caps())?;
        if let Some(found) = quantize.filter(|dtype| !Dtype::QUANTISED.contains(dtype)) {
            let (found, expected) = (found.to_string(), "`Q8_0`, `Q4_0` or `Q4_K`");
            return Err(EngineError::Parameter { name: "quantize", found, expected });
        }
        let mut loader = Loader::new(gpu, files.weights.clone(), quantize);
        let weights = files.architecture.load(&mut loader, max_seq_len)?;
        Ok((weights.into(), loader))
    }

    /// The tokenizer, if the checkpoint has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref().ok()
    }

    /// The sampling parameters that the model's authors recommend.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// The model's shape.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// The tokens that end a text.
    pub(super) fn end_tokens(&self) -> Vec<u32> {
        let mut tokens = self.tokenizer().map(|t| t.eos().to_vec()).unwrap_or_default();
        tokens.retain(|token| (*token as usize) < self.shape.vocab_size);
        tokens
    }
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Elements of the keys (or of the values) in a page of one layer.
pub(super) fn page_width(attention: &Attention) -> usize {
    attention.n_kv_heads * PAGE_SIZE * attention.head_dim
}

/// Bytes of a page of [`PAGE_SIZE`] positions in the caches of all layers.
pub fn page_bytes(shape: &ModelShape, dtype: Dtype) -> usize {
    shape.attention.iter().map(|a| 2 * KvLayer::bytes(dtype, page_width(a))).sum()
}
