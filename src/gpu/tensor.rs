//! Device memory with a shape. Arithmetic is in `ops`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Buffer, Gpu, GpuError};
use crate::dtype::Dtype;

/// Rows start at multiples of this many elements, a block of quantised weights, so that kernels load whole blocks and
/// no row ends inside one. The padding is zero and stays zero.
pub const ROW_ALIGN: usize = 32;

/// A matrix in device memory: `[n_rows, n_cols]`, with rows padded to [`ROW_ALIGN`] elements (except `U32` tables).
/// Cheap to clone: clones share the buffer.
#[derive(Clone)]
pub struct Tensor {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    label: String,
    memory: Memory,
    n_rows: usize,
    n_cols: usize,
    stride: usize,
    dtype: Dtype,
}

enum Memory {
    Own {
        buffer: Arc<Buffer>,
        rows_per_binding: usize,
    },
    /// The rows of other tensors, one below the other.
    Stack(Vec<Tensor>),
}

/// A range of rows of a tensor that one storage binding can span.
#[derive(Clone)]
pub struct View {
    /// The tensor; of a stack the one that has the rows.
    pub tensor: Tensor,
    /// The rows.
    pub rows: Range<usize>,
    /// The first row, counted from the start of a stack.
    pub first: usize,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Tensor {
    /// Allocates zeros of shape `[n_rows, n_cols]` that fit in one binding.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`] if the tensor exceeds the device's largest binding or buffer;
    /// [`GpuError::OutOfMemory`] if memory is exhausted.
    pub fn zeros(gpu: &Gpu, label: &str, shape: [usize; 2], dtype: Dtype) -> Result<Tensor, GpuError> {
        Tensor::allocate(gpu, label, shape, dtype, None)
    }

    /// Allocates zeros of shape `[n_rows, n_cols]`, for weights. They may exceed one binding: kernels go through
    /// [`Tensor::ranges`].
    ///
    /// # Errors
    /// [`GpuError::TooLarge`] if the tensor exceeds the device's largest buffer, or a row its largest binding;
    /// [`GpuError::OutOfMemory`] if memory is exhausted.
    pub fn weights(gpu: &Gpu, label: &str, shape: [usize; 2], dtype: Dtype) -> Result<Tensor, GpuError> {
        Tensor::allocate(gpu, label, shape, dtype, Some(1))
    }

    /// As [`Tensor::weights`], for weights of experts one below the other: no range ends inside the `n_own` rows of one.
    ///
    /// # Errors
    /// As [`Tensor::weights`]; [`GpuError::TooLarge`] if the rows of an expert exceed the device's largest binding.
    pub fn experts(
        gpu: &Gpu,
        label: &str,
        shape: [usize; 2],
        dtype: Dtype,
        n_own: usize,
    ) -> Result<Tensor, GpuError> {
        Tensor::allocate(gpu, label, shape, dtype, Some(n_own))
    }

    /// Allocates zeros, in ranges of whole groups of `ranges` rows if they may exceed one binding.
    fn allocate(
        gpu: &Gpu,
        label: &str,
        [n_rows, n_cols]: [usize; 2],
        dtype: Dtype,
        ranges: Option<usize>,
    ) -> Result<Tensor, GpuError> {
        let stride = match dtype {
            Dtype::U32 => n_cols,
            _ => n_cols.next_multiple_of(ROW_ALIGN),
        };
        let row_bytes = dtype.bytes(stride);
        // wgpu allows no binding of zero bytes, and copies only whole words.
        let size = (row_bytes * n_rows).next_multiple_of(4).max(16) as u64;
        let caps = gpu.caps();
        let too_large =
            |limit| GpuError::TooLarge { what: label.to_string(), bytes: size, limit_bytes: limit };
        if size > caps.max_buffer_bytes {
            return Err(too_large(caps.max_buffer_bytes));
        }
        // A bound range of rows must start at an aligned offset.
        let align = caps.storage_align as usize;
        let group = ranges.unwrap_or(1).max(1);
        let step =
            group * (1..=align).find(|n| (n * group * row_bytes).is_multiple_of(align)).unwrap_or(align);
        let most = caps.max_binding_bytes as usize / row_bytes.max(1);
        let rows_per_binding = if most >= n_rows { n_rows.max(1) } else { most / step * step };
        if rows_per_binding == 0 || (ranges.is_none() && rows_per_binding < n_rows) {
            return Err(too_large(caps.max_binding_bytes));
        }
        let buffer = gpu.create_buffer(
            label,
            size,
            wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
        )?;
        let memory = Memory::Own { buffer: Arc::new(buffer), rows_per_binding };
        let (id, label) = (NEXT_ID.fetch_add(1, Ordering::Relaxed), label.to_string());
        Ok(Tensor { inner: Arc::new(Inner { id, label, memory, n_rows, n_cols, stride, dtype }) })
    }

    /// Tensors of one width as one, the rows of each below those of the one before: weights whose types differ. Kernels
    /// go through [`Tensor::ranges`].
    ///
    /// # Panics
    /// If there are none, their widths differ, or one is a stack.
    pub(crate) fn stack(parts: Vec<Tensor>) -> Tensor {
        let first = parts.first().expect("a stack has parts");
        let (label, stride, n_cols) = (first.label().to_string(), first.stride(), first.n_cols());
        let is_one =
            |part: &Tensor| part.n_cols() == n_cols && matches!(part.inner.memory, Memory::Own { .. });
        assert!(parts.iter().all(is_one), "a stack of {parts:?}");
        let (id, dtype) = (NEXT_ID.fetch_add(1, Ordering::Relaxed), first.dtype());
        let n_rows = parts.iter().map(Tensor::n_rows).sum();
        let memory = Memory::Stack(parts);
        Tensor { inner: Arc::new(Inner { id, label, memory, n_rows, n_cols, stride, dtype }) }
    }

    /// The same memory, or its start, as a tensor of another shape and type that one binding spans.
    ///
    /// # Panics
    /// If it is too large.
    pub(crate) fn reshaped(&self, [n_rows, n_cols]: [usize; 2], dtype: Dtype) -> Tensor {
        let stride = n_cols.next_multiple_of(ROW_ALIGN);
        let (label, buffer, id) = (self.inner.label.clone(), self.own().clone(), self.inner.id);
        assert!(
            (dtype.bytes(stride) * n_rows) as u64 <= buffer.size(),
            "{self:?} as {n_rows} rows of {n_cols}"
        );
        let memory = Memory::Own { buffer, rows_per_binding: n_rows.max(1) };
        Tensor { inner: Arc::new(Inner { id, label, memory, n_rows, n_cols, stride, dtype }) }
    }

    /// Allocates an `F32` tensor with `data`, `[n_rows, n_cols]` row by row.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    ///
    /// # Panics
    /// If `data` has another length than the shape.
    pub fn from_f32(gpu: &Gpu, label: &str, shape: [usize; 2], data: &[f32]) -> Result<Tensor, GpuError> {
        assert_eq!(data.len(), shape[0] * shape[1], "`{label}`: data and shape disagree");
        let tensor = Tensor::zeros(gpu, label, shape, Dtype::F32)?;
        for (row, values) in data.chunks(shape[1].max(1)).enumerate() {
            tensor.write(gpu, row, bytemuck::cast_slice(values));
        }
        Ok(tensor)
    }

    /// Allocates a `U32` table with `data`, `[n_rows, n_cols]` row by row.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    ///
    /// # Panics
    /// If `data` has another length than the shape.
    pub fn from_u32(gpu: &Gpu, label: &str, shape: [usize; 2], data: &[u32]) -> Result<Tensor, GpuError> {
        assert_eq!(data.len(), shape[0] * shape[1], "`{label}`: data and shape disagree");
        let tensor = Tensor::zeros(gpu, label, shape, Dtype::U32)?;
        tensor.write(gpu, 0, bytemuck::cast_slice(data));
        Ok(tensor)
    }

    /// Queues a write of `bytes` from the start of row `row` on. It takes effect at the next submission.
    pub fn write(&self, gpu: &Gpu, row: usize, bytes: &[u8]) {
        self.write_at(gpu, row * self.row_bytes(), bytes);
    }

    /// Queues a write of `bytes` at `offset_bytes`. It takes effect at the next submission.
    pub fn write_at(&self, gpu: &Gpu, offset_bytes: usize, bytes: &[u8]) {
        if !bytes.is_empty() {
            gpu.write_buffer(self.own(), offset_bytes as u64, bytes);
        }
    }

    /// Name for messages and debuggers.
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.inner.n_rows
    }

    /// Columns, without padding.
    pub fn n_cols(&self) -> usize {
        self.inner.n_cols
    }

    /// Elements from the start of a row to the start of the next.
    pub fn stride(&self) -> usize {
        self.inner.stride
    }

    /// Bytes from the start of a row to the start of the next.
    pub fn row_bytes(&self) -> usize {
        self.inner.dtype.bytes(self.inner.stride)
    }

    /// Element type; of a stack that of its first rows.
    pub fn dtype(&self) -> Dtype {
        self.inner.dtype
    }

    /// Bytes of device memory.
    pub fn size_bytes(&self) -> u64 {
        match &self.inner.memory {
            Memory::Own { buffer, .. } => buffer.size(),
            Memory::Stack(parts) => parts.iter().map(Tensor::size_bytes).sum(),
        }
    }

    /// The buffer, for a host that reads results with its own shaders.
    pub fn buffer(&self) -> &wgpu::Buffer {
        self.own()
    }

    fn own(&self) -> &Arc<Buffer> {
        match &self.inner.memory {
            Memory::Own { buffer, .. } => buffer,
            Memory::Stack(_) => unreachable!(
                "{self:?} is a stack: only the loader makes one, and products go through its ranges"
            ),
        }
    }

    /// The whole tensor as one binding.
    ///
    /// # Panics
    /// If the tensor exceeds one binding, which only stacks and tensors from [`Tensor::weights`] can.
    pub fn view(&self) -> View {
        let is_one = matches!(self.inner.memory, Memory::Own { rows_per_binding, .. } if rows_per_binding >= self.inner.n_rows);
        assert!(is_one, "`{}` spans several bindings", self.label());
        View { tensor: self.clone(), rows: 0..self.inner.n_rows, first: 0 }
    }

    /// The tensor as ranges of rows that each fit in a binding. Only stacks and large weights have more than one.
    pub fn ranges(&self) -> impl Iterator<Item = View> + '_ {
        let parts = match &self.inner.memory {
            Memory::Own { .. } => std::slice::from_ref(self),
            Memory::Stack(parts) => parts,
        };
        let mut above = 0;
        parts.iter().flat_map(move |part| {
            let (n, before) = (part.n_rows(), above);
            above += n;
            let step = match part.inner.memory {
                Memory::Own { rows_per_binding, .. } => rows_per_binding,
                Memory::Stack(_) => unreachable!("a stack has no stacks"),
            };
            let view = move |r| View { tensor: part.clone(), rows: r..(r + step).min(n), first: before + r };
            (0..n).step_by(step).map(view)
        })
    }

    pub(super) fn id(&self) -> u64 {
        self.inner.id
    }
}

impl View {
    pub(super) fn range_bytes(&self) -> Range<u64> {
        let row = self.tensor.row_bytes() as u64;
        let whole = self.rows.len() == self.tensor.n_rows();
        let end = if whole { self.tensor.size_bytes() } else { self.rows.end as u64 * row };
        self.rows.start as u64 * row..end
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}, {}] {}", self.label(), self.n_rows(), self.n_cols(), self.dtype())
    }
}
