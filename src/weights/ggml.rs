//! ggml's types: what a file stores of each, and how a stored row becomes a row in device memory.
//!
//! A quantised row changes only the order of its bytes: quants and scales stay as they are. A new type on the device is a
//! [`Dtype`] with ggml's name and an arm of [`repack`].

use crate::dtype::Dtype;

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

    /// The type of the same name on the device, if there is one.
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::WEIGHTS.into_iter().find(|dtype| dtype.name() == self.name)
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
        Dtype::Q8_0 => q8_0(row, to),
        Dtype::Q4_0 => q4_0(row, to),
        Dtype::Q4_K => q4_k(row, to),
        Dtype::U32 => unreachable!("u32 tables are not weights"),
    }
}

/// The blocks of a row, each of `N` bytes.
fn blocks<const N: usize>(row: &[u8]) -> &[[u8; N]] {
    let (blocks, rest) = row.as_chunks();
    assert!(rest.is_empty(), "a row of {} bytes, expected blocks of {N}", row.len());
    blocks
}

/// A block: F16 d, 32 signed bytes.
fn q8_0(row: &[u8], to: &mut [u8]) {
    let blocks = blocks::<34>(row);
    let (quants, scales) = to.split_at_mut(32 * blocks.len());
    for ((block, quants), scale) in
        blocks.iter().zip(quants.chunks_exact_mut(32)).zip(scales.chunks_exact_mut(2))
    {
        scale.copy_from_slice(&block[..2]);
        quants.copy_from_slice(&block[2..]);
    }
}

/// A block: F16 d, 16 bytes with the elements of its first half in the low nibbles, of its second in the high ones.
fn q4_0(row: &[u8], to: &mut [u8]) {
    let blocks = blocks::<18>(row);
    let (quants, scales) = to.split_at_mut(16 * blocks.len());
    for ((block, quants), scale) in
        blocks.iter().zip(quants.chunks_exact_mut(16)).zip(scales.chunks_exact_mut(2))
    {
        scale.copy_from_slice(&block[..2]);
        let mut elements = [0; 32];
        for (i, byte) in block[2..].iter().enumerate() {
            (elements[i], elements[16 + i]) = (byte & 15, byte >> 4);
        }
        nibbles(&elements, quants);
    }
}

/// A superblock: F16 d and m, 12 bytes of scales, 128 bytes of quants. 32 bytes have a block in their low nibbles and the
/// next one in their high ones.
fn q4_k(row: &[u8], to: &mut [u8]) {
    let blocks = blocks::<144>(row);
    let (quants, heads) = to.split_at_mut(128 * blocks.len());
    for ((block, quants), head) in
        blocks.iter().zip(quants.chunks_exact_mut(128)).zip(heads.chunks_exact_mut(16))
    {
        head.copy_from_slice(&block[..16]);
        for (bytes, quants) in block[16..].chunks_exact(32).zip(quants.chunks_exact_mut(32)) {
            let [mut low, mut high] = [[0; 32]; 2];
            for (i, byte) in bytes.iter().enumerate() {
                (low[i], high[i]) = (byte & 15, byte >> 4);
            }
            nibbles(&low, &mut quants[..16]);
            nibbles(&high, &mut quants[16..]);
        }
    }
}

/// Packs a block of 4-bit elements: the low nibbles of a 32-bit word are four of them, the high nibbles the next four.
fn nibbles(elements: &[u8; 32], to: &mut [u8]) {
    for (eight, word) in elements.chunks_exact(8).zip(to.chunks_exact_mut(4)) {
        for (i, byte) in word.iter_mut().enumerate() {
            *byte = eight[i] | eight[4 + i] << 4;
        }
    }
}
