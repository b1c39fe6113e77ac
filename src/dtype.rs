//! Element types of tensors. A quantised type will be one more variant here, not a copy of a kernel.

/// How the elements of a [`Tensor`](crate::gpu::Tensor) are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision, two to a 32-bit word.
    F16,
    /// The upper half of an `F32`, two to a 32-bit word.
    BF16,
    /// Unsigned 32-bit integers: token ids, positions, page numbers.
    U32,
}

impl Dtype {
    /// Bytes that `n` elements take.
    pub const fn bytes(self, n: usize) -> usize {
        match self {
            Dtype::F32 | Dtype::U32 => n * 4,
            Dtype::F16 | Dtype::BF16 => n * 2,
        }
    }

    /// The name in the field's spelling.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::U32 => "U32",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
