//! What a device can do, as far as it decides which kernel variant runs.

/// Environment variable that switches capabilities off, so that every variant can be tested on one
/// machine: a comma-separated list of `f16`, `subgroups`, `timestamps`, `pipeline-cache`,
/// `cooperative-matrices`, `tuning` for choices of variants that were measured, `software` for the variants that
/// software devices run, and `limits` for what limits allow beyond those that every device has.
pub const DISABLE_ENV: &str = "WGINFER_DISABLE";

/// What every device must have; the default limits of WebGPU are enough.
pub(super) const MINIMUM: &[(&str, u64)] = &[
    ("max_storage_buffers_per_shader_stage", 8),
    ("max_compute_invocations_per_workgroup", 256),
    ("max_compute_workgroup_storage_size", 16 << 10),
    ("max_storage_buffer_binding_size", 128 << 20),
];

/// The capabilities and limits of a device that the choice of variants rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Caps {
    /// Shaders may compute in `f16`. (Loading `f16` weights needs no capability: they are unpacked.)
    pub f16: bool,
    /// Width of a subgroup, only where minimum and maximum agree: elsewhere a kernel cannot know it.
    pub subgroup: Option<u32>,
    /// Passes can write timestamps.
    pub timestamps: bool,
    /// The driver's compiled pipelines can be kept on disk.
    pub pipeline_cache: bool,
    /// Tile shapes `(m, n, k)` of the device's cooperative matrices with f16 inputs and f32 sums.
    pub cooperative_matrices: Vec<(u32, u32, u32)>,
    /// Products keep F32 inputs although the device has faster units for F16 ones.
    pub f32_products: bool,
    /// Variants are chosen by what was measured on this device, where something is kept of it.
    pub tuning: bool,
    /// The device is a processor that pretends (lavapipe, WARP): barriers and workgroup memory are dear.
    pub cpu: bool,
    /// Bytes that one storage binding may span.
    pub max_binding_bytes: u64,
    /// Bytes that one buffer may have.
    pub max_buffer_bytes: u64,
    /// Bytes of workgroup memory.
    pub max_workgroup_bytes: u32,
    /// Invocations a workgroup may have.
    pub max_workgroup_size: u32,
    /// Storage buffers that one kernel may bind.
    pub max_storage_buffers: u32,
    /// Workgroups a dispatch may have in each dimension.
    pub max_workgroups: u32,
    /// Alignment of storage binding offsets, in bytes.
    pub storage_align: u32,
    /// Alignment of uniform binding offsets, in bytes.
    pub uniform_align: u32,
}

impl Caps {
    /// Reads the capabilities of a device.
    pub(super) fn of(device: &wgpu::Device) -> Self {
        Caps::new(device.features(), &device.limits(), &device.adapter_info())
    }

    /// The capabilities of a device with these features and limits, cooperative matrices excepted.
    pub(super) fn new(features: wgpu::Features, limits: &wgpu::Limits, info: &wgpu::AdapterInfo) -> Self {
        let fixed_width = info.subgroup_min_size == info.subgroup_max_size;
        Caps {
            f16: features.contains(wgpu::Features::SHADER_F16),
            subgroup: (features.contains(wgpu::Features::SUBGROUP) && fixed_width)
                .then_some(info.subgroup_min_size),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            pipeline_cache: features.contains(wgpu::Features::PIPELINE_CACHE),
            cooperative_matrices: Vec::new(),
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
        }
    }

    /// Switches off what `names` lists (see [`DISABLE_ENV`]); returns the first unknown name.
    pub fn disable(&mut self, names: &str) -> Result<(), String> {
        for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match name {
                "f16" => self.f16 = false,
                "subgroups" => self.subgroup = None,
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

    /// What this device lacks, each with what that costs.
    pub fn lost(&self) -> Vec<&'static str> {
        let mut lost = Vec::new();
        if self.subgroup.is_none() {
            lost.push("no subgroups of a fixed width: slower variants run");
        }
        if self.max_storage_buffers < 10 {
            lost.push("fewer than 10 storage buffers a kernel: projection, rotation and cache take two kernels more");
        }
        if !self.timestamps {
            lost.push("no timestamps: a guest's slices are timed by when they are seen to finish");
        }
        lost
    }

    /// Side of the square tiles of cooperative matrices that kernels multiply on this device: the larger of 16 and
    /// 8 that it has. A subgroup holds a tile, so its width must be certain; the tiles are `f16` in workgroup
    /// memory. None where products shall keep F32 inputs.
    pub fn coop_tile(&self) -> Option<u32> {
        let usable = self.f16 && self.subgroup.is_some() && !self.f32_products;
        [16, 8].into_iter().find(|&n| usable && self.cooperative_matrices.contains(&(n, n, n)))
    }

    /// Whether what many rows share runs on cooperative matrices, whose inputs are F16: wherever kernels can use
    /// them, but not on software devices, where they have no units of their own (lavapipe 26 multiplies 8 × 8 tiles
    /// at a fifth of the speed of `linear_reg`).
    pub fn f16_products(&self) -> bool {
        self.coop_tile().is_some() && !self.cpu
    }

    /// Distributes `n` workgroups over two dimensions where one is too short.
    ///
    /// Kernels find their index as `id.x + id.y * num_workgroups.x` and check it against the count.
    pub fn spread(&self, n: u32) -> [u32; 3] {
        let y = n.div_ceil(self.max_workgroups).max(1);
        [n.div_ceil(y), y, 1]
    }
}
