//! ggml's types: what a file stores of each, and how a stored row becomes a row in device memory.
//!
//! A quantised row changes only the order of its bytes: quants and scales stay as they are. A new type on the device is a
//! [`Dtype`] with ggml's name and an arm of [`repack`].

use std::ops::Range;

use crate::dtype::{BLOCK, Dtype};

/// A type of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// ggml's number (`enum ggml_type`).
    pub number: u32,
    /// ggml's name.
    pub name: &'static str,
    /// Elements of a block. A row is a whole number of blocks.
    pub block: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
}

const fn of(number: u32, name: &'static str, block: usize, block_bytes: usize) -> GgmlType {
    GgmlType { number, name, block, block_bytes }
}

/// Every type that a file can have (ggml.c, `type_traits`).
pub static TYPES: &[GgmlType] = &[
    of(0, "F32", 1, 4),
    of(1, "F16", 1, 2),
    of(2, "Q4_0", 32, 18),
    of(3, "Q4_1", 32, 20),
    of(6, "Q5_0", 32, 22),
    of(7, "Q5_1", 32, 24),
    of(8, "Q8_0", 32, 34),
    of(9, "Q8_1", 32, 36),
    of(10, "Q2_K", 256, 84),
    of(11, "Q3_K", 256, 110),
    of(12, "Q4_K", 256, 144),
    of(13, "Q5_K", 256, 176),
    of(14, "Q6_K", 256, 210),
    of(15, "Q8_K", 256, 292),
    of(16, "IQ2_XXS", 256, 66),
    of(17, "IQ2_XS", 256, 74),
    of(18, "IQ3_XXS", 256, 98),
    of(19, "IQ1_S", 256, 50),
    of(20, "IQ4_NL", 32, 18),
    of(21, "IQ3_S", 256, 110),
    of(22, "IQ2_S", 256, 82),
    of(23, "IQ4_XS", 256, 136),
    of(24, "I8", 1, 1),
    of(25, "I16", 1, 2),
    of(26, "I32", 1, 4),
    of(27, "I64", 1, 8),
    of(28, "F64", 1, 8),
    of(29, "IQ1_M", 256, 56),
    of(30, "BF16", 1, 2),
    of(34, "TQ1_0", 256, 54),
    of(35, "TQ2_0", 256, 66),
    of(39, "MXFP4", 32, 17),
];

impl GgmlType {
    /// The type with ggml's number.
    pub fn from_number(number: u32) -> Option<&'static GgmlType> {
        TYPES.iter().find(|known| known.number == number)
    }

    /// The type with ggml's name.
    pub fn from_name(name: &str) -> Option<&'static GgmlType> {
        TYPES.iter().find(|known| known.name == name)
    }
}

/// Writes a stored row of `dtype` in the layout that [`Dtype::bytes`] describes: `to` has the bytes of as many elements
/// (of a type without blocks also of more), and is zero.
///
/// # Panics
/// If `row` is no whole number of blocks, or `to` has another length.
pub fn repack(dtype: Dtype, row: &[u8], to: &mut [u8]) {
    if let Some(kind) = GgmlType::from_name(dtype.name()).filter(|kind| kind.block > 1) {
        let n = row.len() / kind.block_bytes * kind.block;
        assert_eq!(to.len(), dtype.bytes(n), "a row of {n} elements in {dtype}");
    }
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => to[..row.len()].copy_from_slice(row),
        Dtype::Q8_0 => blocks::<34>(row, to, dtype, [0..2, 0..0], |b, _| *b.last_chunk().expect("32 quants")),
        Dtype::Q4_0 | Dtype::IQ4_NL => blocks::<18>(row, to, dtype, [0..2, 0..0], |b, _| halves(&b[2..])),
        Dtype::Q4_1 => blocks::<20>(row, to, dtype, [0..4, 0..0], |b, _| halves(&b[4..])),
        Dtype::Q5_0 => {
            blocks::<22>(row, to, dtype, [0..2, 0..0], |b, _| with_fifth(halves(&b[6..]), &b[2..6]))
        }
        Dtype::Q5_1 => {
            blocks::<24>(row, to, dtype, [0..4, 0..0], |b, _| with_fifth(halves(&b[8..]), &b[4..8]))
        }
        Dtype::MXFP4 => blocks::<17>(row, to, dtype, [0..1, 0..0], |b, _| halves(&b[1..])),
        Dtype::IQ4_XS => blocks::<136>(row, to, dtype, [0..8, 0..0], |b, j| halves(&b[8 + 16 * j..])),
        // 32 bytes have a block in their low nibbles and the next one in their high ones.
        Dtype::Q4_K => {
            blocks::<144>(row, to, dtype, [0..16, 0..0], |b, j| shifted(&b[16 + j / 2 * 32..], j % 2 * 4, 15))
        }
        Dtype::Q5_K => blocks::<176>(row, to, dtype, [0..16, 0..0], |b, j| {
            with(shifted(&b[48 + j / 2 * 32..], j % 2 * 4, 15), shifted(&b[16..], j, 1), 4)
        }),
        // In each half, 32 bytes have a block in their low nibbles and the next but one in their high ones, 32 bytes have
        // two bits of four blocks.
        Dtype::Q6_K => blocks::<210>(row, to, dtype, [192..208, 208..210], |b, j| {
            let low = shifted(&b[j / 4 * 64 + j % 2 * 32..], j % 4 / 2 * 4, 15);
            with(low, shifted(&b[128 + j / 4 * 32..], j % 4 * 2, 3), 4)
        }),
        Dtype::Q3_K => blocks::<110>(row, to, dtype, [96..108, 108..110], |b, j| {
            with(shifted(&b[32 + j / 4 * 32..], j % 4 * 2, 3), shifted(b, j, 1), 2)
        }),
        Dtype::Q2_K => {
            blocks::<84>(row, to, dtype, [0..16, 80..84], |b, j| shifted(&b[16 + j / 4 * 32..], j % 4 * 2, 3))
        }
        Dtype::U32 => unreachable!("u32 tables are not weights"),
    }
}

/// Writes the bytes that ggml stores of a row in MXFP4 behind `row`, from how transformers stores it: `blocks` have
/// neighbours in the nibbles of a byte, the first in the low one (`integrations/mxfp4.py`), and `scales` are apart.
pub(crate) fn mxfp4(blocks: &[u8], scales: &[u8], row: &mut Vec<u8>) {
    let nibble = |block: &[u8], i: usize| block[i / 2] >> (i % 2 * 4) & 15;
    for (block, scale) in blocks.chunks_exact(16).zip(scales) {
        row.push(*scale);
        row.extend((0..16).map(|i| nibble(block, i) | nibble(block, 16 + i) << 4));
    }
}

/// The quants of a block of 32.
type Quants = [u8; BLOCK];

/// Repacks blocks of `N` bytes, whose scales and other factors are the ranges `heads`. `quants` gives those of block `j` of
/// 32 in a superblock.
fn blocks<const N: usize>(
    row: &[u8],
    to: &mut [u8],
    dtype: Dtype,
    heads: [Range<usize>; 2],
    quants: impl Fn(&[u8; N], usize) -> Quants,
) {
    let (stored, rest) = row.as_chunks::<N>();
    assert!(rest.is_empty(), "a row of {} bytes, expected blocks of {N}", row.len());
    let n_inner = GgmlType::from_name(dtype.name()).map_or(1, |kind| kind.block / BLOCK);
    let n = stored.len() * n_inner * BLOCK;
    let (planes, starts) = (dtype.planes(n), dtype.planes(n).starts());
    for (i, block) in stored.iter().enumerate() {
        for (head, start) in heads.iter().zip(&starts[3..]) {
            to[start + i * head.len()..][..head.len()].copy_from_slice(&block[head.clone()]);
        }
        for j in 0..n_inner {
            let (mut quants, b) = (quants(block, j), i * n_inner + j);
            if planes.quants == n {
                to[BLOCK * b..][..BLOCK].copy_from_slice(&quants);
                continue;
            }
            if planes.quants > 0 {
                nibbles(&quants, &mut to[starts[0] + 16 * b..][..16]);
                quants.iter_mut().for_each(|q| *q >>= 4);
            }
            if planes.pairs > 0 {
                bits(&quants, &mut to[starts[1] + 8 * b..][..8], 2);
                quants.iter_mut().for_each(|q| *q >>= 2);
            }
            if planes.bits > 0 {
                bits(&quants, &mut to[starts[2] + 4 * b..][..4], 1);
            }
        }
    }
}

/// 16 bytes with the first half of a block in their low nibbles, the second in their high ones.
fn halves(bytes: &[u8]) -> Quants {
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

/// 32 bytes with a block in the bits `mask` from bit `shift` on.
fn shifted(bytes: &[u8], shift: usize, mask: u8) -> Quants {
    std::array::from_fn(|i| bytes[i] >> shift & mask)
}

/// `low`, and above its `n_bits` bits those of `high`.
fn with(low: Quants, high: Quants, n_bits: usize) -> Quants {
    std::array::from_fn(|i| low[i] | high[i] << n_bits)
}

/// `low`, and bit `i` of `bytes` as the fifth of element `i`.
fn with_fifth(low: Quants, bytes: &[u8]) -> Quants {
    with(low, std::array::from_fn(|i| bytes[i / 8] >> (i % 8) & 1), 4)
}

/// Packs the lower four bits of a block: the low nibbles of a 32-bit word are four elements, the high nibbles the next
/// four.
fn nibbles(quants: &Quants, to: &mut [u8]) {
    for (eight, word) in quants.chunks_exact(8).zip(to.chunks_exact_mut(4)) {
        for (i, byte) in word.iter_mut().enumerate() {
            *byte = eight[i] & 15 | (eight[4 + i] & 15) << 4;
        }
    }
}

/// Packs the lower `n_bits` bits of a block: four elements in the lowest bits of four bytes, and so on through `to`, then
/// the next bits.
fn bits(quants: &Quants, to: &mut [u8], n_bits: usize) {
    to.fill(0);
    let mask = (1 << n_bits) - 1;
    for (turn, round) in quants.chunks_exact(to.len()).enumerate() {
        for (q, byte) in round.iter().zip(to.iter_mut()) {
            *byte |= (q & mask) << (turn * n_bits);
        }
    }
}
