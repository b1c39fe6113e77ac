//! Audio clips in device memory: their features, and the decoder's cross-attention keys and values.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::engine::EngineError;
use crate::engine::scheduler::{ClipPlace, PAGE_SIZE};
use crate::gpu::{Gpu, ROW_ALIGN, Recorder, Tensor};
use crate::models::{self, Alignment, AudioShape, Capacity, Model, Scratch};
use crate::ops::{KvLayer, SpeechRecord};

/// Places for clips, and the tables by which sequences find their clip.
pub(in crate::engine) struct Clips {
    shape: AudioShape,
    /// Features of each place, one below the other: `[places · n_frames, n_mels]`.
    features: Tensor,
    /// Pages of each place: `[1, _]`.
    places: Vec<Tensor>,
    /// Keys and values of each layer's cross-attention, pages of all places.
    kv: Vec<KvLayer>,
    /// Pages of each slot's clip: `[max_seqs, _]`.
    pages: Tensor,
    /// Number of keys of each slot's clip: `[1, max_seqs]`.
    ends: Tensor,
    /// [`SpeechRecord`]s: `[max_seqs, 12]`.
    pub rules: Tensor,
    /// (layer, head) of each alignment head.
    heads: Vec<[usize; 2]>,
    /// The alignment heads' attention weights: `[max_rows, heads · n_positions]`.
    pub weights: Option<Tensor>,
}

impl Clips {
    /// # Errors
    /// [`EngineError::Parameter`] if the decoder has no such head, [`EngineError::Gpu`].
    pub fn new(
        gpu: &Gpu,
        shape: &AudioShape,
        n_places: usize,
        capacity: Capacity,
        kv_dtype: Dtype,
        heads: &[[usize; 2]],
    ) -> Result<Self, EngineError> {
        let layers = &shape.cross_attention;
        if let Some([layer, head]) =
            heads.iter().find(|[layer, head]| layers.get(*layer).is_none_or(|a| *head >= a.n_heads))
        {
            let found = format!("layer {layer}, head {head}");
            return Err(EngineError::Parameter {
                name: "alignment_heads",
                found,
                expected: "heads of the model's decoder",
            });
        }
        let per_clip = shape.n_positions.div_ceil(PAGE_SIZE);
        let page = |place: usize, i: usize| (place * per_clip + i) as u32;
        let places = (0..n_places).map(|place| {
            let pages: Vec<u32> = (0..per_clip).map(|i| page(place, i)).collect();
            Tensor::from_u32(gpu, "clip's pages", [1, per_clip], &pages)
        });
        let kv = layers.iter().enumerate().map(|(i, a)| {
            KvLayer::new(gpu, i, n_places * per_clip, a.n_kv_heads * PAGE_SIZE * a.head_dim, kv_dtype)
        });
        let max_seqs = capacity.max_seqs;
        let ends = vec![shape.n_positions as u32; max_seqs];
        let features = [n_places * shape.n_frames, shape.n_mels];
        let table = |label: &str, n_cols| Tensor::zeros(gpu, label, [max_seqs, n_cols], Dtype::U32);
        let weights = (!heads.is_empty()).then(|| {
            let shape = [capacity.max_rows, heads.len() * shape.n_positions];
            Tensor::zeros(gpu, "alignment", shape, Dtype::F32)
        });
        Ok(Clips {
            features: Tensor::zeros(gpu, "features", features, Dtype::F32)?,
            places: places.collect::<Result<_, _>>()?,
            kv: kv.collect::<Result<_, _>>()?,
            pages: table("clip pages", per_clip)?,
            ends: Tensor::from_u32(gpu, "clip ends", [1, max_seqs], &ends)?,
            rules: table("speech rules", size_of::<SpeechRecord>() / 4)?,
            heads: heads.to_vec(),
            weights: weights.transpose()?,
            shape: shape.clone(),
        })
    }

    /// Uploads a clip's features `[n_frames, n_mels]` to a place that nothing in flight reads.
    pub fn upload(&self, gpu: &Gpu, place: ClipPlace, features: &[f32]) {
        let (n_mels, stride) = (self.shape.n_mels, self.shape.n_mels.next_multiple_of(ROW_ALIGN));
        let mut padded = vec![0.0; self.shape.n_frames * stride];
        for (from, to) in features.chunks(n_mels).zip(padded.chunks_mut(stride)) {
            to[..n_mels].copy_from_slice(from);
        }
        self.features.write(gpu, place * self.shape.n_frames, bytemuck::cast_slice(&padded));
    }

    /// Sets the clip and the rules of a slot's sequence. Nothing in flight uses the slot.
    pub fn write(&self, gpu: &Gpu, slot: usize, place: ClipPlace, rules: &SpeechRecord) {
        let per_clip = self.pages.n_cols() as u32;
        let first = place as u32 * per_clip;
        let pages: Vec<u32> = (first..first + per_clip).collect();
        self.pages.write(gpu, slot, bytemuck::cast_slice(&pages));
        self.rules.write(gpu, slot, bytemuck::bytes_of(rules));
    }

    /// The clips of a batch.
    pub fn batch(&self, aligns: bool) -> models::BatchClips<'_> {
        let weights = self.weights.as_ref().filter(|_| aligns);
        models::BatchClips {
            pages: &self.pages,
            ends: &self.ends,
            n_positions: self.shape.n_positions,
            kv: &self.kv,
            alignment: weights.map(|weights| Alignment { heads: &self.heads, weights }),
        }
    }

    /// Number of alignment heads, times positions.
    pub fn alignment_width(&self) -> usize {
        self.heads.len() * self.shape.n_positions
    }

    /// Layers of the audio encoder.
    pub fn n_layers(&self) -> usize {
        self.shape.attention.len()
    }

    /// Records some layers of the audio encoder over the clip at `place`; before the first layer its embedding, after
    /// the last one the decoder's keys and values.
    pub fn record(
        &self,
        rec: &mut Recorder,
        model: &dyn Model,
        scratch: &mut Scratch,
        place: ClipPlace,
        layers: Range<usize>,
    ) {
        let Some(encoder) = model.audio_encoder() else { return };
        if layers.start == 0 {
            encoder.embed(rec, &self.features, place * self.shape.n_frames, scratch);
        }
        for i in layers.clone() {
            encoder.layer(i, rec, scratch);
        }
        if layers.end == self.n_layers() {
            model.attend_to(rec, &self.places[place], PAGE_SIZE, &self.kv, scratch);
        }
    }
}
