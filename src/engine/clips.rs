//! Sound in device memory: clips, what the encoder made of them, and who listens.

use std::collections::VecDeque;

use super::{EngineError, PAGE_SIZE};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, ROW_ALIGN, Recorder, Tensor};
use crate::models::{self, Alignment, AudioEncoder, AudioShape, Capacity, Model, Scratch};
use crate::ops::{KvLayer, SpeechRecord};

/// Names a clip of sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClipId(pub u64);

/// Places for clips, and the tables by which sequences find theirs.
pub(super) struct Clips {
    shape: AudioShape,
    /// Features of each place, one below the other: `[places · n_frames, n_mels]`.
    features: Tensor,
    /// Pages of each place: `[1, _]`.
    places: Vec<Tensor>,
    /// Keys and values of each layer's cross-attention, pages of all places.
    kv: Vec<KvLayer>,
    /// Pages of the clip that each slot hears: `[max_seqs, _]`.
    pages: Tensor,
    /// Keys of the clip that each slot hears: `[1, max_seqs]`.
    ends: Tensor,
    /// [`SpeechRecord`]s: `[max_seqs, 12]`.
    pub rules: Tensor,
    /// (layer, head) of each head that shows its weights.
    heads: Vec<[usize; 2]>,
    /// Their weights: `[max_rows, heads · n_positions]`.
    pub weights: Option<Tensor>,
    free: Vec<usize>,
    waiting: VecDeque<(ClipId, Vec<f32>)>,
    heard: Vec<Clip>,
    next_id: u64,
}

/// A clip that has a place.
struct Clip {
    id: ClipId,
    place: usize,
    /// Where its sequences' prefixes begin in the cache: what was heard is part of what keys and values depend on.
    root: u64,
    /// Sequences that listen, and recordings that have not finished.
    n_users: usize,
    forgotten: bool,
}

impl Clips {
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
            free: (0..n_places).rev().collect(),
            waiting: VecDeque::new(),
            heard: Vec::new(),
            next_id: 1,
            shape: shape.clone(),
        })
    }

    /// Queues a clip: features `[n_frames, n_mels]`.
    pub fn listen(&mut self, features: &[f32]) -> Result<ClipId, EngineError> {
        let AudioShape { n_frames, n_mels, .. } = self.shape;
        if features.len() != n_frames * n_mels {
            return Err(EngineError::Clip {
                found: format!("{} values", features.len()),
                expected: format!("{n_frames} frames of {n_mels}"),
            });
        }
        if let Some(at) = features.iter().position(|value| !value.is_finite()) {
            return Err(EngineError::Clip {
                found: format!("{} in frame {}", features[at], at / n_mels),
                expected: "finite numbers".into(),
            });
        }
        let n_kept = self.waiting.len() + self.heard.iter().filter(|clip| !clip.forgotten).count();
        if n_kept >= self.places.len() {
            return Err(EngineError::Clip {
                found: format!("no place: {n_kept} are kept"),
                expected: "one of them to be forgotten, or more places".into(),
            });
        }
        let id = ClipId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back((id, features.to_vec()));
        Ok(id)
    }

    /// Frees the clip's place once nobody listens.
    pub fn forget(&mut self, id: ClipId) {
        self.waiting.retain(|(waiting, _)| *waiting != id);
        if let Some(clip) = self.heard.iter_mut().find(|clip| clip.id == id) {
            clip.forgotten = true;
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        let free = &mut self.free;
        self.heard.retain(|clip| {
            let stays = !clip.forgotten || clip.n_users > 0;
            if !stays {
                free.push(clip.place);
            }
            stays
        });
    }

    /// Whether the clip is known and not forgotten.
    pub fn knows(&self, id: ClipId) -> bool {
        let waits = self.waiting.iter().any(|(waiting, _)| *waiting == id);
        waits || self.heard.iter().any(|clip| clip.id == id && !clip.forgotten)
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Gives the next waiting clip a place, if there is one, and uploads it. `root` is a prefix of its own.
    pub fn admit(&mut self, gpu: &Gpu, root: impl FnOnce() -> u64) -> Option<ClipId> {
        let place = *self.free.last()?;
        let (id, features) = self.waiting.pop_front()?;
        self.free.pop();
        let (n_mels, stride) = (self.shape.n_mels, self.shape.n_mels.next_multiple_of(ROW_ALIGN));
        let mut padded = vec![0.0; self.shape.n_frames * stride];
        for (from, to) in features.chunks(n_mels).zip(padded.chunks_mut(stride)) {
            to[..n_mels].copy_from_slice(from);
        }
        // Nothing in flight reads the place.
        self.features.write(gpu, place * self.shape.n_frames, bytemuck::cast_slice(&padded));
        self.heard.push(Clip { id, place, root: root(), n_users: 0, forgotten: false });
        Some(id)
    }

    /// A sequence listens, or a recording of the encoder is on its way.
    pub fn hold(&mut self, id: ClipId) {
        if let Some(clip) = self.heard.iter_mut().find(|clip| clip.id == id) {
            clip.n_users += 1;
        }
    }

    /// It does not any more.
    pub fn release(&mut self, id: ClipId) {
        if let Some(clip) = self.heard.iter_mut().find(|clip| clip.id == id) {
            clip.n_users -= 1;
        }
        self.tidy();
    }

    /// Where prefixes of the clip's sequences begin in the cache, once it has a place.
    pub fn root(&self, id: ClipId) -> Option<u64> {
        self.heard.iter().find(|clip| clip.id == id).map(|clip| clip.root)
    }

    /// Writes what the sequence of a slot hears and goes by. Nothing in flight touches the slot.
    pub fn write(&self, gpu: &Gpu, slot: usize, id: ClipId, rules: &SpeechRecord) {
        let Some(clip) = self.heard.iter().find(|clip| clip.id == id) else { return };
        let per_clip = self.pages.n_cols() as u32;
        let first = clip.place as u32 * per_clip;
        let pages: Vec<u32> = (first..first + per_clip).collect();
        self.pages.write(gpu, slot, bytemuck::cast_slice(&pages));
        self.rules.write(gpu, slot, bytemuck::bytes_of(rules));
    }

    /// What a batch hears.
    pub fn batch(&self, aligns: bool) -> models::Clips<'_> {
        let weights = self.weights.as_ref().filter(|_| aligns);
        models::Clips {
            pages: &self.pages,
            ends: &self.ends,
            n_positions: self.shape.n_positions,
            kv: &self.kv,
            alignment: weights.map(|weights| Alignment { heads: &self.heads, weights }),
        }
    }

    /// Heads that show their weights, times positions.
    pub fn alignment_width(&self) -> usize {
        self.heads.len() * self.shape.n_positions
    }

    /// Layers of the encoder.
    pub fn n_layers(&self) -> usize {
        self.shape.attention.len()
    }

    /// Records the encoder's layers from `first` to before `last` on a clip: the beginning before the first one, and
    /// what the decoder attends to after the last.
    pub fn record(
        &self,
        rec: &mut Recorder,
        model: &dyn Model,
        encoder: &dyn AudioEncoder,
        id: Option<ClipId>,
        [first, last]: [usize; 2],
        s: &mut Scratch,
    ) {
        let clip = self.heard.iter().find(|clip| Some(clip.id) == id);
        let place = clip.map_or(0, |clip| clip.place);
        if first == 0 {
            encoder.embed(rec, &self.features, place * self.shape.n_frames, s);
        }
        (first..last).for_each(|i| encoder.layer(i, rec, s));
        if last == self.n_layers() {
            model.attend_to(rec, &self.places[place], PAGE_SIZE, &self.kv, s);
        }
    }
}
