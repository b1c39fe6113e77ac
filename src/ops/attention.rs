//! Attention over the paged KV cache.

use super::{KvLayer, Rows, VISIBLE, assert_rows, coop, kernel, kv};
use crate::gpu::{Caps, Recorder, Tensor, Variant, device_struct};

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
        max_splits: u32,
        window: u32,
    }
}

kernel!(ATTENTION, "attention", Params, [Read, Read, Read, Read, Read, Read, Read, ReadWrite]);
kernel!(ATTENTION_REG, "attention_reg", Params, [Read, Read, Read, Read, Read, Read, Read, ReadWrite]);
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

/// Most queries of a block, `N_Q` in the kernel.
const MOST_QUERIES: usize = 16;
/// `MAX_SUMS` in the kernel.
const MAX_SUMS: usize = 32;
/// Lanes of `attention_reg`, which must be one subgroup: the width of subgroups on software devices.
const REG_LANES: usize = 8;
/// Largest `head_dim` of `attention_reg`, four times its `MAX_D4`.
const REG_HEAD_DIM: usize = 256;
/// Most subgroups per workgroup of `attention_coop`; each has as many queries as a tile has rows.
const COOP_SUBGROUPS: usize = 4;
/// Most tiles per head in `attention_coop`.
const COOP_HEAD_TILES: usize = 16;
/// Keys per step of `attention_coop`.
const COOP_KEYS: usize = 32;
/// Least keys per split: shorter splits cost more to combine than they save.
const SPLIT_LEN: usize = 512;
/// Most splits per row, which bounds the memory for partial sums.
const MAX_SPLITS: usize = 32;

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
    /// Positions a page.
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

    /// Whether a lane keeps a whole query in registers, for devices where barriers are expensive.
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

    /// Lanes per workgroup: as many as the sums need, or one per query if queries are in registers.
    fn lanes(&self, caps: &Caps) -> usize {
        if self.in_registers(caps) {
            return REG_LANES;
        }
        let least = if caps.cpu { 8 } else { 64 };
        (self.group() * self.head_dim / 4).div_ceil(MAX_SUMS).next_power_of_two().max(least)
    }

    /// Whether the kernel fits this device: its workgroup memory must hold the queries of one position that share a
    /// key-value head.
    pub fn fits(&self, caps: &Caps) -> bool {
        let group_bytes = self.group() * (self.head_dim + 32) * 4;
        let fits_memory = self.in_registers(caps) || group_bytes <= caps.max_workgroup_bytes as usize;
        fits_memory && self.lanes(caps) <= caps.max_workgroup_size as usize
    }

    /// Most prompt rows per block.
    pub fn block_rows(&self, caps: &Caps) -> usize {
        if let Some((tile, n_subgroups)) = self.on_tiles(caps) {
            return tile * n_subgroups / self.group();
        }
        if self.in_registers(caps) {
            return self.lanes(caps) / self.group();
        }
        let by_sums = MAX_SUMS * self.lanes(caps) / (self.head_dim / 4);
        // Each query needs its elements, weights and running values; 1 KiB is left over.
        let by_memory = (caps.max_workgroup_bytes as usize - 1024) / ((self.head_dim + 16 + 4) * 4);
        (MOST_QUERIES.min(by_sums).min(by_memory) / self.group()).max(1)
    }

    /// Keys per split: a function only of the longest context, so that a row is always split in the same way.
    fn split_len(max_seq_len: usize) -> usize {
        SPLIT_LEN.max(max_seq_len.div_ceil(MAX_SPLITS).next_multiple_of(16))
    }

    /// Shape of the F32 tensor of partial sums for `n_decode` rows.
    pub fn partial_shape(&self, n_decode: usize, max_seq_len: usize) -> [usize; 2] {
        let n_splits = max_seq_len.div_ceil(Self::split_len(max_seq_len));
        // One row holds all partial sums of head_dim + 4 elements, because rows of that length would be padded.
        [1, (n_decode * self.n_heads * n_splits * (self.head_dim + 4)).next_multiple_of(8)]
    }

    /// Records attention: `q` and `o` `[rows, n_heads·head_dim]` F32, `cache` with pages of
    /// `n_kv_heads·page_size·head_dim` keys and values.
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
        o: &Tensor,
    ) {
        let n4 = self.head_dim / 4;
        for tensor in [q, o] {
            assert_eq!(tensor.n_cols(), self.n_heads * self.head_dim, "attention: {tensor:?}");
            assert_rows("attention", tensor, plan.n.count());
        }
        cache.check("attention", self.n_kv_heads * plan.page_size * self.head_dim);
        let gpu = rec.gpu().clone();
        let caps = gpu.caps_of(rec.is_portable(Self::OPERATION));
        let split_len = Self::split_len(plan.max_seq_len);
        let max_splits = plan.max_seq_len.div_ceil(split_len);
        let n_splits = plan.longest.div_ceil(split_len).clamp(1, max_splits);
        let in_registers = self.in_registers(caps);
        assert!(self.causal || plan.ends.is_some(), "attention: both sides want the ends of sequences");
        let ends = plan.ends.map_or_else(|| rec.unused(), Tensor::view);
        let variant = |n_rows: usize, split: bool| {
            let variant = Variant::new(if in_registers { &ATTENTION_REG } else { &ATTENTION })
                .part(kv(cache.dtype))
                .part(&VISIBLE)
                .set("GROUP", self.group() as u32)
                .set("N_D4", n4 as u32)
                .set("SPLIT", split.into())
                .set("CAUSAL", self.causal.into());
            if in_registers {
                return variant;
            }
            variant.set("WG", self.lanes(caps) as u32).set("N_Q", (n_rows * self.group()) as u32)
        };
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
            [rows, blocks, pages, ends.clone(), q, k, v, out]
        };
        let n_kv = self.n_kv_heads as u32;
        if plan.n.n_decode > 0 {
            let split = n_splits > 1;
            let out = if split { plan.partial } else { o };
            let groups = [plan.n.n_decode as u32, n_kv, n_splits as u32];
            rec.dispatch(variant(1, split), &params(0), &bind(out), groups);
            if split {
                self.combine(rec, plan, o, split_len, max_splits);
            }
        }
        if plan.n.n_prompt > 0 {
            let groups = [plan.n_prompt_blocks as u32, n_kv, 1];
            let variant = match self.on_tiles(caps) {
                Some((tile, n_subgroups)) => Variant::new(&ATTENTION_COOP)
                    .part(coop(tile as u32))
                    .part(kv(cache.dtype))
                    .part(&VISIBLE)
                    .set("CAUSAL", self.causal.into())
                    .set("SG", caps.coop_width(n_subgroups as u32).unwrap_or_default())
                    .set("N_SG", n_subgroups as u32)
                    .set("GROUP", self.group() as u32)
                    .set("N_D4", n4 as u32),
                None => variant(self.block_rows(caps), false),
            };
            rec.dispatch(variant, &params(plan.n.n_decode), &bind(o), groups);
        }
    }

    fn combine(
        &self,
        rec: &mut Recorder,
        plan: &AttentionPlan<'_>,
        o: &Tensor,
        split_len: usize,
        max_splits: usize,
    ) {
        let lanes = super::PORTABLE_LANES;
        let n4 = (self.head_dim / 4) as u32;
        let params = CombineParams {
            n_rows: plan.n.n_decode as u32,
            n_heads: self.n_heads as u32,
            o_stride: (o.stride() / 4) as u32,
            split_len: split_len as u32,
            max_splits: max_splits as u32,
            window: self.window.unwrap_or(0) as u32,
        };
        let variant = Variant::new(&ATTENTION_COMBINE)
            .part(&VISIBLE)
            .set("WG", lanes)
            .set("N_D4", n4)
            .set("CAUSAL", self.causal.into());
        let ends = plan.ends.map_or_else(|| rec.unused(), Tensor::view);
        let items = plan.n.n_decode as u32 * self.n_heads as u32 * n4;
        let groups = rec.gpu().caps().spread(items.div_ceil(lanes));
        rec.dispatch(variant, &params, &[plan.rows.view(), ends, plan.partial.view(), o.view()], groups);
    }
}
