//! The Vulkan device of a process that compiles with RADV, without `wgpu`: the driver has no memory or queue that works
//! where it has no card, and `wgpu` would not return the compiler's statistics.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};

use ash::vk;

/// Statistics that must be zero: names that begin so in Mesa's versions.
const COSTS: [&str; 3] = ["Spilled SGPRs", "Spilled VGPRs", "Scratch size"];

/// A device that only compiles. It lives as long as its process.
pub struct Device {
    pub name: String,
    pub has_matrices: bool,
    device: ash::Device,
    statistics: ash::khr::pipeline_executable_properties::Device,
    _instance: ash::Instance,
    _entry: ash::Entry,
}

impl Device {
    /// Opens the first device with all features that it has.
    pub fn open() -> Result<Device, String> {
        let failed = |what: &'static str| move |error: vk::Result| format!("{what}: {error}");
        // SAFETY: the library is the system's loader, and each call gets valid structs that outlive it.
        unsafe {
            let entry = ash::Entry::load().map_err(|e| e.to_string())?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let info = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&info, None).map_err(failed("instance"))?;
            let adapters = instance.enumerate_physical_devices().map_err(failed("adapters"))?;
            let adapter = *adapters.first().ok_or("no adapter")?;
            let properties = instance.get_physical_device_properties(adapter);
            let name = properties.device_name_as_c_str().unwrap_or_default().to_string_lossy().into_owned();
            let extensions =
                instance.enumerate_device_extension_properties(adapter).map_err(failed("extensions"))?;
            let has = |name: &CStr| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
            let mut names = vec![ash::khr::pipeline_executable_properties::NAME];
            let (robustness, matrices) = (ash::ext::robustness2::NAME, ash::khr::cooperative_matrix::NAME);
            names.extend([robustness, matrices].into_iter().filter(|name| has(name)));

            let mut v11 = vk::PhysicalDeviceVulkan11Features::default();
            let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
            let mut v13 = vk::PhysicalDeviceVulkan13Features::default();
            let mut executables = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
            let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
            let mut cooperative = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
            let mut features = vk::PhysicalDeviceFeatures2::default()
                .push_next(&mut v11)
                .push_next(&mut v12)
                .push_next(&mut v13)
                .push_next(&mut executables);
            if has(robustness) {
                features = features.push_next(&mut robust);
            }
            if has(matrices) {
                features = features.push_next(&mut cooperative);
            }
            instance.get_physical_device_features2(adapter, &mut features);

            let queue = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
            let names: Vec<_> = names.into_iter().map(CStr::as_ptr).collect();
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queue)
                .enabled_extension_names(&names)
                .push_next(&mut features);
            let device = instance.create_device(adapter, &info, None).map_err(failed("device"))?;
            let statistics = ash::khr::pipeline_executable_properties::Device::new(&instance, &device);
            let has_matrices = has(matrices);
            Ok(Device { name, has_matrices, device, statistics, _instance: instance, _entry: entry })
        }
    }

    /// Compiles a module as wgpu-hal has it compiled, with uniform or storage buffers as bindings 0, 1, … Returns the
    /// [`COSTS`] that are not zero.
    pub fn compile(&self, code: &[u32], entry: &str, uniforms: &[bool]) -> Result<Vec<String>, String> {
        let failed = |what: &'static str| move |error: vk::Result| format!("{what}: {error}");
        let device = &self.device;
        let entry = CString::new(entry).map_err(|e| e.to_string())?;
        let binding = |(i, uniform): (u32, &bool)| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(i)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
                .descriptor_type(match uniform {
                    true => vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC,
                    false => vk::DescriptorType::STORAGE_BUFFER,
                })
        };
        let bindings: Vec<_> = (0..).zip(uniforms).map(binding).collect();
        // SAFETY: naga wrote a valid module for these bindings, and each call gets valid structs that outlive it.
        unsafe {
            let module = vk::ShaderModuleCreateInfo::default().code(code);
            let module = device.create_shader_module(&module, None).map_err(failed("module"))?;
            let set = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [device.create_descriptor_set_layout(&set, None).map_err(failed("bindings"))?];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = device.create_pipeline_layout(&layout, None).map_err(failed("layout"))?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE)
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            let info = vk::ComputePipelineCreateInfo::default()
                .flags(vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR)
                .stage(stage)
                .layout(layout);
            let pipeline = device
                .create_compute_pipelines(vk::PipelineCache::null(), &[info], None)
                .map_err(|(_, error)| format!("pipeline: {error}"))?[0];
            let costs = self.costs(pipeline)?;
            device.destroy_pipeline(pipeline, None);
            device.destroy_pipeline_layout(layout, None);
            device.destroy_descriptor_set_layout(sets[0], None);
            device.destroy_shader_module(module, None);
            Ok(costs)
        }
    }

    /// The [`COSTS`] of a pipeline that are not zero.
    fn costs(&self, pipeline: vk::Pipeline) -> Result<Vec<String>, String> {
        let of = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
        // SAFETY: the pipeline was made to count.
        let statistics = unsafe { self.statistics.get_pipeline_executable_statistics(&of) };
        let statistics = statistics.map_err(|error| format!("statistics: {error}"))?;
        let mut costs = Vec::new();
        for name in COSTS {
            let named = |s: &&vk::PipelineExecutableStatisticKHR<'_>| {
                s.name_as_c_str().is_ok_and(|found| found.to_string_lossy() == name)
            };
            let found = statistics.iter().find(named).ok_or_else(|| format!("no statistic `{name}`"))?;
            // SAFETY: counts have this format.
            let n = unsafe { found.value.u64 };
            if n > 0 {
                costs.push(format!("{name} {n}"));
            }
        }
        Ok(costs)
    }
}
