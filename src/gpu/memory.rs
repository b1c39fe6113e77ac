//! Free memory, where the system tells.

use super::Gpu;

impl Gpu {
    /// Bytes that can still be allocated, as far as is known: on software and integrated devices the machine's free
    /// memory, on a card with Vulkan its memory without what this `Gpu` has allocated. `None` if nobody tells.
    pub fn free_bytes(&self) -> Option<u64> {
        let known = || match self.info().device_type {
            wgpu::DeviceType::Cpu | wgpu::DeviceType::IntegratedGpu => machine_bytes(),
            _ => Some(self.card_bytes()?.saturating_sub(self.counts().live_bytes)),
        };
        self.inner.free_bytes.or_else(known)
    }

    /// Bytes of a card's largest heap of its own. Vulkan knows how much of it is free only with an extension that
    /// `wgpu` does not request.
    #[cfg(any(target_os = "linux", target_os = "android", windows))]
    fn card_bytes(&self) -> Option<u64> {
        const DEVICE_LOCAL: u32 = 1;
        // SAFETY: the device is neither destroyed nor changed, and its physical device belongs to its instance.
        #[allow(unsafe_code)]
        let heaps = unsafe {
            let device = self.inner.device.as_hal::<wgpu::hal::api::Vulkan>()?;
            let instance = device.shared_instance().raw_instance();
            instance.get_physical_device_memory_properties(device.raw_physical_device())
        };
        let heaps = heaps.memory_heaps.iter().take(heaps.memory_heap_count as usize);
        heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
    fn card_bytes(&self) -> Option<u64> {
        None
    }
}

/// The machine's free memory, or what is left of the limit of a container.
fn machine_bytes() -> Option<u64> {
    let memory = sysinfo::MemoryRefreshKind::nothing().with_ram();
    let system = sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_memory(memory));
    let available = Some(system.available_memory()).filter(|n| *n > 0)?;
    let limited = system.cgroup_limits().map(|limits| limits.free_memory).filter(|n| *n > 0);
    Some(limited.map_or(available, |n| n.min(available)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_has_memory() {
        let n = super::machine_bytes();
        assert!(!cfg!(target_os = "linux") || n.is_some_and(|n| n > 1 << 20), "{n:?}");
    }
}
