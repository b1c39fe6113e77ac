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
    let limited = system.cgroup_limits().map(|limits| left(limits.total_memory, limits.rss));
    Some(limited.map_or(available, |n| n.min(available)))
}

/// What is left of a container's limit. Its own count of free bytes leaves out what holds copies of files, which the
/// system gives back at once.
fn left(total_bytes: u64, rss_bytes: u64) -> u64 {
    total_bytes.saturating_sub(rss_bytes)
}

#[cfg(test)]
mod tests {
    use super::{left, machine_bytes};

    #[test]
    fn the_machine_has_memory() {
        let n = machine_bytes();
        assert!(!cfg!(target_os = "linux") || n.is_some_and(|n| n > 1 << 20), "{n:?}");
    }

    #[test]
    fn copies_of_files_count_as_free() {
        const GB: u64 = 1 << 30;
        assert_eq!([left(8 * GB, 3 * GB), left(GB, 2 * GB)], [5 * GB, 0]);
        let memory = sysinfo::MemoryRefreshKind::nothing().with_ram();
        let system = sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_memory(memory));
        let is_limited = system.cgroup_limits().is_some_and(|l| l.total_memory < system.total_memory());
        if let (Some(n), false) = (machine_bytes(), is_limited) {
            assert!(n > system.available_memory() / 2, "{n} of {}", system.available_memory());
        }
    }
}
