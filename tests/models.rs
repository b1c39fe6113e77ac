//! Models as an engine has them: weights that several scratches share, and what a recording of each is made of.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, Recorder, Tensor};
use wginfer::models::{
    Architecture, Batch, BatchClips, Capacity, Loader, Model, ModelKind, ModelShape, Scratch,
};
use wginfer::ops::{Attention, KvLayer, Rows};

/// Positions that models are loaded for, and positions a page.
const MAX_SEQ_LEN: usize = 64;
const PAGE_SIZE: usize = 16;

fn folder(model: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("tests/golden").join(model);
    if folder.exists() { folder } else { root.join("assets").join(model) }
}

fn load(gpu: &Gpu, model: &str) -> (Box<dyn Architecture>, Arc<dyn Model>) {
    let files = ModelFiles::open(&folder(model)).expect("a checkpoint");
    let mut loader = Loader::new(gpu, files.weights.clone(), None);
    let loaded = files.architecture.load(&mut loader, MAX_SEQ_LEN).expect("it loads");
    loader.finish().run(gpu, &mut |_| {}).expect("an upload");
    (files.architecture, loaded.into())
}

/// The tables and the cache of one sequence, whose next rows are `n`.
struct Sequence {
    n: Rows,
    n_blocks: usize,
    rows: Tensor,
    blocks: Tensor,
    tokens: Tensor,
    pages: Tensor,
    ends: Tensor,
    sampled: Tensor,
    spans: Tensor,
    kv: Vec<KvLayer>,
    cross_kv: Vec<KvLayer>,
    n_positions: usize,
}

impl Sequence {
    fn new(gpu: &Gpu, shape: &ModelShape, n: Rows, ids: &[u32]) -> Sequence {
        let table = |label: &str, shape: [usize; 2], words: &[u32]| {
            Tensor::from_u32(gpu, label, shape, words).expect("it fits")
        };
        let cache = |attention: &[Attention], n_pages: usize| -> Vec<KvLayer> {
            let layer = |(i, a): (usize, &Attention)| {
                KvLayer::new(gpu, i, n_pages, a.n_kv_heads * PAGE_SIZE * a.head_dim, Dtype::F32)
            };
            attention.iter().enumerate().map(layer).collect::<Result<_, _>>().expect("it fits")
        };
        let n_rows = n.count();
        let rows: Vec<u32> = (0..n_rows as u32).flat_map(|pos| [0, pos]).collect();
        let step = match n.n_decode {
            0 => shape.attention.iter().map(|a| a.block_rows(gpu.caps())).min().expect("a layer"),
            _ => 1,
        };
        let block = |row: usize| [row as u32, step.min(n_rows - row) as u32];
        let blocks: Vec<u32> = (0..n_rows).step_by(step).flat_map(block).collect();
        let mut tokens = ids.to_vec();
        tokens.resize(MAX_SEQ_LEN, 0);
        let audio = shape.audio.as_ref();
        let n_positions = audio.map_or(1, |audio| audio.n_positions);
        let n_pages = n_positions.max(MAX_SEQ_LEN).div_ceil(PAGE_SIZE);
        let pages: Vec<u32> = (0..n_pages as u32).collect();
        Sequence {
            n,
            n_blocks: blocks.len() / 2,
            rows: table("rows", [n_rows, 2], &rows),
            blocks: table("blocks", [blocks.len() / 2, 2], &blocks),
            tokens: table("tokens", [1, MAX_SEQ_LEN], &tokens),
            pages: table("pages", [1, n_pages], &pages),
            ends: table("ends", [1, 1], &[n_rows.max(n_positions) as u32]),
            sampled: table("sampled", [1, 1], &[n_rows as u32 - 1]),
            spans: table("spans", [1, 2], &[0, n_rows as u32]),
            kv: cache(&shape.attention, n_pages),
            cross_kv: audio.map_or(Vec::new(), |audio| cache(&audio.cross_attention, n_pages)),
            n_positions,
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            n: self.n,
            n_sampled: 1,
            n_prompt_blocks: if self.n.n_prompt > 0 { self.n_blocks } else { 0 },
            longest: self.n.n_decode,
            rows: &self.rows,
            blocks: &self.blocks,
            tokens: &self.tokens,
            types: None,
            pages: &self.pages,
            page_size: PAGE_SIZE,
            ends: Some(&self.ends),
            clips: (!self.cross_kv.is_empty()).then_some(BatchClips {
                pages: &self.pages,
                ends: &self.ends,
                n_positions: self.n_positions,
                kv: &self.cross_kv,
                alignment: None,
            }),
            sampled: &self.sampled,
            kv: &self.kv,
        }
    }
}

fn capacity(max_rows: usize, max_seq_len: usize) -> Capacity {
    Capacity { max_rows, max_seqs: 1, max_sampled: 1, max_seq_len }
}

fn prompt(n_prompt: usize) -> Rows {
    Rows { n_decode: 0, n_prompt }
}

/// The layers of an architecture are what their file says, and no kernel more: norms are folded into products, a
/// projection rotates and writes the cache, a gate activates, residuals are added on the way out.
#[test]
fn a_recording_has_no_dispatch_too_many() {
    // As if it were hardware: software devices split rows and fuse less, in their own ways.
    let options = wginfer::gpu::GpuOptions { disable: "software".into(), ..Default::default() };
    // A device of its own: dispatches that other tests record are counted, too.
    let Some(gpu) = common::open(&options) else { return };
    let mut rec = Recorder::new(&gpu).expect("a recorder");
    let count = |rec: &mut Recorder, record: &mut dyn FnMut(&mut Recorder)| {
        let before = gpu.counts().dispatches;
        record(rec);
        rec.finish().expect("kernels compile");
        gpu.counts().dispatches - before
    };
    // Of a decoding row, of a prompt of 37. Most have two layers.
    // A layer that decodes: qkv, attention, out, gate and up, down. Of a prompt the norms, rope_append and gate besides.
    let decoders = [
        ("llama", [2 * 5 + 3, 2 * 9 + 3]),
        ("llama3-rope", [2 * 5 + 3, 2 * 9 + 3]),
        ("mistral-window", [2 * 5 + 3, 2 * 9 + 3]),
        ("qwen2", [2 * 5 + 3, 2 * 9 + 3]),
        // Heads are normalised between product and rotation.
        ("qwen3", [2 * 7 + 3, 2 * 10 + 3]),
        // Norms after attention and MLP, which add to the residual stream, and a cap on the logits.
        ("gemma2", [2 * 7 + 4, 2 * 11 + 4]),
        // No cap, but norms of heads.
        ("gemma3", [7 * 9 + 3, 7 * 12 + 3]),
        // No norms before.
        ("olmo2", [3 * 9 + 3, 3 * 10 + 3]),
        // Layer norms are not folded; positions are a second table.
        ("gpt2", [2 * 7 + 4, 2 * 9 + 4]),
        // Attention to the clip: norm, q, attention, out. Of a decoding row it is split and joined.
        ("whisper-words", [3 * 12 + 4, 3 * 13 + 4]),
    ];
    for (name, expected) in decoders {
        let (architecture, model) = load(&gpu, name);
        let shape = architecture.shape();
        assert_eq!(shape.kind, ModelKind::Decoder, "{name}");
        let mut s = model.scratch(&gpu, capacity(37, MAX_SEQ_LEN)).expect("a scratch");
        let found = [Rows { n_decode: 1, n_prompt: 0 }, prompt(37)].map(|n| {
            let sequence = Sequence::new(&gpu, &shape, n, &[1; 37]);
            let batch = sequence.batch();
            count(&mut rec, &mut |rec| {
                model.embed(rec, &batch, &mut s);
                (0..shape.n_layers()).for_each(|i| model.layer(i, rec, &batch, &mut s));
                model.outputs(rec, &batch, &mut s);
            })
        });
        assert_eq!(found, expected, "{name}");
    }
    // Embedding, layers and last norm; the head.
    let encoders = [
        ("bert-classifier", [4 + 2 * 9, 3]),
        ("roberta-classifier", [4 + 2 * 9, 3]),
        ("distilbert-classifier", [3 + 2 * 9, 3]),
        // The first layer has one norm less, the head one more.
        ("modernbert-classifier", [2 + 8 + 9 + 1, 4]),
    ];
    for (name, expected) in encoders {
        let (architecture, model) = load(&gpu, name);
        let shape = architecture.shape();
        assert_eq!(shape.kind, ModelKind::Encoder, "{name}");
        let mut s = model.scratch(&gpu, capacity(37, MAX_SEQ_LEN)).expect("a scratch");
        let sequence = Sequence::new(&gpu, &shape, prompt(37), &[1; 37]);
        let batch = sequence.batch();
        let rows = count(&mut rec, &mut |rec| {
            model.embed(rec, &batch, &mut s);
            (0..shape.n_layers()).for_each(|i| model.layer(i, rec, &batch, &mut s));
            model.outputs(rec, &batch, &mut s);
        });
        let head = count(&mut rec, &mut |rec| {
            model.classify(rec, &sequence.spans, 1, &mut s).expect("a head");
        });
        assert_eq!([rows, head], expected, "{name}");
    }
    // Two convolutions of three, positions, two layers, the last norm.
    let (architecture, model) = load(&gpu, "whisper-words");
    let audio = architecture.shape().audio.expect("an audio encoder");
    let encoder = model.audio_encoder().expect("an audio encoder");
    let features =
        Tensor::zeros(&gpu, "features", [audio.n_frames, audio.n_mels], Dtype::F32).expect("it fits");
    let mut s = model.scratch(&gpu, capacity(1, MAX_SEQ_LEN)).expect("a scratch");
    let found = count(&mut rec, &mut |rec| {
        encoder.embed(rec, &features, 0, &mut s);
        (0..audio.attention.len()).for_each(|i| encoder.layer(i, rec, &mut s));
        encoder.rows(rec, &mut s);
    });
    assert_eq!(found, 2 * 3 + 1 + 2 * 9 + 1, "the audio encoder");
}

/// One model, loaded once: what two scratches hold does not mix, however their recordings do.
#[test]
fn scratches_share_weights_and_nothing_else() {
    let Some(gpu) = common::gpu() else { return };
    for name in ["llama", "gpt2", "bert-classifier"] {
        let (architecture, model) = load(&gpu, name);
        let shape = architecture.shape();
        let result = |rec: &mut Recorder, sequence: &Sequence, s: &mut Scratch| match shape.kind {
            ModelKind::Decoder => model.outputs(rec, &sequence.batch(), s),
            ModelKind::Encoder => {
                model.outputs(rec, &sequence.batch(), s);
                model.classify(rec, &sequence.spans, 1, s).expect("a head")
            }
        };
        let read = |tensor: &Tensor| -> Vec<f32> {
            let words = gpu.read_row(tensor, 0).expect("it reads back");
            bytemuck::cast_slice(&words)[..tensor.n_cols()].to_vec()
        };
        let texts: [Vec<u32>; 2] = [(1..38).collect(), (40..60).collect()];
        let made = |ids: &Vec<u32>| {
            let s = model.scratch(&gpu, capacity(ids.len(), MAX_SEQ_LEN)).expect("a scratch");
            (Sequence::new(&gpu, &shape, prompt(ids.len()), ids), s)
        };
        let alone = texts.each_ref().map(|ids| {
            let (sequence, mut s) = made(ids);
            let mut z = None;
            common::run(&gpu, |rec| {
                model.embed(rec, &sequence.batch(), &mut s);
                (0..shape.n_layers()).for_each(|i| model.layer(i, rec, &sequence.batch(), &mut s));
                z = Some(result(rec, &sequence, &mut s));
            });
            read(&z.expect("logits"))
        });
        // Layer by layer in turn, in one recording.
        let mut both = texts.each_ref().map(made);
        let mut logits = Vec::new();
        common::run(&gpu, |rec| {
            both.iter_mut().for_each(|(sequence, s)| model.embed(rec, &sequence.batch(), s));
            for i in 0..shape.n_layers() {
                both.iter_mut().for_each(|(sequence, s)| model.layer(i, rec, &sequence.batch(), s));
            }
            logits.extend(both.iter_mut().map(|(sequence, s)| result(rec, sequence, s)));
        });
        for (z, alone) in logits.iter().zip(&alone) {
            common::assert_same_bits(name, &read(z), alone);
        }
        assert_ne!(alone[0], alone[1], "{name}: equal results are no accident");
    }
}

#[test]
fn a_scratch_is_no_longer_than_what_was_loaded() {
    let Some(gpu) = common::gpu() else { return };
    for name in ["llama", "bert-classifier", "whisper-words"] {
        let (_, model) = load(&gpu, name);
        let made = |n| catch_unwind(AssertUnwindSafe(|| model.scratch(&gpu, capacity(1, n)).map(|_| ())));
        assert!(made(MAX_SEQ_LEN).is_ok_and(|scratch| scratch.is_ok()), "{name}");
        assert!(made(MAX_SEQ_LEN + 1).is_err(), "{name}: positions that no table has");
    }
}
