//! Kernel declarations: a WGSL file, the parts appended to it, its bindings and parameters.

use std::sync::Arc;

use super::{Fields, Gpu, GpuError};

/// How a kernel uses a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
    /// `var<storage, read>` of an array of structs that the host writes.
    Records(&'static Fields),
}

/// A WGSL file in `shaders/` and what the host must know about it. A test compares each declaration with the file by
/// reflection.
#[derive(Debug)]
pub struct Kernel {
    /// Name of the file, the entry point, the reference function and the benchmark row.
    pub name: &'static str,
    /// The WGSL text.
    pub source: &'static str,
    /// The uniform `Params` at binding 0.
    pub params: &'static Fields,
    /// Storage bindings 1, 2, … in order.
    pub bindings: &'static [Access],
    /// Whether no index can be out of bounds, so that bounds checks are omitted. Each use needs its reason beside it:
    /// errors in such a kernel are undefined behaviour.
    pub proven: bool,
}

/// A WGSL file in `shaders/parts/` that is appended to a kernel to give it functions or aliases with a
/// fixed contract.
#[derive(Debug)]
pub struct Part {
    /// Name of the file.
    pub name: &'static str,
    /// The WGSL text.
    pub source: &'static str,
    /// Extensions of WGSL that the part and its kernels use: the words of `enable` lines. (Subgroups are not among
    /// them: naga needs no directive for them, and refuses `enable subgroups;`.)
    pub enables: &'static [&'static str],
}

/// Maximum number of parts and of override values of a variant: with arrays of fixed size, the look-up of a pipeline
/// allocates nothing.
const MOST_PARTS: usize = 8;
const MOST_OVERRIDES: usize = 16;

/// A kernel with its parts and override values: one pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// The kernel.
    pub kernel: &'static Kernel,
    parts: [Option<&'static Part>; MOST_PARTS],
    overrides: [(&'static str, u32); MOST_OVERRIDES],
}

impl Variant {
    /// The kernel with no parts and no overrides.
    pub fn new(kernel: &'static Kernel) -> Self {
        Variant { kernel, parts: [None; MOST_PARTS], overrides: [("", 0); MOST_OVERRIDES] }
    }

    /// Appends a part.
    ///
    /// # Panics
    /// If the variant has eight parts already.
    #[must_use]
    pub fn part(mut self, part: &'static Part) -> Self {
        let free = self.parts.iter().position(Option::is_none);
        self.parts[free.expect("a variant has at most eight parts")] = Some(part);
        self
    }

    /// Sets an `override` constant.
    ///
    /// # Panics
    /// If the variant sets sixteen already.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: u32) -> Self {
        let free = self.overrides.iter().position(|(n, _)| n.is_empty());
        self.overrides[free.expect("a variant sets at most sixteen overrides")] = (name, value);
        self
    }

    /// The WGSL that is compiled. The kernel comes first, so that line numbers in errors are the file's: at WGSL's
    /// module scope, order does not matter. Only `enable` directives must come before it: they are put on its first
    /// line, before the comment there.
    pub fn source(&self) -> String {
        let mut source = String::new();
        for word in self.parts.iter().flatten().flat_map(|part| part.enables) {
            source += &format!("enable {word}; ");
        }
        source.push_str(self.kernel.source);
        for part in self.parts.iter().flatten() {
            source.push('\n');
            source.push_str(part.source);
        }
        source
    }

    /// Name with parts and overrides, for messages and debuggers.
    pub fn label(&self) -> String {
        let mut label = self.kernel.name.to_string();
        for part in self.parts.iter().flatten() {
            label = label + "+" + part.name;
        }
        for (name, value) in self.overrides() {
            label += &format!(" {name}={value}");
        }
        label
    }

    /// The parts, in order.
    pub fn parts(&self) -> impl Iterator<Item = &'static Part> + '_ {
        self.parts.iter().copied().flatten()
    }

    /// The override values.
    pub fn overrides(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.overrides.iter().copied().filter(|(name, _)| !name.is_empty())
    }

    /// The value of an override.
    pub(crate) fn value(&self, name: &str) -> Option<u32> {
        self.overrides().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Whether `part` is appended.
    pub(crate) fn has(&self, part: &Part) -> bool {
        self.parts().any(|known| known.name == part.name)
    }

    fn key(&self) -> impl Eq + std::hash::Hash + '_ {
        (self.kernel.name, self.parts.map(|p| p.map(|p| p.name)), self.overrides)
    }
}

impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Variant {}

impl std::hash::Hash for Variant {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// A compiled variant.
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    /// Distinguishes layouts in the recorder's bind-group cache.
    pub id: usize,
}

/// naga's guard against endless loops is off: it would add a counter to each loop and keep drivers from unrolling.
/// Every loop in `shaders/` counts to a bound that is read before it starts. Out-of-bounds accesses are checked, except
/// in kernels whose declaration excludes them.
fn checks(kernel: &Kernel) -> wgpu::ShaderRuntimeChecks {
    let mut checks = wgpu::ShaderRuntimeChecks::checked();
    checks.force_loop_bounding = false;
    checks.bounds_checks = !kernel.proven;
    checks
}

impl Pipeline {
    /// Compiles `variant` inside error scopes, so that a failure names the kernel.
    pub(super) fn compile(gpu: &Gpu, variant: &Variant, id: usize) -> Result<Arc<Pipeline>, GpuError> {
        let device = gpu.device();
        let label = variant.label();
        let kernel = variant.kernel;
        let fail = |message: String| GpuError::Compile { kernel: label.clone(), message };
        let most = device.limits().max_storage_buffers_per_shader_stage as usize;
        if kernel.bindings.len() > most {
            return Err(fail(format!("needs {} storage bindings, found {most}", kernel.bindings.len())));
        }
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);

        // SAFETY: a check is off only if what it guards against cannot happen, see `checks`.
        #[allow(unsafe_code)]
        let module = unsafe {
            device.create_shader_module_trusted(
                wgpu::ShaderModuleDescriptor {
                    label: Some(&label),
                    source: wgpu::ShaderSource::Wgsl(gpu.source(variant).into()),
                },
                checks(kernel),
            )
        };
        let entry = |binding: usize, ty, has_dynamic_offset, min: usize| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset,
                min_binding_size: std::num::NonZeroU64::new(min as u64),
            },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true, kernel.params.size_bytes)];
        entries.extend(kernel.bindings.iter().enumerate().map(|(i, access)| {
            let read_only = *access != Access::ReadWrite;
            entry(i + 1, wgpu::BufferBindingType::Storage { read_only }, false, 0)
        }));
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(kernel.name),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let constants: Vec<(&str, f64)> =
            variant.overrides().map(|(name, value)| (name, f64::from(value))).collect();
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: gpu.pipeline_cache(),
        });
        // Inner scope first; the futures are ready at once on native backends.
        for scope in [validation, memory, internal] {
            if let Some(error) = pollster::block_on(scope.pop()) {
                return Err(fail(error.to_string()));
            }
        }
        Ok(Arc::new(Pipeline { pipeline, layout, id }))
    }
}
