//! Audio clips: which ones wait, which ones have a place on the device, and which requests use them.

use std::sync::{Arc, Weak};

use super::pages::Node;
use crate::engine::EngineError;

/// The id of an audio clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClipId(pub u64);

/// Index of a clip's place on the device.
pub(in crate::engine) type ClipPlace = usize;

/// A clip for the audio encoder.
#[derive(Debug)]
pub(in crate::engine) struct Clip {
    pub id: ClipId,
    pub place: ClipPlace,
    /// `[n_frames, n_mels]`.
    pub features: Arc<[f32]>,
}

/// The clips of an engine, in their order.
#[derive(Debug)]
pub(in crate::engine) struct ClipTable {
    n_frames: usize,
    n_mels: usize,
    n_places: usize,
    free: Vec<ClipPlace>,
    clips: Vec<Entry>,
    next_id: u64,
}

#[derive(Debug)]
struct Entry {
    id: ClipId,
    /// They are kept, because the device that has them can be lost.
    features: Arc<[f32]>,
    /// Its place, and the root of its sequences' prefixes: keys and values depend on the clip.
    place: Option<(ClipPlace, Node)>,
    /// Number of requests that have not ended, plus one while the audio encoder runs.
    n_users: usize,
    forgotten: bool,
    /// The clip is forgotten once this is dropped.
    owner: Option<Weak<()>>,
}

impl ClipTable {
    /// A table of `n_places` clips of `n_frames` frames.
    pub fn new(n_places: usize, [n_frames, n_mels]: [usize; 2]) -> Self {
        let free = (0..n_places).rev().collect();
        ClipTable { n_frames, n_mels, n_places, free, clips: Vec::new(), next_id: 1 }
    }

    /// Queues a clip: features `[n_frames, n_mels]`.
    pub fn listen(&mut self, features: &[f32]) -> Result<ClipId, EngineError> {
        let (n_frames, n_mels) = (self.n_frames, self.n_mels);
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
        for clip in &mut self.clips {
            clip.forgotten |= clip.owner.as_ref().is_some_and(|owner| owner.strong_count() == 0);
        }
        self.tidy();
        let n_kept = self.clips.iter().filter(|clip| !clip.forgotten).count();
        if n_kept >= self.n_places {
            return Err(EngineError::Clip {
                found: format!("no place: {n_kept} clips are kept"),
                expected: "fewer than `EngineOptions::max_clips`".into(),
            });
        }
        let id = ClipId(self.next_id);
        self.next_id += 1;
        let features = features.into();
        self.clips.push(Entry { id, features, place: None, n_users: 0, forgotten: false, owner: None });
        Ok(id)
    }

    /// Drops the clip once no request refers to it.
    pub fn forget(&mut self, id: ClipId) {
        if let Some(clip) = self.find(id) {
            clip.forgotten = true;
        }
        self.tidy();
    }

    /// Drops the clip, as [`ClipTable::forget`], when another needs its place and `owner` has been dropped.
    pub fn forget_with(&mut self, id: ClipId, owner: Weak<()>) {
        if let Some(clip) = self.find(id) {
            clip.owner = Some(owner);
        }
    }

    fn find(&mut self, id: ClipId) -> Option<&mut Entry> {
        self.clips.iter_mut().find(|clip| clip.id == id)
    }

    fn tidy(&mut self) {
        let free = &mut self.free;
        self.clips.retain(|clip| {
            let stays = !clip.forgotten || clip.n_users > 0;
            if let (false, Some((place, _))) = (stays, clip.place) {
                free.push(place);
            }
            stays
        });
    }

    /// Whether requests may refer to the clip.
    pub fn knows(&self, id: ClipId) -> bool {
        self.clips.iter().any(|clip| clip.id == id && !clip.forgotten)
    }

    /// Whether a clip waits for the audio encoder.
    pub fn has_waiting(&self) -> bool {
        self.clips.iter().any(|clip| clip.place.is_none())
    }

    /// Gives the next waiting clip a place, if one is free, and `root` as the root of its prefixes. The audio encoder
    /// counts as a user.
    pub fn admit(&mut self, root: impl FnOnce() -> Node) -> Option<Clip> {
        let place = *self.free.last()?;
        let clip = self.clips.iter_mut().find(|clip| clip.place.is_none())?;
        self.free.pop();
        clip.place = Some((place, root()));
        clip.n_users += 1;
        Some(Clip { id: clip.id, place, features: clip.features.clone() })
    }

    /// A request refers to it.
    pub fn hold(&mut self, id: ClipId) {
        if let Some(clip) = self.find(id) {
            clip.n_users += 1;
        }
    }

    /// A request has ended, or the audio encoder has finished.
    pub fn release(&mut self, id: ClipId) {
        if let Some(clip) = self.find(id) {
            clip.n_users -= 1;
        }
        self.tidy();
    }

    /// The clip's place and the root of its sequences' prefixes, once it has a place.
    pub fn place(&self, id: ClipId) -> Option<(ClipPlace, Node)> {
        self.clips.iter().find(|clip| clip.id == id).and_then(|clip| clip.place)
    }

    /// Gives each clip with a place a new root of its prefixes.
    pub fn renew_roots(&mut self, mut root: impl FnMut() -> Node) {
        for (_, old) in self.clips.iter_mut().filter_map(|clip| clip.place.as_mut()) {
            *old = root();
        }
    }

    /// The places are gone, and nothing is being encoded any more: every clip waits for the audio encoder again.
    pub fn lost(&mut self) {
        self.tidy();
        self.clips.iter_mut().for_each(|clip| clip.place = None);
        self.free = (0..self.n_places).rev().collect();
    }

    /// Drops all clips.
    pub fn abandon(&mut self) {
        self.clips.clear();
    }
}
