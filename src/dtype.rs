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
    /// ggml's blocks of 32: `d·q + m` with F16 `d` and `m`, 4-bit `q`. 5 bits per element.
    Q4_1,
    /// ggml's blocks of 32: `d·(q − 16)` with an F16 `d` and 5-bit `q`. 5.5 bits per element.
    Q5_0,
    /// ggml's blocks of 32: `d·q + m` with F16 `d` and `m`, 5-bit `q`. 6 bits per element.
    Q5_1,
    /// ggml's superblocks of 256: `d·s·q − m·t` for each 16, with F16 `d` and `m`, 4-bit `s` and `t`, 2-bit `q`. 2.625
    /// bits per element. Unlike in ggml, the last superblock of a row may be shorter, here and in the next ones.
    Q2_K,
    /// ggml's superblocks of 256: `d·(s − 32)·(q − 4)` for each 16, with an F16 `d`, 6-bit `s`, 3-bit `q`. 3.4375 bits
    /// per element.
    Q3_K,
    /// ggml's superblocks of 256: `d·s·q − m·t` for each block of 32, with F16 `d` and `m`, 6-bit `s` and `t`, 4-bit
    /// `q`. 4.5 bits per element.
    Q4_K,
    /// As `Q4_K` with 5-bit `q`. 5.5 bits per element.
    Q5_K,
    /// ggml's superblocks of 256: `d·s·(q − 32)` for each 16, with an F16 `d`, signed 8-bit `s`, 6-bit `q`. 6.5625 bits
    /// per element.
    Q6_K,
    /// ggml's blocks of 32: `d·v[q]` with an F16 `d`, 4-bit `q` and a table `v` of 16 values. 4.5 bits per element.
    IQ4_NL,
    /// ggml's superblocks of 256: `d·(s − 32)·v[q]` for each block of 32, with an F16 `d`, 6-bit `s`, and `q` and `v` of
    /// `IQ4_NL`. 4.25 bits per element.
    IQ4_XS,
    /// ggml's blocks of 32: `2^(e − 127)·v` with an 8-bit `e` and 4-bit floats `v` (OCP Microscaling Formats 1.0). 4.25
    /// bits per element.
    MXFP4,
}

/// Elements of a quantised block. Rows are aligned to it, too.
pub const BLOCK: usize = 32;

/// Elements of a superblock, whose blocks share a factor in ggml's `K` types.
pub const SUPERBLOCK: usize = 256;

/// How a row of quantised weights is laid out for kernels that load 16 bytes at a time: its planes one after the other,
/// each padded to 16 bytes. In bytes, without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Of each block, its quants of 8 bits, in order; or the lower four bits of its quants: in 4-byte word `c` of a
    /// block's 16 bytes, the low nibbles are elements `8c` to `8c + 3` and the high ones `8c + 4` to `8c + 7`.
    pub quants: usize,
    /// Of each block, two bits of its quants: in byte `e` of its 4-byte word `c`, elements `8j + 4c + e` have bits
    /// `2j` and `2j + 1`.
    pub pairs: usize,
    /// Of each block, one bit of its quants: in byte `e` of 4, elements `4j + e` have bit `j`.
    pub bits: usize,
    /// The scales, in ggml's order.
    pub scales: usize,
    /// Of each superblock, its F16 factors, if they are not among the scales.
    pub factors: usize,
}

impl Planes {
    /// Where each plane begins, and the end of the last.
    pub const fn starts(self) -> [usize; 6] {
        let sizes = [self.quants, self.pairs, self.bits, self.scales, self.factors];
        let mut starts = [0; 6];
        let mut i = 0;
        while i < 5 {
            starts[i + 1] = starts[i] + sizes[i].next_multiple_of(16);
            i += 1;
        }
        starts
    }
}

impl Dtype {
    /// All types that weights can have.
    pub const WEIGHTS: [Dtype; 16] = [
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::Q8_0,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::Q2_K,
        Dtype::Q3_K,
        Dtype::Q4_K,
        Dtype::Q5_K,
        Dtype::Q6_K,
        Dtype::IQ4_NL,
        Dtype::IQ4_XS,
        Dtype::MXFP4,
    ];
    /// The types that the device can quantise to. Weights have the other quantised types only as a file stores them.
    pub const QUANTISED: [Dtype; 3] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K];

    /// Bytes of a row of `n` elements. For a quantised type, `n` must be a multiple of [`BLOCK`], and the row is laid
    /// out in [`Planes`].
    pub const fn bytes(self, n: usize) -> usize {
        match self {
            Dtype::F32 | Dtype::U32 => n * 4,
            Dtype::F16 | Dtype::BF16 => n * 2,
            _ => self.planes(n).starts()[5],
        }
    }

    /// The planes of a row of `n` elements, for a quantised type a multiple of [`BLOCK`]. A type that has no blocks has one
    /// plane, its elements.
    pub const fn planes(self, n: usize) -> Planes {
        let (blocks, superblocks) = (n / BLOCK, n.div_ceil(SUPERBLOCK));
        let planes = Planes { quants: 16 * blocks, pairs: 0, bits: 0, scales: 16 * superblocks, factors: 0 };
        match self {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::U32 => {
                Planes { quants: self.bytes(n), scales: 0, ..planes }
            }
            Dtype::Q8_0 => Planes { quants: 32 * blocks, ..planes },
            Dtype::Q4_0 | Dtype::Q4_K | Dtype::IQ4_NL => planes,
            Dtype::Q4_1 => Planes { scales: 4 * blocks, ..planes },
            Dtype::Q5_0 | Dtype::Q5_K => Planes { bits: 4 * blocks, ..planes },
            Dtype::Q5_1 => Planes { bits: 4 * blocks, scales: 4 * blocks, ..planes },
            Dtype::Q2_K => Planes { quants: 0, pairs: 8 * blocks, factors: 4 * superblocks, ..planes },
            Dtype::Q3_K => Planes {
                quants: 0,
                pairs: 8 * blocks,
                bits: 4 * blocks,
                scales: 12 * superblocks,
                factors: 2 * superblocks,
            },
            Dtype::Q6_K => Planes { pairs: 8 * blocks, factors: 2 * superblocks, ..planes },
            Dtype::IQ4_XS | Dtype::MXFP4 => Planes { scales: 8 * superblocks, ..planes },
        }
    }

    /// Whether elements come in blocks with scales.
    pub const fn is_quantised(self) -> bool {
        !matches!(self, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::U32)
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
            Dtype::Q4_1 => "Q4_1",
            Dtype::Q5_0 => "Q5_0",
            Dtype::Q5_1 => "Q5_1",
            Dtype::Q2_K => "Q2_K",
            Dtype::Q3_K => "Q3_K",
            Dtype::Q4_K => "Q4_K",
            Dtype::Q5_K => "Q5_K",
            Dtype::Q6_K => "Q6_K",
            Dtype::IQ4_NL => "IQ4_NL",
            Dtype::IQ4_XS => "IQ4_XS",
            Dtype::MXFP4 => "MXFP4",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
