//! Asks the device for the width of its subgroups, in kernels with the workgroups that ours have.

#[cfg(feature = "bench")]
use super::Caps;
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
pub(crate) struct SubgroupProbe {
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
        probes.push(SubgroupProbe::new(gpu, size, tile.filter(|_| matrices))?);
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

impl SubgroupProbe {
    /// The workgroups of kernels, with whether they multiply matrices, in which a device with `caps` has a width to ask for.
    #[cfg(feature = "bench")]
    pub fn sizes(caps: &Caps) -> Vec<(u32, bool)> {
        let mut sizes =
            caps.subgroups.as_ref().map(|s| s.workgroups(caps.max_workgroup_size)).unwrap_or_default();
        sizes.retain(|(_, matrices)| !matrices || caps.matrix_tile().is_some());
        sizes
    }

    /// A probe of workgroups of `size` invocations, on matrices of `tile` × `tile` if there is a tile.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu, size: u32, tile: Option<u32>) -> Result<SubgroupProbe, GpuError> {
        let variant = match tile {
            Some(n) => Variant::new(&PROBE_COOP).part(coop(n)),
            None => Variant::new(&PROBE_SUBGROUPS),
        };
        // At most so many subgroups, a product each.
        let narrowest = gpu.caps().subgroups.as_ref().map_or(1, |range| range.min.max(1));
        let n_products = tile.map_or(0, |n| size.div_ceil(narrowest) * n * n);
        Ok(SubgroupProbe {
            size,
            tile,
            variant: variant.set("WG", size),
            widths: Tensor::zeros(gpu, "widths", [1, size as usize], Dtype::U32)?,
            products: Tensor::zeros(gpu, "products", [1, n_products as usize], Dtype::F32)?,
        })
    }

    /// Records its kernel.
    pub fn record(&self, rec: &mut Recorder) {
        let bindings = [self.widths.view(), self.products.view()];
        let n_bindings = self.variant.kernel.bindings.len();
        rec.dispatch(self.variant, &Params { n: self.size }, &bindings[..n_bindings], [1, 1, 1]);
    }

    /// The width that each invocation saw; 0 where its place in the subgroup does not follow from its index.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn widths(&self, gpu: &Gpu) -> Result<Vec<u32>, GpuError> {
        let mut widths = gpu.read_words(&self.widths)?;
        widths.truncate(self.size as usize);
        Ok(widths)
    }

    /// The products of subgroups of `width`, each value with what it should be. Empty without matrices.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn products(&self, gpu: &Gpu, width: u32) -> Result<Vec<(f32, f32)>, GpuError> {
        let Some(tile) = self.tile.filter(|_| width > 0) else { return Ok(Vec::new()) };
        let products = gpu.read_f32(&self.products)?;
        let n_subgroups = self.size.div_ceil(width);
        let right = |e: u32| (tile * (e / tile % tile + 1) * (e % tile + 2)) as f32;
        // A missing value is wrong.
        let got = |e: u32| products.get(e as usize).copied().unwrap_or(f32::NAN);
        Ok((0..n_subgroups * tile * tile).map(|e| (got(e), right(e))).collect())
    }

    /// The width that every invocation saw, if every subgroup multiplied right.
    fn width(&self, gpu: &Gpu) -> Result<Option<u32>, GpuError> {
        let widths = self.widths(gpu)?;
        let width = widths[0];
        if width == 0 || widths.iter().any(|other| *other != width) {
            return Ok(None);
        }
        let products = self.products(gpu, width)?;
        Ok(products.iter().all(|(got, want)| got == want).then_some(width))
    }
}
