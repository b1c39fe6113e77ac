//! The device memory of the KV cache.

use super::{
    APPEND_F16, APPEND_F32, APPEND_Q8_0, KV_F16, KV_F16_64, KV_F16_WIDE, KV_F32, KV_F32_64, KV_Q8_0,
    PAIR_F16, PAIR_F32, assert_rows, loads_64_bits,
};
use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{Caps, Gpu, GpuError, Part, Tensor};

/// One layer's share of the KV cache: `n_pages` pages of `n_kv_heads·page_size·head_dim` keys and as many values.
#[derive(Clone, Debug)]
pub struct KvLayer {
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
    /// The type of both: `F32`, `F16` or `Q8_0`.
    pub dtype: Dtype,
}

/// 32-bit words per block of a `Q8_0` cache: the scale and 32 signed bytes. The scale is F32, so that no two
/// invocations write to one word. Four blocks are together, their scales first, so that bytes are aligned.
const Q8_WORDS: usize = 1 + BLOCK / 4;

impl KvLayer {
    /// The types that a cache can have.
    pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Q8_0];

    /// Allocates `n_pages` pages of `width` elements for keys and as many for values; `width` is a multiple of 32.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    ///
    /// # Panics
    /// If `dtype` is `Q8_0` and `width` is not a multiple of 128.
    pub fn new(gpu: &Gpu, i: usize, n_pages: usize, width: usize, dtype: Dtype) -> Result<Self, GpuError> {
        assert!(dtype != Dtype::Q8_0 || width.is_multiple_of(4 * BLOCK), "a Q8_0 cache of pages of {width}");
        let tensor = |name: &str| {
            let (n_cols, stored) = stored(dtype, width);
            Tensor::zeros(gpu, &format!("{name} cache {i}"), [n_pages, n_cols], stored)
        };
        Ok(KvLayer { k: tensor("key")?, v: tensor("value")?, dtype })
    }

    /// Bytes of `width` elements of keys, or of values.
    pub fn bytes(dtype: Dtype, width: usize) -> usize {
        let (n_cols, stored) = stored(dtype, width);
        stored.bytes(n_cols)
    }

    /// Asserts that a page has `width` elements of keys.
    pub(super) fn check(&self, what: &str, width: usize) {
        let (n_cols, stored) = stored(self.dtype, width);
        for tensor in [&self.k, &self.v] {
            assert_eq!((tensor.n_cols(), tensor.dtype()), (n_cols, stored), "{what}: {tensor:?}");
            assert_rows(what, tensor, 1);
        }
    }
}

/// Columns and type of a tensor whose rows hold `width` elements of a `dtype` cache.
fn stored(dtype: Dtype, width: usize) -> (usize, Dtype) {
    match dtype {
        Dtype::Q8_0 => (width / BLOCK * Q8_WORDS, Dtype::U32),
        other => (width, other),
    }
}

/// The part that reads a cache of `dtype`, four elements at a time.
pub(super) fn kv(caps: &Caps, dtype: Dtype) -> &'static Part {
    match dtype {
        Dtype::F32 if loads_64_bits(caps) => &KV_F32_64,
        Dtype::F16 if loads_64_bits(caps) => &KV_F16_64,
        Dtype::F32 => &KV_F32,
        Dtype::F16 => &KV_F16,
        Dtype::Q8_0 => &KV_Q8_0,
        other => unreachable!("no cache is kept in {other}"),
    }
}

/// The part that reads a cache of `dtype` with heads of `head_dim` elements in the largest words, and the elements of a
/// word.
pub(super) fn kv_words(dtype: Dtype, head_dim: usize) -> (&'static Part, usize) {
    match dtype {
        Dtype::F16 if head_dim.is_multiple_of(8) => (&KV_F16_WIDE, 8),
        Dtype::Q8_0 => (&KV_Q8_0, 8),
        Dtype::F16 => (&KV_F16, 4),
        Dtype::F32 => (&KV_F32, 4),
        other => unreachable!("no cache is kept in {other}"),
    }
}

/// The part that appends to a cache of `dtype`.
pub(super) fn append(dtype: Dtype) -> &'static Part {
    match dtype {
        Dtype::F32 => &APPEND_F32,
        Dtype::F16 => &APPEND_F16,
        Dtype::Q8_0 => &APPEND_Q8_0,
        other => unreachable!("no cache is kept in {other}"),
    }
}

/// The part that packs two values for a cache of `dtype`.
pub(super) fn pair(dtype: Dtype) -> &'static Part {
    match dtype {
        Dtype::F32 => &PAIR_F32,
        Dtype::F16 => &PAIR_F16,
        other => unreachable!("pairs are not packed in {other}"),
    }
}
