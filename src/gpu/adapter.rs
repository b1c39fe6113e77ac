//! Choosing an adapter and opening it.

use std::sync::Arc;

use super::fault::Fault;
use super::{Caps, GpuError, Quirk, quirks};

/// An adapter, as `wginfer devices` lists it.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Index for [`GpuOptions::select`](super::GpuOptions::select).
    pub index: usize,
    /// Name, driver and backend.
    pub info: wgpu::AdapterInfo,
    /// Limits.
    pub limits: wgpu::Limits,
    /// Features.
    pub features: wgpu::Features,
    /// Cooperative-matrix shapes `(m, n, k)` with f16 inputs and f32 sums.
    pub cooperative_matrices: Vec<(u32, u32, u32)>,
}

impl AdapterSummary {
    /// The capabilities of a device of this adapter, but those that the variable [`DISABLE_ENV`](super::DISABLE_ENV) names.
    /// Widths of subgroups are not probed yet.
    ///
    /// # Errors
    /// [`GpuError::UnknownCapability`].
    pub fn caps(&self) -> Result<Caps, GpuError> {
        let mut caps = Caps::new(self.features, &self.limits, &self.info, self.cooperative_matrices.clone());
        caps.disable_with_env("").map_err(|found| GpuError::UnknownCapability { found })?;
        Ok(caps)
    }

    /// The driver's quirks.
    pub fn quirks(&self) -> Vec<&'static Quirk> {
        quirks(&self.info)
    }

    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub fn kind(&self) -> &'static str {
        kind(self.info.device_type)
    }
}

impl std::fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {})", self.info.name, kind(self.info.device_type), self.info.backend)
    }
}

/// The chosen adapter, and the reason for the choice.
pub struct Choice {
    pub(super) adapter: wgpu::Adapter,
    /// The adapter.
    pub summary: AdapterSummary,
    /// The reason, for a message.
    pub reason: String,
}

pub(super) fn kind(device_type: wgpu::DeviceType) -> &'static str {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

fn rank(info: &wgpu::AdapterInfo) -> u32 {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// What an adapter counts as; `None` if it counts as absent.
pub type StandIn = fn(wgpu::AdapterInfo) -> Option<wgpu::AdapterInfo>;

/// The adapters with what they count as, best first.
fn enumerate(stand_in: Option<StandIn>) -> Vec<(wgpu::Adapter, wgpu::AdapterInfo)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all())).into_iter();
    let mut adapters: Vec<_> = adapters
        .filter_map(|adapter| {
            let info = adapter.get_info();
            Some((adapter, stand_in.map_or(Some(info.clone()), |stand_in| stand_in(info))?))
        })
        .collect();
    // A stable sort: adapters of one kind keep the driver's order, which is the system's preference.
    adapters.sort_by_key(|(_, info)| rank(info));
    adapters
}

fn summarise(index: usize, (adapter, info): &(wgpu::Adapter, wgpu::AdapterInfo)) -> AdapterSummary {
    AdapterSummary {
        index,
        info: info.clone(),
        limits: adapter.limits(),
        features: adapter.features(),
        cooperative_matrices: cooperative_matrices(adapter, adapter.features()),
    }
}

pub(super) fn list() -> Vec<AdapterSummary> {
    enumerate(None).iter().enumerate().map(|(i, a)| summarise(i, a)).collect()
}

/// The adapter that was `lost` before, or if it is gone the best one.
pub(super) fn again(lost: &wgpu::AdapterInfo, stand_in: Option<StandIn>) -> Result<Choice, GpuError> {
    let mut adapters = enumerate(stand_in);
    let same = adapters.iter().position(|(_, info)| is_same(info, lost));
    let reason = match same {
        Some(_) => "the same as before".to_string(),
        None => format!("`{}` is gone", lost.name),
    };
    let index = same.unwrap_or(0);
    let summary = adapters.get(index).map(|adapter| summarise(index, adapter)).ok_or(GpuError::NoAdapter)?;
    Ok(Choice { adapter: adapters.swap_remove(index).0, summary, reason })
}

/// Whether two descriptions are of one adapter. Its driver may be another one by now.
pub(super) fn is_same(a: &wgpu::AdapterInfo, b: &wgpu::AdapterInfo) -> bool {
    let id = |info: &wgpu::AdapterInfo| (info.vendor, info.device, info.backend);
    id(a) == id(b) && a.name == b.name && a.device_pci_bus_id == b.device_pci_bus_id
}

pub(super) fn choose(select: Option<&str>, stand_in: Option<StandIn>) -> Result<Choice, GpuError> {
    let adapters = enumerate(stand_in);
    if adapters.is_empty() {
        return Err(GpuError::NoAdapter);
    }
    let all: Vec<AdapterSummary> = adapters.iter().enumerate().map(|(i, a)| summarise(i, a)).collect();
    let (index, reason) = match select {
        None if all.len() == 1 => (0, "the only adapter".to_string()),
        None => (0, format!("the first of {}, discrete before integrated before software", all.len())),
        Some(wanted) => {
            let by_index = wanted.parse::<usize>().ok().filter(|i| *i < all.len());
            let by_name =
                || all.iter().position(|a| a.info.name.to_lowercase().contains(&wanted.to_lowercase()));
            let found = by_index.or_else(by_name).ok_or_else(|| GpuError::NoSuchAdapter {
                wanted: wanted.to_string(),
                found: all.iter().map(|a| format!("`{}`", a.info.name)).collect::<Vec<_>>().join(", "),
            })?;
            (found, format!("chosen by `{wanted}`"))
        }
    };
    let mut adapters = adapters;
    Ok(Choice { adapter: adapters.swap_remove(index).0, summary: all[index].clone(), reason })
}

/// Checks that a device that was made of the adapter `expected` came with that adapter.
pub(super) fn check_same(expected: &wgpu::AdapterInfo, found: &wgpu::AdapterInfo) -> Result<(), GpuError> {
    let name = |info: &wgpu::AdapterInfo| format!("{} ({})", info.name, info.backend);
    match expected == found {
        true => Ok(()),
        false => Err(GpuError::OtherAdapter { expected: name(expected), found: name(found) }),
    }
}

/// Shapes `(m, n, k)` of cooperative matrices with f16 inputs and f32 sums; none if `features` lacks them.
pub(super) fn cooperative_matrices(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
) -> Vec<(u32, u32, u32)> {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return Vec::new();
    }
    let shapes = adapter.cooperative_matrix_properties();
    let fits = |p: &&wgpu::CooperativeMatrixProperties| {
        p.ab_type == wgpu::CooperativeScalarType::F16 && p.cr_type == wgpu::CooperativeScalarType::F32
    };
    shapes.iter().filter(fits).map(|p| (p.m_size, p.n_size, p.k_size)).collect()
}

/// What to request of an adapter: the features that make kernels faster, and its own limits. Cooperative matrices are
/// experimental, so only if those are allowed.
pub(super) fn descriptor(
    adapter: &wgpu::Adapter,
    experimental_features: wgpu::ExperimentalFeatures,
) -> wgpu::DeviceDescriptor<'static> {
    let mut useful = wgpu::Features::SHADER_F16
        | wgpu::Features::SHADER_INT64
        | wgpu::Features::SUBGROUP
        | wgpu::Features::TIMESTAMP_QUERY
        | wgpu::Features::PIPELINE_CACHE;
    if experimental_features.is_enabled() {
        useful |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    }
    wgpu::DeviceDescriptor {
        label: Some("wginfer"),
        required_features: adapter.features() & useful,
        required_limits: adapter.limits(),
        experimental_features,
        memory_hints: wgpu::MemoryHints::Performance,
        ..Default::default()
    }
}

pub(super) fn open(
    adapter: &wgpu::Adapter,
    fault: &Arc<Fault>,
) -> Result<(wgpu::Device, wgpu::Queue), GpuError> {
    // SAFETY: wgpu calls a feature experimental while it may still have bugs that are undefined behaviour. The only
    // such feature that we request is cooperative matrices, which speed up prompts many times. Our kernels access them
    // only inside arrays, in uniform control flow, in shapes that the adapter lists.
    // `WGINFER_DISABLE=cooperative-matrices` disables them.
    #[allow(unsafe_code)]
    let experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor(adapter, experimental)))
        .map_err(|e| GpuError::NoDevice { adapter: adapter.get_info().name, message: e.to_string() })?;
    // On a device of our own, `Gpu::poll` returns the fault. wgpu's default handler panics.
    let faults = fault.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        faults.note(GpuError::Device { message: error.to_string() });
    }));
    let faults = fault.clone();
    device.set_device_lost_callback(move |reason, message| {
        let message = match reason {
            wgpu::DeviceLostReason::Destroyed => "it was destroyed".to_string(),
            _ => message,
        };
        faults.note(GpuError::Lost { message });
    });
    Ok((device, queue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_adapter_is_named() {
        let info = |backend| wgpu::AdapterInfo {
            name: "card".into(),
            ..wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, backend)
        };
        let (vulkan, gl) = (info(wgpu::Backend::Vulkan), info(wgpu::Backend::Gl));
        assert!(check_same(&vulkan, &vulkan).is_ok());
        let error = check_same(&vulkan, &gl).expect_err("another").to_string();
        assert!(error.contains("`card (vulkan)`") && error.contains("`card (gl)`"), "{error}");
    }
}
