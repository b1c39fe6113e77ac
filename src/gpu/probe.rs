//! Asks the device for the width of its subgroups, in kernels with the workgroups that ours have.

use super::fields::device_struct;
use super::{Access, Gpu, GpuError, Kernel, Part, Recorder, Subgroups, Tensor, Variant};
use crate::dtype::Dtype;

device_struct! {
    struct Params {
        n: u32,
    }
}

/// Stores the width that each invocation sees.
pub(crate) static PROBE_SUBGROUPS: Kernel = Kernel {
    name: "probe_subgroups",
    source: include_str!("../../shaders/probe_subgroups.wgsl"),
    params: &Params::FIELDS,
    bindings: &[Access::ReadWrite],
    proven: false,
};

/// Stores the width that each invocation sees in a kernel on cooperative matrices, and a product by each subgroup.
pub(crate) static PROBE_COOP: Kernel = Kernel {
    name: "probe_coop",
    source: include_str!("../../shaders/probe_coop.wgsl"),
    params: &Params::FIELDS,
    bindings: &[Access::ReadWrite, Access::ReadWrite],
    proven: false,
};

/// Cooperative matrices of 8 × 8.
pub(crate) static COOP_8: Part = Part {
    name: "coop_8",
    source: include_str!("../../shaders/parts/coop_8.wgsl"),
    enables: &["f16", "wgpu_cooperative_matrix"],
};

/// Cooperative matrices of 16 × 16.
pub(crate) static COOP_16: Part = Part {
    name: "coop_16",
    source: include_str!("../../shaders/parts/coop_16.wgsl"),
    enables: &["f16", "wgpu_cooperative_matrix"],
};

/// The part for cooperative matrices of `n` × `n`.
pub(crate) fn coop(n: u32) -> &'static Part {
    match n {
        8 => &COOP_8,
        16 => &COOP_16,
        other => unreachable!("no kernel multiplies tiles of {other}"),
    }
}

/// One kernel to run: a workgroup of `size` invocations, on matrices of `tile` × `tile` if there is a tile.
struct Probe {
    size: u32,
    tile: Option<u32>,
    variant: Variant,
    widths: Tensor,
    products: Tensor,
}

/// The range with what the device says of it. Waits for the device, so only for one of our own. What cannot be
/// compiled or does not add up is not certain.
///
/// # Errors
/// [`GpuError::OutOfMemory`], [`GpuError::Lost`] and other faults of the device.
pub(super) fn subgroups(gpu: &Gpu, range: Subgroups) -> Result<Subgroups, GpuError> {
    gpu.check_owned()?;
    let caps = gpu.caps();
    let tile = caps.matrix_tile();
    let mut probes = Vec::new();
    for (size, matrices) in range.unknown(caps.max_workgroup_size) {
        if matrices && tile.is_none() {
            continue;
        }
        probes.push(Probe::new(gpu, &range, size, tile.filter(|_| matrices))?);
    }
    // All in parallel, then one by one: a kernel that fails to compile must not take the others with it.
    let variants: Vec<Variant> = probes.iter().map(|probe| probe.variant).collect();
    let _ = gpu.compile(&variants);
    probes.retain(|probe| match gpu.compile(&[probe.variant]) {
        Ok(()) => true,
        Err(error) => {
            log::info!("a width of subgroups stays unknown: {error}");
            false
        }
    });
    let mut rec = Recorder::new(gpu)?;
    probes.iter().for_each(|probe| probe.record(&mut rec));
    gpu.submit(rec.finish()?)?;
    let mut found = Vec::new();
    for probe in &probes {
        if let Some(width) = probe.width(gpu)? {
            found.push(((probe.size, probe.tile.is_some()), width));
        }
    }
    let find =
        |size, matrices| found.iter().find(|(key, _)| *key == (size, matrices)).map(|(_, width)| *width);
    Ok(range.probed(caps.max_workgroup_size, find))
}

impl Probe {
    fn new(gpu: &Gpu, range: &Subgroups, size: u32, tile: Option<u32>) -> Result<Probe, GpuError> {
        let variant = match tile {
            Some(n) => Variant::new(&PROBE_COOP).part(coop(n)),
            None => Variant::new(&PROBE_SUBGROUPS),
        };
        // At most so many subgroups, a product each.
        let most = size.div_ceil(range.min.max(1));
        let n_products = tile.map_or(0, |n| most * n * n);
        Ok(Probe {
            size,
            tile,
            variant: variant.set("WG", size),
            widths: Tensor::zeros(gpu, "widths", [1, size as usize], Dtype::U32)?,
            products: Tensor::zeros(gpu, "products", [1, n_products as usize], Dtype::F32)?,
        })
    }

    fn record(&self, rec: &mut Recorder) {
        let (widths, products) = (self.widths.view(), self.products.view());
        let bindings = [widths, products];
        let n_bindings = self.variant.kernel.bindings.len();
        rec.dispatch(self.variant, &Params { n: self.size }, &bindings[..n_bindings], [1, 1, 1]);
    }

    /// The width that every invocation saw, if every subgroup multiplied right.
    fn width(&self, gpu: &Gpu) -> Result<Option<u32>, GpuError> {
        let widths = gpu.read_words(&self.widths)?;
        let width = widths[0];
        if width == 0 || widths[..self.size as usize].iter().any(|other| *other != width) {
            return Ok(None);
        }
        let Some(tile) = self.tile else { return Ok(Some(width)) };
        let products = gpu.read_f32(&self.products)?;
        let n_subgroups = self.size.div_ceil(width) as usize;
        let right = |e: usize, y: f32| {
            let (i, j) = (e as u32 / tile % tile, e as u32 % tile);
            y == (tile * (i + 1) * (j + 2)) as f32
        };
        let expected = n_subgroups * (tile * tile) as usize;
        let all = products.iter().take(expected).enumerate().filter(|(e, y)| right(*e, **y)).count();
        Ok((all == expected).then_some(width))
    }
}
