//! A model in device memory. Several engines on one device can share it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::build::Uploading;
use super::scheduler::PAGE_SIZE;
use super::{EngineError, Sampling};
use crate::checkpoint::ModelFiles;
use crate::dtype::Dtype;
use crate::gpu::Gpu;
use crate::models::{Architecture, Labels, Loader, Model, ModelKind, ModelShape, check_device};
use crate::ops::{Attention, KvLayer};
use crate::text::{TextError, Tokenizer};
use crate::weights::Weights;

/// A model in device memory: weights, which never change, tokenizer, labels and settings. Each engine on it has its own
/// activations, KV cache and sequences.
///
/// The files of its weights stay open: if the device is lost, they are read again. No copy of them is kept.
pub struct LoadedModel {
    pub(super) name: String,
    pub(super) shape: ModelShape,
    architecture: Box<dyn Architecture>,
    weights: Arc<Weights>,
    /// Type that matrices are quantised to.
    pub(super) quantize: Option<Dtype>,
    placed: Mutex<Option<Placed>>,
    /// Longest sequence in tokens.
    pub(super) max_seq_len: usize,
    pub(super) tokenizer: Result<Tokenizer, TextError>,
    pub(super) labels: Option<Labels>,
    pub(super) unused_tensors: Vec<String>,
    pub(super) weights_bytes: u64,
    sampling: Sampling,
}

/// The weights on a device.
struct Placed {
    gpu: Gpu,
    model: Arc<dyn Model>,
    /// Their upload, until it is done. Whoever drives it has it.
    upload: Option<Weak<Mutex<Uploading>>>,
}

/// The weights on a device, and their upload, which may be done.
pub(super) type Placement = (Arc<dyn Model>, Arc<Mutex<Uploading>>);

impl LoadedModel {
    /// Checks a model for sequences of up to `max_seq_len` tokens. Nothing is allocated.
    ///
    /// # Errors
    /// As [`LoadedModel::allocate`].
    pub(super) fn new(
        gpu: &Gpu,
        files: ModelFiles,
        kind: ModelKind,
        max_seq_len: usize,
        quantize: Option<Dtype>,
    ) -> Result<LoadedModel, EngineError> {
        let (_, loader) = LoadedModel::allocate(&gpu.plan(), &files, kind, max_seq_len, quantize)?;
        let shape = files.architecture.shape();
        match files.tokenizer.as_ref().map(Tokenizer::vocab_size) {
            Ok(found) if found > shape.vocab_size => log::warn!(
                "the tokenizer has {found} tokens, the model {}: a prompt with one of the others will be refused",
                shape.vocab_size
            ),
            _ => {}
        }
        Ok(LoadedModel {
            shape,
            name: files.name,
            architecture: files.architecture,
            weights: files.weights,
            quantize,
            placed: Mutex::default(),
            max_seq_len,
            tokenizer: files.tokenizer,
            labels: files.labels,
            unused_tensors: loader.unused().into_iter().map(str::to_string).collect(),
            weights_bytes: loader.device_bytes(),
            sampling: Sampling::from(&files.generation),
        })
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
        if let Some(found) = quantize.filter(|dtype| !Dtype::QUANTISED.contains(dtype)) {
            let (found, expected) = (found.to_string(), "`Q8_0`, `Q4_0` or `Q4_K`");
            return Err(EngineError::Parameter { name: "quantize", found, expected });
        }
        allocate(gpu, &*files.architecture, &files.weights, max_seq_len, quantize)
    }

    /// Allocates the weights on another device, for sequences of up to `max_seq_len` tokens.
    ///
    /// # Errors
    /// As [`LoadedModel::allocate`].
    pub(super) fn allocate_again(
        &self,
        gpu: &Gpu,
        max_seq_len: usize,
        quantize: Option<Dtype>,
    ) -> Result<(Arc<dyn Model>, Loader), EngineError> {
        allocate(gpu, &*self.architecture, &self.weights, max_seq_len, quantize)
    }

    /// The weights, if they are on this device or on their way to it.
    pub(super) fn on(&self, gpu: &Gpu) -> Option<Arc<dyn Model>> {
        let placed = self.placed();
        placed.as_ref().filter(|placed| placed.gpu.is_same_device(gpu)).map(|placed| placed.model.clone())
    }

    /// The weights on this device, with their upload: a new one, or the one that another engine has begun.
    ///
    /// # Errors
    /// As [`LoadedModel::allocate`].
    pub(super) fn place(&self, gpu: &Gpu) -> Result<Placement, EngineError> {
        // Engines that lost one device come here at the same time.
        let mut placed = self.placed();
        if let Some(Placed { model, upload, .. }) =
            placed.as_ref().filter(|placed| placed.gpu.is_same_device(gpu))
        {
            match upload.as_ref().map(Weak::upgrade) {
                None => return Ok((model.clone(), Uploading::nothing())),
                Some(Some(upload)) => return Ok((model.clone(), upload)),
                Some(None) => {} // who had begun it is gone
            }
        }
        *placed = None; // before the others take its memory
        let (model, loader) = self.allocate_again(gpu, self.max_seq_len, self.quantize)?;
        let upload = Uploading::new(gpu, vec![loader.finish()])?;
        *placed =
            Some(Placed { gpu: gpu.clone(), model: model.clone(), upload: Some(Arc::downgrade(&upload)) });
        Ok((model, upload))
    }

    /// The upload to this device is done.
    pub(super) fn uploaded(&self, gpu: &Gpu) {
        if let Some(placed) = self.placed().as_mut().filter(|placed| placed.gpu.is_same_device(gpu)) {
            placed.upload = None;
        }
    }

    /// Drops the weights if they are on this device, which was lost.
    pub(super) fn leave(&self, gpu: &Gpu) {
        let mut placed = self.placed();
        placed.take_if(|placed| placed.gpu.is_same_device(gpu) && gpu.check_alive().is_err());
    }

    fn placed(&self) -> MutexGuard<'_, Option<Placed>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Allocates weights. The loader has what fills them.
fn allocate(
    gpu: &Gpu,
    architecture: &dyn Architecture,
    weights: &Arc<Weights>,
    max_seq_len: usize,
    quantize: Option<Dtype>,
) -> Result<(Arc<dyn Model>, Loader), EngineError> {
    check_device(&architecture.shape(), gpu.caps())?;
    let mut loader = Loader::new(gpu, weights.clone(), quantize);
    let model = architecture.load(&mut loader, max_seq_len)?;
    Ok((model.into(), loader))
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
