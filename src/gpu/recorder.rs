//! Records operations into command buffers. Never submits.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use super::meter::Meter;
use super::timing::Timing;
use super::trace::Trace;
use super::{Buffer, Caps, Gpu, GpuError, Product, Readback, ReadbackRing, Tensor, Tuning, Variant, View};

/// Bytes for parameter blocks: at 256 bytes each, 8192 different ones before a reset.
const PARAMS_BYTES: u64 = 2 << 20;

/// Largest `Params` struct.
const MAX_PARAMS: usize = 256;

/// Records dispatches. It lives as long as its engine and keeps bind groups and parameter blocks, so that recording the
/// same step again makes only the dispatches.
///
/// A parameter block is written once and never changed, and equal parameters share a block. So a recording that waits
/// to be submitted never sees another's parameters, and a repeated step uploads nothing.
pub struct Recorder {
    gpu: Gpu,
    /// Parameter blocks; allocated at the first dispatch, because who only copies needs none.
    params: Option<Buffer>,
    blocks: HashMap<Vec<u8>, u32>,
    bind_groups: HashMap<BindKey, wgpu::BindGroup>,
    dummy: Tensor,
    timing: Option<Timing>,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    /// Choices of variants instead of the device's.
    tuning: Option<Arc<Tuning>>,
    portable: Portable,
    /// Cuts what is recorded to a budget. Default: everything is recorded.
    meter: Option<Meter>,
    /// Of the batch that is recorded, for the meter.
    depths: Depths,
    /// Set while rehearsing: what would be dispatched is collected, and nothing is recorded.
    rehearsal: Option<Rehearsal>,
    /// The text of the recording, while tracing.
    trace: Option<Trace>,
    error: Option<GpuError>,
}

/// What a recording would dispatch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rehearsal {
    /// The variants, each once, in order.
    pub variants: Vec<Variant>,
    /// The kernel of each dispatch.
    pub kernels: Vec<&'static str>,
    /// The products with weights, each with its number of rows. A stack of different types is a product for each part.
    pub products: Vec<(Product, usize)>,
}

/// The operations that run only the variants that run on every device.
#[derive(Clone, Debug)]
pub(crate) enum Portable {
    These(Vec<&'static str>),
    All,
}

impl Default for Portable {
    fn default() -> Self {
        Portable::These(Vec::new())
    }
}

/// The size of a dispatch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Pieces of about the same size.
    pub n_pieces: usize,
    /// Workgroups of all pieces.
    pub groups: [u32; 3],
    /// What the time of a workgroup grows with, for example keys, if that differs between equal dispatches.
    pub depth: f64,
}

impl Size {
    fn units(self) -> f64 {
        self.groups.map(f64::from).iter().product::<f64>() * self.depth.max(1.0)
    }
}

/// Keys that the rows of a batch see in attention, on average.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depths {
    /// Rows of generated tokens.
    pub decode: f64,
    /// Rows of prompts.
    pub prompt: f64,
    /// Rows that see both sides.
    pub both_sides: f64,
}

impl Default for Depths {
    fn default() -> Self {
        Depths { decode: 1.0, prompt: 1.0, both_sides: 1.0 }
    }
}

/// Dispatches with the same key take a time that depends only on their size: they have the same variant and tensors of the
/// same shapes.
fn cost_key(variant: &Variant, bindings: &[View]) -> u64 {
    let mut hasher = DefaultHasher::new();
    variant.hash(&mut hasher);
    for view in bindings {
        (view.rows.len(), view.tensor.n_cols()).hash(&mut hasher);
    }
    hasher.finish()
}

type BindKey = (usize, Vec<(u64, std::ops::Range<u64>)>);

impl Recorder {
    /// A recorder for one device.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu) -> Result<Recorder, GpuError> {
        Ok(Recorder {
            gpu: gpu.clone(),
            // Allocated when they are first used, which in a plan they never are.
            params: if gpu.is_plan() { Some(params_buffer(gpu)?) } else { None },
            blocks: HashMap::new(),
            bind_groups: HashMap::new(),
            dummy: gpu.dummy()?,
            timing: Timing::new(gpu)?,
            encoder: None,
            pass: None,
            tuning: None,
            portable: Portable::default(),
            meter: None,
            depths: Depths::default(),
            rehearsal: None,
            trace: None,
            error: None,
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Sets the choices of variants for what is recorded next. `None`: the device's choices.
    pub fn set_tuning(&mut self, tuning: Option<Arc<Tuning>>) {
        self.tuning = tuning;
    }

    /// The choices that [`Recorder`]'s owner has set.
    pub fn tuning(&self) -> Option<&Tuning> {
        self.tuning.as_deref()
    }

    /// Sets the operations that run only the variants that run on every device. Default: none.
    pub(crate) fn set_portable(&mut self, operations: Portable) {
        self.portable = operations;
    }

    /// Adds operations to those. Returns whether one of them is new.
    pub(crate) fn add_portable(&mut self, operations: Vec<&'static str>) -> bool {
        let Portable::These(all) = &mut self.portable else { return false };
        let n = all.len();
        operations.into_iter().for_each(|operation| {
            if !all.contains(&operation) {
                all.push(operation);
            }
        });
        all.len() > n
    }

    /// Whether an operation runs only the variants that run on every device.
    pub(crate) fn is_portable(&self, operation: &str) -> bool {
        match &self.portable {
            Portable::These(operations) => operations.contains(&operation),
            Portable::All => true,
        }
    }

    /// The capabilities that an operation may use.
    pub(crate) fn caps(&self, operation: &str) -> &Caps {
        self.gpu.caps_of(self.is_portable(operation))
    }

    /// Starts to keep the text of the recording, or stops and drops it. Default: off, at no cost.
    pub fn trace(&mut self, on: bool) {
        self.trace = on.then(Trace::default);
    }

    /// The text of the recording since [`Recorder::trace`] or the last call; empty if tracing is off. A dispatch has a
    /// line with kernel, parts, overrides and workgroups, and one with the rows of the bound tensors: those that it
    /// reads, an arrow, those that it writes. Each copy, clear, read and end of a command buffer has one line.
    pub fn take_trace(&mut self) -> String {
        self.trace.as_mut().map(|trace| std::mem::take(&mut trace.0)).unwrap_or_default()
    }

    /// A view for bindings that a variant declares but does not read.
    pub fn unused(&self) -> View {
        self.dummy.view()
    }

    /// The meter that cuts what is recorded, from the first call on. Its owner ends frames and slices.
    pub(crate) fn meter(&mut self) -> &mut Meter {
        self.meter.get_or_insert_default()
    }

    /// The meter, if there is one.
    pub(crate) fn metered(&self) -> Option<&Meter> {
        self.meter.as_ref()
    }

    /// The keys that the rows of the batch see, which is recorded next.
    pub(crate) fn set_depths(&mut self, depths: Depths) {
        self.depths = depths;
    }

    pub(crate) fn depths(&self) -> Depths {
        self.depths
    }

    /// Collects the variants that `record` would dispatch, compiles them in parallel, and writes their
    /// parameters. Nothing is recorded.
    ///
    /// # Errors
    /// [`GpuError::Compile`], [`GpuError::OutOfMemory`].
    pub fn rehearse(&mut self, record: impl FnOnce(&mut Recorder)) -> Result<(), GpuError> {
        let variants = self.variants(record);
        self.error.take().map_or(Ok(()), Err)?;
        self.gpu.compile(&variants)
    }

    /// The variants that `record` would dispatch, each once, in order. Nothing is recorded. An error is what the next
    /// [`Recorder::finish`] returns.
    pub fn variants(&mut self, record: impl FnOnce(&mut Recorder)) -> Vec<Variant> {
        self.rehearsal(record).variants
    }

    /// All that `record` would dispatch, as [`Recorder::variants`].
    pub(crate) fn rehearsal(&mut self, record: impl FnOnce(&mut Recorder)) -> Rehearsal {
        self.rehearsal = Some(Rehearsal::default());
        record(self);
        self.rehearsal.take().unwrap_or_default()
    }

    /// Notes a product with weights of `n_rows` rows, while rehearsing.
    pub(crate) fn note_product(&mut self, product: Product, n_rows: usize) {
        if let Some(rehearsal) = self.rehearsal.as_mut().filter(|_| n_rows > 0) {
            rehearsal.products.push((product, n_rows));
        }
    }

    /// Records one dispatch of `groups` workgroups: `params` at binding 0, `bindings` from 1 on.
    ///
    /// # Panics
    /// If the parameters or bindings are not those that the kernel declares.
    pub fn dispatch<P: bytemuck::Pod>(
        &mut self,
        variant: Variant,
        params: &P,
        bindings: &[View],
        groups: [u32; 3],
    ) {
        let size = Size { n_pieces: 1, groups, depth: 1.0 };
        self.dispatch_pieces(variant, bindings, size, |_| (*params, groups));
    }

    /// Records a dispatch that can be cut: `part` returns the parameters and the workgroups of some pieces of it. Pieces
    /// do not depend on each other, and the bits of their results not on the cuts.
    ///
    /// # Panics
    /// As [`Recorder::dispatch`].
    pub(crate) fn dispatch_pieces<P: bytemuck::Pod>(
        &mut self,
        variant: Variant,
        bindings: &[View],
        size: Size,
        part: impl FnOnce(Range<usize>) -> (P, [u32; 3]),
    ) {
        let kernel = variant.kernel;
        assert_eq!(size_of::<P>(), kernel.params.size_bytes, "`{}`: params", kernel.name);
        assert_eq!(bindings.len(), kernel.bindings.len(), "`{}`: bindings", kernel.name);
        if size.groups.contains(&0) || size.n_pieces == 0 || self.error.is_some() {
            return;
        }
        let pieces = match &mut self.meter {
            Some(meter) if self.rehearsal.is_none() => {
                let key = cost_key(&variant, bindings);
                meter.take(key, kernel.name, size.n_pieces, size.units())
            }
            _ => 0..size.n_pieces,
        };
        if pieces.is_empty() {
            return;
        }
        let (params, groups) = part(pieces);
        let offset = match self.params_offset(bytemuck::bytes_of(&params)) {
            Ok(offset) => offset,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        if let Some(Rehearsal { variants, kernels, .. }) = &mut self.rehearsal {
            kernels.push(kernel.name);
            if !variants.contains(&variant) {
                variants.push(variant);
            }
            return;
        }
        let pipeline = match self.gpu.pipeline(&variant) {
            Ok(pipeline) => pipeline,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        let ranges: Vec<_> = bindings.iter().map(|v| (v.tensor.id(), v.range_bytes())).collect();
        let device = self.gpu.device();
        let params = self.params.as_ref().expect("`params_offset` allocated it");
        let bind_group = self.bind_groups.entry((pipeline.id, ranges)).or_insert_with_key(|(_, ranges)| {
            let buffer = |buffer, offset, size| {
                let size = std::num::NonZeroU64::new(size);
                wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size })
            };
            let mut entries = vec![wgpu::BindGroupEntry {
                binding: 0,
                resource: buffer(params, 0, kernel.params.size_bytes as u64),
            }];
            entries.extend(bindings.iter().zip(ranges).enumerate().map(|(i, (view, (_, range)))| {
                wgpu::BindGroupEntry {
                    binding: i as u32 + 1,
                    resource: buffer(view.tensor.buffer(), range.start, range.end - range.start),
                }
            }));
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(kernel.name),
                layout: &pipeline.layout,
                entries: &entries,
            })
        });
        let encoder = self.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()));
        let timing = &mut self.timing;
        let pass = self.pass.get_or_insert_with(|| {
            let timestamp_writes = timing.as_mut().and_then(Timing::pass);
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            encoder.begin_compute_pass(&descriptor).forget_lifetime()
        });
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &*bind_group, &[offset]);
        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        self.gpu.count(|c| &c.dispatches, 1);
        if let Some(trace) = &mut self.trace {
            trace.dispatch(&variant, bindings, groups);
        }
    }

    /// Offset of the block that holds `bytes`, written at its first use.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    fn params_offset(&mut self, bytes: &[u8]) -> Result<u32, GpuError> {
        if let Some(offset) = self.blocks.get(bytes) {
            return Ok(*offset);
        }
        let params = match &mut self.params {
            Some(params) => params,
            none => none.insert(params_buffer(&self.gpu)?),
        };
        let step = MAX_PARAMS.next_multiple_of(self.gpu.caps().uniform_align as usize);
        let offset = self.blocks.len() * step;
        assert!(offset + step <= PARAMS_BYTES as usize, "the owner resets the recorder in time");
        self.gpu.write_buffer(params, offset as u64, bytes);
        self.blocks.insert(bytes.to_vec(), offset as u32);
        Ok(offset as u32)
    }

    /// Whether few parameter blocks are left. If so, the owner waits until nothing is in flight and calls
    /// [`Recorder::reset_params`].
    pub fn params_are_low(&self) -> bool {
        let step = MAX_PARAMS.next_multiple_of(self.gpu.caps().uniform_align as usize);
        // A step of any model uses far fewer new blocks than a quarter.
        self.blocks.len() * step > PARAMS_BYTES as usize / 4 * 3
    }

    /// Forgets all parameter blocks. Call it only while nothing recorded is unfinished.
    pub fn reset_params(&mut self) {
        self.blocks.clear();
    }

    /// Drops the bind groups of `tensor`, so that its memory is freed when its last owner and the recorded work are
    /// done.
    pub(crate) fn forget(&mut self, tensor: &Tensor) {
        self.bind_groups.retain(|(_, bound), _| bound.iter().all(|(id, _)| *id != tensor.id()));
    }

    /// Records a copy of `size` bytes between tensors.
    pub fn copy(&mut self, from: &Tensor, from_offset: u64, to: &Tensor, to_offset: u64, size: u64) {
        if self.rehearsal.is_some() || !self.passes() {
            return;
        }
        let (source, target) = (from.buffer(), to.buffer());
        self.commands().copy_buffer_to_buffer(source, from_offset, target, to_offset, Some(size));
        if let Some(trace) = &mut self.trace {
            trace.copy(from, from_offset, to, to_offset, size);
        }
    }

    /// Records zeros over `size` bytes of a tensor.
    pub fn clear(&mut self, tensor: &Tensor, offset: u64, size: u64) {
        if self.rehearsal.is_some() || !self.passes() {
            return;
        }
        self.commands().clear_buffer(tensor.buffer(), offset, Some(size));
        if let Some(trace) = &mut self.trace {
            trace.clear(tensor, offset, size);
        }
    }

    /// Whether a copy is recorded now.
    fn passes(&mut self) -> bool {
        self.meter.as_mut().is_none_or(Meter::pass)
    }

    /// Times the work from here to the next [`Recorder::read`] by the device's clock, if it has one.
    pub fn start_timing(&mut self) {
        self.pass = None;
        if let (Some(timing), None) = (&mut self.timing, &self.rehearsal) {
            timing.start();
        }
    }

    /// Records the copy of byte ranges `(tensor, offset, size)` into the ring's next slot; `None` if the
    /// ring is full.
    pub fn read(&mut self, ring: &mut ReadbackRing, sources: &[(&Tensor, u64, u64)]) -> Option<Readback> {
        if self.rehearsal.is_some() {
            return None;
        }
        let mut timing = self.timing.take();
        let mut copies: Vec<_> =
            sources.iter().map(|&(t, offset, size)| (t.buffer(), offset, size)).collect();
        let encoder = self.commands();
        let timing_bytes = timing.as_mut().map_or(0, |timing| timing.stop(encoder));
        if let Some(timing) = timing.as_ref().filter(|_| timing_bytes > 0) {
            copies.push((&*timing.resolved, 0, timing_bytes));
        }
        let pending = ring.record(encoder, &copies, timing_bytes);
        self.timing = timing;
        if let (Some(trace), Some(_)) = (&mut self.trace, &pending) {
            sources.iter().for_each(|source| trace.read(*source));
        }
        pending
    }

    fn commands(&mut self) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        let device = self.gpu.device();
        self.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()))
    }

    /// The command buffer of the work since the last call, `None` if there is none.
    ///
    /// # Errors
    /// [`GpuError::Compile`] if a kernel failed to compile on its first use.
    pub fn finish(&mut self) -> Result<Option<wgpu::CommandBuffer>, GpuError> {
        self.pass = None;
        let encoder = self.encoder.take();
        if let (Some(trace), Some(_)) = (&mut self.trace, &encoder) {
            trace.finish();
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok(encoder.map(wgpu::CommandEncoder::finish)),
        }
    }
}

fn params_buffer(gpu: &Gpu) -> Result<Buffer, GpuError> {
    gpu.create_buffer("params", PARAMS_BYTES, wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST)
}
