//! Element types of tensors. A quantised type is a variant here and a shader part, not a copy of a kernel.

/// How the elements of a [`Tensor`](crate::gpu::Tensor) are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)] // ggml's names
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision, two per 32-bit word.
    F16,
    /// The upper half of an `F32`, two per 32-bit word.
    BF16,
    /// Unsigned 32-bit integers: token ids, positions, page numbers.
    U32,
    /// ggml's blocks of 32: `d·q` with an F16 `d` and signed 8-bit `q`. 8.5 bits per element.
    Q8_0,
    /// ggml's blocks of 32: `d·(q − 8)` with an F16 `d` and 4-bit `q`. 4.5 bits per element.
    Q4_0,
    /// ggml's superblocks of 256: `d·s·q − m·t` for each block of 32, with F16 `d` and `m`, 6-bit `s` and `t`, 4-bit
    /// `q`. 4.5 bits per element. Unlike in ggml, the last superblock of a row may have fewer than 8 blocks.
    Q4_K,
}

/// Elements of a quantised block. Rows are aligned to it, too.
pub const BLOCK: usize = 32;

/// Elements that share 16 bytes of scales in a row of quantised weights.
pub const SUPERBLOCK: usize = 256;

impl Dtype {
    /// All types that weights can have.
    pub const WEIGHTS: [Dtype; 6] =
        [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K];
    /// The quantised types.
    pub const QUANTISED: [Dtype; 3] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K];

    /// Bytes of a row of `n` elements. For a quantised type, `n` must be a multiple of [`BLOCK`], and the row is laid
    /// out for kernels that load 16 bytes at a time: first the quants of all its blocks, then 16 bytes for each
    /// [`SUPERBLOCK`], which are eight F16 scales, or for `Q4_K` two F16 factors and eight pairs of 6 bits.
    pub const fn bytes(self, n: usize) -> usize {
        match self {
            Dtype::F32 | Dtype::U32 => n * 4,
            Dtype::F16 | Dtype::BF16 => n * 2,
            Dtype::Q8_0 => n + 16 * n.div_ceil(SUPERBLOCK),
            Dtype::Q4_0 | Dtype::Q4_K => n / 2 + 16 * n.div_ceil(SUPERBLOCK),
        }
    }

    /// Whether elements come in blocks with scales.
    pub const fn is_quantised(self) -> bool {
        matches!(self, Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4_K)
    }

    /// Largest magnitude that quantisation to this type keeps finite: the scales of a block are F16.
    pub(crate) const fn most_quantised(self) -> f32 {
        let most_f16 = 65504.0;
        match self {
            Dtype::Q8_0 => 127.0 * most_f16,
            Dtype::Q4_0 => 8.0 * most_f16,
            Dtype::Q4_K => 63.0 * most_f16,
            _ => f32::MAX,
        }
    }

    /// The type of weights with that name, ignoring case.
    pub fn from_name(name: &str) -> Option<Dtype> {
        Dtype::WEIGHTS.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name))
    }

    /// The name, as ggml and safetensors spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::U32 => "U32",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4_K => "Q4_K",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
