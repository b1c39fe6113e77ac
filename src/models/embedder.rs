//! A decoder that reads whole texts: its layers, and the rows of the final norm instead of logits. So Qwen3-Embedding
//! and the like become vectors, and Qwen3-Reranker answers yes or no.

use super::blocks::{ClassificationHead, Sequences};
use super::{
    Architecture, Batch, Capacity, LabelScratch, Labels, Loader, Model, ModelError, ModelKind, ModelShape,
    Names, Scratch,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};

/// The last layer of a decoder's classification head: `[n_labels, hidden_size]`, after the row of the last token.
pub(crate) const SCORE: &str = "score";

/// The decoder, and the labels of its head if it has one.
struct Embedder {
    decoder: Box<dyn Architecture>,
    labels: Option<Labels>,
}

/// Makes an encoder of a decoder: one with a head [`SCORE`] if there are `labels`.
pub(crate) fn embedder(decoder: Box<dyn Architecture>, labels: Option<Labels>) -> Box<dyn Architecture> {
    Box::new(Embedder { decoder, labels })
}

impl Architecture for Embedder {
    fn shape(&self) -> ModelShape {
        ModelShape { kind: ModelKind::Encoder, ..self.decoder.shape() }
    }

    fn names(&self) -> Names {
        self.decoder.names()
    }

    fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let head = match &self.labels {
            Some(labels) => {
                Some(ClassificationHead::of_last(loader, SCORE, [shape.hidden_size, labels.names.len()])?)
            }
            None => None,
        };
        loader.omit_head();
        // Products after the pooling, which are loaded by themselves.
        loader.ignore("dense_");
        let decoder = self.decoder.load(loader, max_seq_len)?;
        Ok(Box::new(EmbedderModel { shape, decoder, head }))
    }
}

struct EmbedderModel {
    shape: ModelShape,
    decoder: Box<dyn Model>,
    head: Option<ClassificationHead>,
}

impl Model for EmbedderModel {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        let labels = |head: &ClassificationHead| {
            LabelScratch::new(gpu, self.shape.hidden_size, head.n_labels(), capacity.max_seqs)
        };
        let labels = self.head.as_ref().map(labels).transpose()?;
        Ok(Scratch { labels, ..self.decoder.scratch(gpu, capacity.without_logits())? })
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.decoder.embed(rec, b, s);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.decoder.layer(i, rec, b, s);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.decoder.outputs(rec, b, s)
    }

    fn classify(&self, rec: &mut Recorder, spans: &Tensor, n_seqs: usize, s: &mut Scratch) -> Option<Tensor> {
        let sequences = Sequences { x: &s.a.h, spans, n_seqs };
        Some(self.head.as_ref()?.record(rec, sequences, s.labels.as_ref()?))
    }
}
