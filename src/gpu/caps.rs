//! The capabilities of a device, which decide which kernel variants run.

use super::subgroups::MATRIX_SUBGROUPS;
use super::{Quirk, Subgroups, quirks};

/// Environment variable that disables capabilities, so that every variant can be tested on one machine. A
/// comma-separated list of `f16`, `int64`, `subgroups`, `subgroup-probe` (widths of subgroups that the driver chooses by
/// kernel), `timestamps`, `pipeline-cache`, `cooperative-matrices`, `tuning` (measured choices of variants), `software`
/// (the variants for software devices) and `limits` (limits above the minimum that every device has).
pub const DISABLE_ENV: &str = "WGINFER_DISABLE";

/// Limits that every device must have. They are WebGPU's defaults.
pub(super) const MINIMUM: &[(&str, u64)] = &[
    ("max_storage_buffers_per_shader_stage", 8),
    ("max_compute_invocations_per_workgroup", 256),
    ("max_compute_workgroup_storage_size", 16 << 10),
    ("max_storage_buffer_binding_size", 128 << 20),
];

/// The least width of subgroups in WebGPU; `shaders/parts/reduce_any.wgsl` rests on it.
const LEAST_WIDTH: u32 = 4;

/// The capabilities and limits of a device that decide which variants run.
#[derive(Clone, Debug, PartialEq)]
pub struct Caps {
    /// Shaders may compute in `f16`. (Loading `f16` weights needs no capability: they are unpacked.)
    pub f16: bool,
    /// Shaders may use 64-bit integers.
    pub int64: bool,
    /// Widths of subgroups, if shaders may use subgroups.
    pub subgroups: Option<Subgroups>,
    /// Widths of subgroups that a driver chooses by kernel are probed when a device of our own is opened.
    pub subgroup_probe: bool,
    /// Passes can write timestamps.
    pub timestamps: bool,
    /// The driver's compiled pipelines can be kept on disk.
    pub pipeline_cache: bool,
    /// Tile shapes `(m, n, k)` of the device's cooperative matrices with f16 inputs and f32 sums.
    pub cooperative_matrices: Vec<(u32, u32, u32)>,
    /// Products keep F32 inputs, even if the device has faster units for F16.
    pub f32_products: bool,
    /// Measured choices of variants are used, if some are kept for this device.
    pub tuning: bool,
    /// A software device (lavapipe, WARP): barriers and workgroup memory are expensive.
    pub cpu: bool,
    /// Largest storage binding, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Bytes of workgroup memory.
    pub max_workgroup_bytes: u32,
    /// Most invocations per workgroup.
    pub max_workgroup_size: u32,
    /// Most storage buffers per kernel.
    pub max_storage_buffers: u32,
    /// Most workgroups per dimension of a dispatch.
    pub max_workgroups: u32,
    /// Alignment of storage binding offsets, in bytes.
    pub storage_align: u32,
    /// Alignment of uniform binding offsets, in bytes.
    pub uniform_align: u32,
}

impl Caps {
    /// The capabilities of a device with these features, limits and shapes of cooperative matrices, without what its
    /// driver's quirks forbid.
    pub(super) fn new(
        features: wgpu::Features,
        limits: &wgpu::Limits,
        info: &wgpu::AdapterInfo,
        cooperative_matrices: Vec<(u32, u32, u32)>,
    ) -> Self {
        let mut caps = Caps {
            f16: features.contains(wgpu::Features::SHADER_F16),
            int64: features.contains(wgpu::Features::SHADER_INT64),
            subgroups: features
                .contains(wgpu::Features::SUBGROUP)
                .then(|| Subgroups::range(info.subgroup_min_size, info.subgroup_max_size)),
            subgroup_probe: true,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            pipeline_cache: features.contains(wgpu::Features::PIPELINE_CACHE),
            cooperative_matrices,
            f32_products: false,
            tuning: true,
            cpu: info.device_type == wgpu::DeviceType::Cpu,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroup_size: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            storage_align: limits.min_storage_buffer_offset_alignment,
            uniform_align: limits.min_uniform_buffer_offset_alignment,
        };
        quirks::quirks(info).into_iter().for_each(|quirk| caps.avoid(quirk));
        caps
    }

    /// Disables the capabilities in `names` (see [`DISABLE_ENV`]).
    ///
    /// # Errors
    /// The first unknown name.
    pub fn disable(&mut self, names: &str) -> Result<(), String> {
        for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match name {
                "f16" => self.f16 = false,
                "int64" => self.int64 = false,
                "subgroups" => self.subgroups = None,
                "subgroup-probe" => self.subgroup_probe = false,
                "timestamps" => self.timestamps = false,
                "pipeline-cache" => self.pipeline_cache = false,
                "tuning" => self.tuning = false,
                "software" => self.cpu = false,
                "cooperative-matrices" => self.cooperative_matrices.clear(),
                "limits" => self.keep_to_minimum(),
                other => return Err(other.to_string()),
            }
        }
        Ok(())
    }

    /// Disables the capabilities in `names`, and those in the variable [`DISABLE_ENV`].
    ///
    /// # Errors
    /// The first unknown name.
    pub(super) fn disable_with_env(&mut self, names: &str) -> Result<(), String> {
        let from_env = std::env::var(DISABLE_ENV).unwrap_or_default();
        [names, &from_env].into_iter().try_for_each(|names| self.disable(names))
    }

    /// Disables what a quirk avoids.
    fn avoid(&mut self, quirk: &Quirk) {
        self.disable(quirk.avoids).expect("a quirk avoids known capabilities");
    }

    fn keep_to_minimum(&mut self) {
        for &(limit, least) in MINIMUM {
            let (bytes, count) = (least, least as u32);
            match limit {
                "max_storage_buffers_per_shader_stage" => {
                    self.max_storage_buffers = self.max_storage_buffers.min(count);
                }
                "max_compute_invocations_per_workgroup" => {
                    self.max_workgroup_size = self.max_workgroup_size.min(count);
                }
                "max_compute_workgroup_storage_size" => {
                    self.max_workgroup_bytes = self.max_workgroup_bytes.min(count);
                }
                "max_storage_buffer_binding_size" => {
                    self.max_binding_bytes = self.max_binding_bytes.min(bytes);
                }
                other => unreachable!("no capability rests on `{other}`"),
            }
        }
    }

    /// The same device without what a driver may compute wrongly: subgroups, f16, 64-bit integers and cooperative
    /// matrices.
    pub fn portable(&self) -> Caps {
        Caps { f16: false, int64: false, subgroups: None, cooperative_matrices: Vec::new(), ..self.clone() }
    }

    /// The capabilities that this device lacks, each with its cost.
    pub fn lost(&self) -> Vec<&'static str> {
        let mut lost = Vec::new();
        if self.one_subgroup().is_none() {
            lost.push(match self.subgroups {
                None => "no subgroups: slower variants run",
                Some(_) => "subgroups of no certain width: slower variants of products run",
            });
        }
        if self.max_storage_buffers < 10 {
            lost.push("fewer than 10 storage buffers per kernel: projection, rotation and cache take two more kernels");
        }
        if self.cpu && !self.int64 {
            lost.push("no 64-bit integers: weights and caches are loaded in smaller words");
        }
        if !self.timestamps {
            lost.push("no timestamps: a guest's work is timed by when its end is noticed");
        }
        lost
    }

    /// Whether kernels may use subgroups whose width they need not know.
    pub fn any_subgroups(&self) -> bool {
        self.subgroups.as_ref().is_some_and(|subgroups| subgroups.min >= LEAST_WIDTH)
    }

    /// Invocations of a workgroup that is certainly one whole subgroup. `None` if no width is certain.
    pub fn one_subgroup(&self) -> Option<u32> {
        self.subgroups.as_ref()?.certain(1, false)
    }

    /// Whether a workgroup of `n` invocations is certainly one whole subgroup.
    pub fn is_one_subgroup(&self, n: u32) -> bool {
        self.subgroups.as_ref().is_some_and(|subgroups| subgroups.width(n, false) == Some(n))
    }

    /// Invocations of a subgroup in a kernel on cooperative matrices, if its workgroups certainly are `n_subgroups`
    /// whole subgroups of that width.
    pub fn coop_width(&self, n_subgroups: u32) -> Option<u32> {
        self.subgroups.as_ref()?.certain(n_subgroups, true)
    }

    /// Side of the cooperative matrices that kernels could use if widths are certain: 16 if the device has them, else
    /// 8. `None` if the device lacks f16, the type of tiles in workgroup memory.
    pub(crate) fn matrix_tile(&self) -> Option<u32> {
        [16, 8].into_iter().find(|&n| self.f16 && self.cooperative_matrices.contains(&(n, n, n)))
    }

    /// Side of the cooperative matrices that kernels use on this device: 16 if it has them, else 8. `None` if the
    /// device lacks f16 (the type of tiles in workgroup memory) or subgroups of a certain width (which hold a tile), or
    /// if [`Caps::f32_products`] is set. Also `None` on Intel's cards, whose matrices are 8 × 16 × 16: naga 30 can
    /// express only those of 8 × 8 × 8 and 16 × 16 × 16. `linear_tile` runs there.
    pub fn coop_tile(&self) -> Option<u32> {
        let is_certain = MATRIX_SUBGROUPS.iter().any(|n| self.coop_width(*n).is_some());
        self.matrix_tile().filter(|_| is_certain && !self.f32_products)
    }

    /// Whether products of many rows run on cooperative matrices, with F16 inputs. True wherever kernels can use them,
    /// except on software devices, which have no matrix units: lavapipe 26 multiplies 8 × 8 tiles at a fifth of the
    /// speed of `rows_reg`.
    pub fn f16_products(&self) -> bool {
        self.coop_tile().is_some() && !self.cpu
    }

    /// Distributes `n` workgroups over two dimensions if one is too short.
    ///
    /// Kernels compute their index as `id.x + id.y * num_workgroups.x` and compare it with the count. Products of few
    /// rows use y and z, and x for groups of rows.
    pub fn spread(&self, n: u32) -> [u32; 3] {
        let y = n.div_ceil(self.max_workgroups).max(1);
        [n.div_ceil(y), y, 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quirk_avoids_something() {
        for quirk in quirks::QUIRKS {
            let info = wgpu::AdapterInfo::new(wgpu::DeviceType::IntegratedGpu, wgpu::Backend::Vulkan);
            let before =
                Caps::new(wgpu::Features::all(), &wgpu::Limits::default(), &info, vec![(16, 16, 16)]);
            let mut after = before.clone();
            after.avoid(quirk);
            assert_ne!(after, before, "{quirk:?} avoids nothing");
        }
    }
}
