//! A variant in the languages of the backends, as naga writes them with the options that wgpu-hal 30 gives it.

use naga::back::pipeline_constants::process_overrides;
use naga::back::{PipelineConstants, hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, GlobalVariable, Module, ResourceBinding, ShaderStage, StorageAccess};
use wginfer::gpu::Variant;

/// Versions of Metal's language: the least with cooperative matrices, and the latest that wgpu-hal asks for.
pub const MSL_VERSIONS: [(u8, u8); 2] = [(2, 3), (4, 0)];

/// SPIR-V for Vulkan 1.1 without robust buffer access, and for Vulkan 1.3 with it.
pub const SPIRV_TARGETS: [Spirv; 2] =
    [Spirv { version: (1, 3), robust: false }, Spirv { version: (1, 6), robust: true }];

/// A target of SPIR-V.
#[derive(Clone, Copy, Debug)]
pub struct Spirv {
    /// Version of the language.
    pub version: (u8, u8),
    /// Whether the device checks the bounds of buffers (robustBufferAccess2), so that the shader need not.
    pub robust: bool,
}

/// A variant with its overrides applied.
pub struct Shader {
    module: Module,
    info: ModuleInfo,
    entry: &'static str,
    /// Whether accesses are not checked.
    proven: bool,
    uses_matrices: bool,
}

impl Shader {
    /// Parses and validates a variant.
    pub fn new(variant: &Variant) -> Result<Shader, String> {
        let source = variant.source();
        let module = naga::front::wgsl::parse_str(&source).map_err(|e| e.emit_to_string(&source))?;
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .map_err(|e| e.emit_to_string(&source))?;
        let constants: PipelineConstants =
            variant.overrides().map(|(name, value)| (name.to_string(), f64::from(value))).collect();
        let entry = variant.kernel.name;
        let (module, info) =
            process_overrides(&module, &info, Some((ShaderStage::Compute, entry)), &constants)
                .map_err(|e| format!("{e:?}"))?;
        Ok(Shader {
            entry,
            proven: variant.kernel.proven,
            uses_matrices: uses_matrices(variant),
            module: module.into_owned(),
            info: info.into_owned(),
        })
    }

    /// The bound variables, in order.
    pub fn bindings(&self) -> Vec<(ResourceBinding, &GlobalVariable)> {
        let variables = self.module.global_variables.iter();
        let mut all: Vec<_> = variables.filter_map(|(_, v)| v.binding.map(|binding| (binding, v))).collect();
        all.sort_by_key(|(binding, _)| binding.binding);
        all
    }

    fn policies(&self, buffer: BoundsCheckPolicy) -> BoundsCheckPolicies {
        let unless_proven = |policy| if self.proven { BoundsCheckPolicy::Unchecked } else { policy };
        BoundsCheckPolicies {
            index: unless_proven(BoundsCheckPolicy::Restrict),
            buffer: unless_proven(buffer),
            image_load: unless_proven(BoundsCheckPolicy::Restrict),
            binding_array: BoundsCheckPolicy::Unchecked,
        }
    }

    /// The words of a SPIR-V module.
    pub fn spirv(&self, target: Spirv) -> Result<Vec<u32>, String> {
        use spv::Capability as C;
        let mut capabilities = vec![
            C::Shader,
            C::Matrix,
            C::GroupNonUniform,
            C::GroupNonUniformVote,
            C::GroupNonUniformArithmetic,
            C::GroupNonUniformBallot,
            C::GroupNonUniformShuffle,
            C::GroupNonUniformShuffleRelative,
            C::GroupNonUniformQuad,
        ];
        if self.uses_matrices {
            capabilities.extend([C::Float16, C::CooperativeMatrixKHR, C::VulkanMemoryModel]);
        }
        if target.version >= (1, 6) {
            capabilities.extend([
                C::DotProductKHR,
                C::DotProductInputAllKHR,
                C::DotProductInput4x8BitKHR,
                C::DotProductInput4x8BitPackedKHR,
                C::Int8,
            ]);
        }
        let buffer = if target.robust { BoundsCheckPolicy::Unchecked } else { BoundsCheckPolicy::Restrict };
        let place = |b: ResourceBinding| spv::BindingInfo {
            descriptor_set: b.group,
            binding: b.binding,
            binding_array_size: None,
        };
        let options = spv::Options {
            lang_version: target.version,
            flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
            binding_map: self.bindings().into_iter().map(|(b, _)| (b, place(b))).collect(),
            capabilities: Some(capabilities.into_iter().collect()),
            bounds_check_policies: self.policies(buffer),
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            force_loop_bounding: false,
            use_storage_input_output_16: false,
            fake_missing_bindings: false,
            ..spv::Options::default()
        };
        let pipeline =
            spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: self.entry.to_string() };
        spv::write_vec(&self.module, &self.info, &options, Some(&pipeline)).map_err(|e| e.to_string())
    }

    /// The text in Metal's language.
    pub fn msl(&self, version: (u8, u8)) -> Result<String, String> {
        let mut resources = msl::BindingMap::default();
        for (slot, (binding, variable)) in (0u8..).zip(self.bindings()) {
            let mutable = is_written(variable);
            resources.insert(binding, msl::BindTarget { buffer: Some(slot), mutable, ..Default::default() });
        }
        // Lengths of buffers come after the buffers.
        let sizes_buffer = Some(resources.len() as u8);
        let entry = msl::EntryPointResources { immediates_buffer: None, sizes_buffer, resources };
        let options = msl::Options {
            lang_version: version,
            per_entry_point_map: [(self.entry.to_string(), entry)].into(),
            bounds_check_policies: self.policies(BoundsCheckPolicy::Restrict),
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            fake_missing_bindings: false,
            spirv_cross_compatibility: false,
            ..msl::Options::default()
        };
        let pipeline = msl::PipelineOptions {
            entry_point: Some((ShaderStage::Compute, self.entry.to_string())),
            ..Default::default()
        };
        let (text, translated) =
            msl::write_string(&self.module, &self.info, &options, &pipeline).map_err(|e| e.to_string())?;
        let entry = translated.entry_point_names.into_iter().next().ok_or("no entry point")?;
        entry.map(|_| text).map_err(|e| e.to_string())
    }

    /// The text in Direct3D's language, and the name of the entry point there: `linear` and `sample` are words of HLSL.
    pub fn hlsl(&self, model: hlsl::ShaderModel) -> Result<(String, String), String> {
        let mut binding_map = hlsl::BindingMap::default();
        let (mut cbv, mut srv, mut uav) = (0, 0, 0);
        for (binding, variable) in self.bindings() {
            let next = match variable.space {
                AddressSpace::Uniform => &mut cbv,
                _ if is_written(variable) => &mut uav,
                _ => &mut srv,
            };
            let target = hlsl::BindTarget { register: *next, restrict_indexing: true, ..Default::default() };
            *next += 1;
            binding_map.insert(binding, target);
        }
        let options = hlsl::Options {
            shader_model: model,
            binding_map,
            fake_missing_bindings: false,
            // Holds the number of workgroups, which HLSL has no name for.
            special_constants_binding: Some(hlsl::BindTarget { register: cbv, ..Default::default() }),
            zero_initialize_workgroup_memory: false,
            restrict_indexing: !self.proven,
            force_loop_bounding: false,
            ..hlsl::Options::default()
        };
        let pipeline =
            hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, self.entry.to_string())) };
        let mut text = String::new();
        let translated = hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(&self.module, &self.info, None)
            .map_err(|e| e.to_string())?;
        let entry = translated.entry_point_names.into_iter().next().ok_or("no entry point")?;
        Ok((text, entry.map_err(|e| e.to_string())?))
    }
}

fn is_written(variable: &GlobalVariable) -> bool {
    matches!(variable.space, AddressSpace::Storage { access } if access.contains(StorageAccess::STORE))
}

/// Whether a variant multiplies on cooperative matrices, which wgpu has for Vulkan and Metal only.
pub fn uses_matrices(variant: &Variant) -> bool {
    variant.parts().any(|part| part.enables.contains(&"wgpu_cooperative_matrix"))
}

/// Whether Direct3D needs shader model 6 for a variant: wave operations, 64-bit integers. FXC compiles up to 5.1.
pub fn needs_model_6(hlsl: &str) -> bool {
    ["Wave", "int64_t"].iter().any(|word| hlsl.contains(word))
}
