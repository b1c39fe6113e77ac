//! Attention over the paged KV cache.

mod lanes;

use super::{KvLayer, PORTABLE_LANES, Rows, VISIBLE, assert_rows, coop, kernel, kv, kv_words};
use crate::gpu::{Caps, Depths, Kernel, Recorder, Size, Tensor, Variant, device_struct};
use lanes::Lanes;

device_struct! {
    struct Params {
        n_kv_heads: u32,
        q_stride: u32,
        o_stride: u32,
        pages_stride: u32,
        page_size: u32,
        window: u32,
        split_len: u32,
        max_splits: u32,
        block0: u32,
        scale: f32,
        softcap: f32,
    }
}

device_struct! {
    struct CombineParams {
        n_rows: u32,
        n_heads: u32,
        o_stride: u32,
        split_len: u32,
        window: u32,
    }
}

// Proven: rows, heads and dimensions are clamped to their counts before they index q, k and v, and pages to those of the
// keys that the block sees; outputs are bounded by their counts. The engine writes the tables, never a user. Indices into
// workgroup memory and arrays derive from constants and the lane.
kernel!(ATTENTION, "attention", Params, [Read, Read, Read, Read, Read, Read, Read, ReadWrite], proven);
kernel!(ATTENTION_REG, "attention_reg", Params, [Read, Read, Read, Read, Read, Read, Read, ReadWrite]);
kernel!(ATTENTION_ROW, "attention_row", Params, [Read, Read, Read, Read, Read, Read, Read, ReadWrite]);
// Proven: queries and dimensions are bounded by their counts before they index q, k, v and o, and keys by the block's
// end before they index pages. The engine writes the tables, never a user. Indices into workgroup memory derive from
// constants, subgroup and lane.
kernel!(
    ATTENTION_COOP,
    "attention_coop",
    Params,
    [Read, Read, Read, Read, Read, Read, Read, ReadWrite],
    proven
);
kernel!(ATTENTION_COMBINE, "attention_combine", CombineParams, [Read, Read, Read, ReadWrite]);

/// Lanes of `attention_reg` and `attention_row`, which must be one subgroup: the width of subgroups on software devices.
const REG_LANES: usize = 8;
/// Largest `head_dim` of both, four times `MAX_D4` of the one and 32 times `MAX_D8` of the other.
const REG_HEAD_DIM: usize = 256;
/// Most subgroups per workgroup of `attention_coop`; each has as many queries as a tile has rows.
const COOP_SUBGROUPS: usize = 4;
/// Most tiles per head in `attention_coop`.
const COOP_HEAD_TILES: usize = 16;
/// Keys per step of `attention_coop`.
const COOP_KEYS: usize = 32;
/// Keys per split and most splits per row, if a row has at least so many workgroups per split.
///
/// The largest cards have more than 130 multiprocessors, which want two workgroups each: with 8 key-value heads 32 splits,
/// with 2 heads more than there are. Shorter splits cost more to begin and to combine than they save, more splits need
/// more memory for partial sums.
const SPLITS: [(usize, usize, usize); 3] = [(16, 256, 32), (4, 128, 32), (1, 64, 64)];
/// The same for software devices, whose processors are few.
const SOFTWARE_SPLITS: (usize, usize) = (512, 32);

/// The shape of one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads; `n_heads` is a multiple.
    pub n_kv_heads: usize,
    /// Elements per head, a multiple of 4.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Whether a query sees only the keys up to its own position, or those on both sides, as in encoders.
    pub causal: bool,
    /// Keys that a query sees, its own included, or if not causal the number of keys on each side. Default: all.
    pub window: Option<usize>,
    /// Cap on the scores: `softcap · tanh(score / softcap)`. Default: no cap.
    pub softcap: Option<f32>,
}

/// The layout of a batch's rows for attention.
#[derive(Clone, Debug)]
pub struct AttentionPlan<'a> {
    /// (sequence, position) of each row: `[_, 2]`.
    pub rows: &'a Tensor,
    /// (first row, rows) of each block: `[_, 2]`. One block of one row per decode row comes first.
    pub blocks: &'a Tensor,
    /// Pages of each sequence: `[n_seqs, _]`.
    pub pages: &'a Tensor,
    /// Positions per page, a multiple of four.
    pub page_size: usize,
    /// Keys of each sequence, at least 1: `[1, n_seqs]`, for attention that is not causal.
    pub ends: Option<&'a Tensor>,
    /// Rows.
    pub n: Rows,
    /// Blocks of prompt rows, each of at most [`Attention::block_rows`] rows.
    pub n_prompt_blocks: usize,
    /// The longest sequence with a decode row, in positions. The splits of a row depend only on its own sequence.
    pub longest: usize,
    /// Partial sums: [`Attention::partial_shape`].
    pub partial: &'a Tensor,
    /// Longest sequence that `partial` has space for.
    pub max_seq_len: usize,
}

impl Attention {
    /// The operation that a recorder can be told to run portable variants of.
    pub(crate) const OPERATION: &str = "attention";

    /// Query heads per key-value head.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Whether queries and sums are in registers, for devices where barriers are expensive.
    fn in_registers(&self, caps: &Caps) -> bool {
        let one_subgroup = caps.is_one_subgroup(REG_LANES as u32) && self.group() <= REG_LANES;
        caps.cpu && one_subgroup && self.head_dim <= REG_HEAD_DIM
    }

    /// For prompts: the side of a cooperative matrix, and as many subgroups per workgroup as fit.
    fn on_tiles(&self, caps: &Caps) -> Option<(usize, usize)> {
        let tile = caps.coop_tile().filter(|_| caps.f16_products())? as usize;
        // A head is padded with zeros to whole groups of four tiles.
        let padded = self.head_dim.next_multiple_of(4 * tile);
        let fits = |n: &usize| {
            let Some(width) = caps.coop_width(*n as u32).map(|width| width as usize) else { return false };
            let queries = n * tile;
            // Queries, keys and weights are f16 with a padding of eight per row; scores are f32 with four.
            let halves = (queries + COOP_KEYS) * (padded + 8) + queries * (COOP_KEYS + 8);
            let words = queries * (COOP_KEYS + 4) + queries + COOP_KEYS + 1;
            let fits_memory = 2 * halves + 4 * words <= caps.max_workgroup_bytes as usize;
            let fits_size = n * width <= caps.max_workgroup_size as usize && width >= tile;
            fits_memory && fits_size && self.group() <= queries
        };
        let n_subgroups = (1..=COOP_SUBGROUPS).rev().find(fits)?;
        (padded <= COOP_HEAD_TILES * tile).then_some((tile, n_subgroups))
    }

    /// Query heads per workgroup of `attention`, and workgroups that share a key-value head.
    ///
    /// # Panics
    /// If a head is too wide: the loader asks [`Attention::fits`].
    fn heads(&self) -> (usize, usize) {
        let n_parts = self.group().div_ceil(self.most_queries());
        (self.group().div_ceil(n_parts), n_parts)
    }

    fn most_queries(&self) -> usize {
        Lanes::most_queries(self.head_dim).expect("the head fits")
    }

    /// Whether the kernel fits this device.
    pub fn fits(&self, caps: &Caps) -> bool {
        self.in_registers(caps) || Lanes::most_queries(self.head_dim).is_some()
    }

    /// Most prompt rows per block.
    pub fn block_rows(&self, caps: &Caps) -> usize {
        if let Some((tile, n_subgroups)) = self.on_tiles(caps) {
            return tile * n_subgroups / self.group();
        }
        if self.in_registers(caps) {
            return REG_LANES / self.group();
        }
        self.most_queries() / self.heads().0
    }

    /// Keys per split, and splits of the longest context: a function only of the kind of device, the heads and the longest
    /// context, so that a row is always split in the same way.
    fn splits(&self, caps: &Caps, max_seq_len: usize) -> (usize, usize) {
        let (len, most) = if caps.cpu {
            SOFTWARE_SPLITS
        } else {
            let n_groups = self.n_kv_heads * self.heads().1;
            let [.., fewest] = SPLITS;
            let (_, len, most) = SPLITS.into_iter().find(|(least, ..)| n_groups >= *least).unwrap_or(fewest);
            (len, most)
        };
        let len = len.max(max_seq_len.div_ceil(most).next_multiple_of(16));
        (len, max_seq_len.div_ceil(len))
    }

    /// Shape of the F32 tensor of partial sums for `n_decode` rows.
    pub fn partial_shape(&self, caps: &Caps, n_decode: usize, max_seq_len: usize) -> [usize; 2] {
        let (_, n_splits) = self.splits(caps, max_seq_len);
        // One row holds all partial sums of head_dim + 4 elements, because rows of that length would be padded.
        [1, (n_decode * self.n_heads * n_splits * (self.head_dim + 4)).next_multiple_of(8)]
    }

    /// Records attention: `q` and `o` `[rows, n_heads·head_dim]` F32, `cache` with pages of
    /// `n_kv_heads·page_size·head_dim` keys and values, and for causal attention `sinks` `[1, n_heads]` F32: for each
    /// head the score of one more key, whose value is zero (Xiao et al. 2024).
    ///
    /// Dao et al. 2022, algorithm 1; decode rows are split over the keys as in Dao et al. 2023 (Flash-Decoding).
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn launch(
        &self,
        rec: &mut Recorder,
        plan: &AttentionPlan<'_>,
        q: &Tensor,
        cache: &KvLayer,
        sinks: Option<&Tensor>,
        o: &Tensor,
    ) {
        for tensor in [q, o] {
            assert_eq!(tensor.n_cols(), self.n_heads * self.head_dim, "attention: {tensor:?}");
            assert_rows("attention", tensor, plan.n.count());
        }
        cache.check("attention", self.n_kv_heads * plan.page_size * self.head_dim);
        assert!(plan.page_size.is_multiple_of(4), "attention: pages of {} positions", plan.page_size);
        let gpu = rec.gpu().clone();
        let caps = gpu.caps_of(rec.is_portable(Self::OPERATION));
        let (split_len, max_splits) = self.splits(caps, plan.max_seq_len);
        let n_splits = plan.longest.div_ceil(split_len).clamp(1, max_splits);
        assert!(self.causal || plan.ends.is_some(), "attention: both sides want the ends of sequences");
        if let Some(sinks) = sinks {
            assert!(self.causal && sinks.n_cols() == self.n_heads, "attention: {sinks:?} for {self:?}");
        }
        let has_sinks = sinks.is_some();
        let ends_or_sinks = sinks.or(plan.ends).map_or_else(|| rec.unused(), Tensor::view);
        let in_registers = self.in_registers(caps);
        let (heads, n_parts) = if in_registers { (self.group(), 1) } else { self.heads() };
        let params = |block0: usize| Params {
            n_kv_heads: self.n_kv_heads as u32,
            q_stride: (q.stride() / 4) as u32,
            o_stride: (o.stride() / 4) as u32,
            pages_stride: plan.pages.n_cols() as u32,
            page_size: plan.page_size as u32,
            window: self.window.unwrap_or(0) as u32,
            split_len: split_len as u32,
            max_splits: max_splits as u32,
            block0: block0 as u32,
            scale: self.scale,
            softcap: self.softcap.unwrap_or(0.0),
        };
        let bind = |out: &Tensor| {
            let [rows, blocks, pages, q, k, v, out] =
                [plan.rows, plan.blocks, plan.pages, q, &cache.k, &cache.v, out].map(Tensor::view);
            [rows, blocks, pages, ends_or_sinks.clone(), q, k, v, out]
        };
        let n_kv = (self.n_kv_heads * n_parts) as u32;
        if plan.n.n_decode > 0 {
            let split = n_splits > 1;
            let out = if split { plan.partial } else { o };
            let groups = [plan.n.n_decode as u32, n_kv, n_splits as u32];
            let variant = match in_registers {
                true => self.in_reg(&ATTENTION_ROW, caps, cache).set("SPLIT", split.into()),
                false => self.variant(cache, heads, split),
            };
            // The number of splits grows with the keys, which are counted already.
            let size = Size { n_pieces: 1, groups: [groups[0], n_kv, 1], depth: self.depth(rec, false) };
            rec.dispatch_pieces(with_sinks(variant, has_sinks), &bind(out), size, |_| (params(0), groups));
            if split {
                self.combine(rec, plan, sinks, o, [split_len, max_splits]);
            }
        }
        if plan.n.n_prompt > 0 {
            let tiles = self.on_tiles(caps);
            let variant = match tiles {
                Some(tiles) => self.variant_on_tiles(caps, cache, tiles),
                None if in_registers => self.in_reg(&ATTENTION_REG, caps, cache),
                None => self.variant(cache, heads * self.block_rows(caps), false),
            };
            let n_groups = if tiles.is_some() { self.n_kv_heads as u32 } else { n_kv };
            // A piece is a block.
            let n_pieces = plan.n_prompt_blocks;
            let groups = |n: usize| [n as u32, n_groups, 1];
            let size = Size { n_pieces, groups: groups(n_pieces), depth: self.depth(rec, true) };
            rec.dispatch_pieces(with_sinks(variant, has_sinks), &bind(o), size, |pieces| {
                (params(plan.n.n_decode + pieces.start), groups(pieces.len()))
            });
        }
    }

    /// Keys that a row of the batch sees on average, as far as the recorder knows.
    fn depth(&self, rec: &Recorder, is_prompt: bool) -> f64 {
        let Depths { decode, prompt, both_sides } = rec.depths();
        let keys = match (self.causal, is_prompt) {
            (false, _) => both_sides,
            (true, false) => decode,
            (true, true) => prompt,
        };
        self.window.map_or(keys, |window| keys.min(2.0 * window as f64))
    }

    /// For workgroups of at most `n_queries` queries.
    fn variant(&self, cache: &KvLayer, n_queries: usize, split: bool) -> Variant {
        let (part, word) = kv_words(cache.dtype, self.head_dim);
        let lanes = Lanes::new(self.head_dim, word, n_queries).expect("the queries fit");
        let variant = self.set(Variant::new(&ATTENTION).part(part)).set("SPLIT", split.into());
        lanes.set(variant.set("HEADS", self.heads().0 as u32))
    }

    /// For devices where barriers are expensive.
    fn in_reg(&self, kernel: &'static Kernel, caps: &Caps, cache: &KvLayer) -> Variant {
        self.set(Variant::new(kernel).part(kv(caps, cache.dtype)))
    }

    fn set(&self, variant: Variant) -> Variant {
        variant
            .part(&VISIBLE)
            .set("GROUP", self.group() as u32)
            .set("N_D4", (self.head_dim / 4) as u32)
            .set("CAUSAL", self.causal.into())
    }

    fn variant_on_tiles(&self, caps: &Caps, cache: &KvLayer, (tile, n_subgroups): (usize, usize)) -> Variant {
        self.set(Variant::new(&ATTENTION_COOP).part(coop(tile as u32)).part(kv(caps, cache.dtype)))
            .set("SG", caps.coop_width(n_subgroups as u32).unwrap_or_default())
            .set("N_SG", n_subgroups as u32)
    }

    fn combine(
        &self,
        rec: &mut Recorder,
        plan: &AttentionPlan<'_>,
        sinks: Option<&Tensor>,
        o: &Tensor,
        [split_len, max_splits]: [usize; 2],
    ) {
        let n4 = (self.head_dim / 4) as u32;
        // On software devices, a barrier costs little only if the workgroup is one subgroup.
        let lanes = if rec.gpu().caps().cpu { REG_LANES as u32 } else { PORTABLE_LANES };
        let params = CombineParams {
            n_rows: plan.n.n_decode as u32,
            n_heads: self.n_heads as u32,
            o_stride: (o.stride() / 4) as u32,
            split_len: split_len as u32,
            window: self.window.unwrap_or(0) as u32,
        };
        let variant = Variant::new(&ATTENTION_COMBINE)
            .part(&VISIBLE)
            .set("WG", lanes)
            .set("N_D4", n4)
            .set("N_SPLITS", max_splits as u32)
            .set("SHARES", (lanes / n4).max(1))
            .set("CAUSAL", self.causal.into());
        let ends_or_sinks = sinks.or(plan.ends).map_or_else(|| rec.unused(), Tensor::view);
        let groups = rec.gpu().caps().spread((plan.n.n_decode * self.n_heads) as u32);
        let views = [plan.rows.view(), ends_or_sinks, plan.partial.view(), o.view()];
        rec.dispatch(with_sinks(variant, sinks.is_some()), &params, &views, groups);
    }
}

fn with_sinks(variant: Variant, has_sinks: bool) -> Variant {
    if has_sinks { variant.set("SINKS", 1) } else { variant }
}
