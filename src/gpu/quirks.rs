//! Faults of drivers that are known for certain, and what is avoided because of them.

/// A vendor of GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vendor {
    /// PCI's number, as in `wgpu::AdapterInfo::vendor`.
    pub id: u32,
    /// A part of its adapters' names, for Metal, where they have no number.
    pub name: &'static str,
}

const INTEL: Vendor = Vendor { id: 0x8086, name: "Intel" };

/// One fault, or one habit, of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quirk {
    /// Backends that show it.
    pub backends: wgpu::Backends,
    /// Vendor.
    pub vendor: Vendor,
    /// A part of the driver's name. Empty: every driver of the vendor.
    pub driver: &'static str,
    /// First version without it, compared number by number. Empty: every version shows it.
    pub mended_in: &'static str,
    /// Capabilities that are not used, by their names in [`DISABLE_ENV`](super::DISABLE_ENV).
    pub avoids: &'static str,
    /// What the driver does.
    pub what: &'static str,
    /// Where that is written.
    pub link: &'static str,
}

/// Every known quirk. One line needs a public source, not a suspicion: the self-test finds what is not known.
pub static QUIRKS: &[Quirk] = &[Quirk {
    backends: wgpu::Backends::all(),
    vendor: INTEL,
    driver: "",
    mended_in: "",
    avoids: "subgroup-probe",
    what: "the compiler chooses the width of subgroups by the registers that a kernel needs, so a probe says nothing \
           of other kernels",
    link: "https://gitlab.freedesktop.org/mesa/mesa/-/blob/main/src/intel/compiler/brw_simd_selection.cpp",
}];

impl Quirk {
    /// Whether a device of this adapter shows it. A version that cannot be read counts as one that does.
    fn concerns(&self, info: &wgpu::AdapterInfo) -> bool {
        // DX12 gives the version as the driver's name.
        let driver = format!("{} {}", info.driver, info.driver_info).to_lowercase();
        let is_old = || match (numbers(&driver), numbers(self.mended_in)) {
            (_, None) | (None, _) => true,
            (Some(version), Some(mended_in)) => version < mended_in,
        };
        let is_vendor = match info.vendor {
            0 => info.name.contains(self.vendor.name),
            id => id == self.vendor.id,
        };
        self.backends.contains(info.backend.into())
            && is_vendor
            && driver.contains(&self.driver.to_lowercase())
            && is_old()
    }
}

/// The quirks of a device of this adapter.
pub fn quirks(info: &wgpu::AdapterInfo) -> Vec<&'static Quirk> {
    QUIRKS.iter().filter(|quirk| quirk.concerns(info)).collect()
}

/// The first dotted number of a text, as in `Mesa 22.3.6 (LLVM 15.0.6)`.
fn numbers(text: &str) -> Option<Vec<u32>> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let end = text[start..].find(|c: char| !c.is_ascii_digit() && c != '.').map_or(text.len(), |n| start + n);
    text[start..end].split('.').filter(|n| !n.is_empty()).map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(vendor: u32, backend: wgpu::Backend, driver: &str, driver_info: &str) -> wgpu::AdapterInfo {
        let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::IntegratedGpu, backend);
        (info.vendor, info.driver, info.driver_info) = (vendor, driver.into(), driver_info.into());
        info
    }

    #[test]
    fn every_quirk_has_a_source() {
        let has_source = |quirk: &Quirk| quirk.link.starts_with("https://") && !quirk.what.is_empty();
        assert!(QUIRKS.iter().all(has_source));
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let quirk = Quirk {
            backends: wgpu::Backends::VULKAN,
            vendor: Vendor { id: 0x1002, name: "AMD" },
            driver: "radv",
            mended_in: "22.10",
            ..QUIRKS[0]
        };
        let mesa = |version: &str| adapter(0x1002, wgpu::Backend::Vulkan, "RADV", version);
        assert!(quirk.concerns(&mesa("Mesa 22.3.6 (LLVM 15.0.6)")) && quirk.concerns(&mesa("Mesa 9.1")));
        assert!(!quirk.concerns(&mesa("Mesa 22.10.0")) && !quirk.concerns(&mesa("Mesa 26.1")));
        assert!(quirk.concerns(&mesa("")), "an unknown version counts as an old one");
        let others = [
            adapter(0x1002, wgpu::Backend::Dx12, "radv", "22.3"),
            adapter(0x10de, wgpu::Backend::Vulkan, "radv", "22.3"),
            adapter(0x1002, wgpu::Backend::Vulkan, "AMD proprietary driver", "22.3"),
        ];
        assert!(others.iter().all(|info| !quirk.concerns(info)));
    }

    #[test]
    fn backends_name_vendors_and_versions_in_their_own_way() {
        let old = Quirk { mended_in: "32.0.101", ..QUIRKS[0] };
        let dx12 = |version: &str| adapter(INTEL.id, wgpu::Backend::Dx12, version, "");
        assert!(old.concerns(&dx12("31.0.101.4953")) && !old.concerns(&dx12("32.0.101.6870")));
        let metal = |name: &str| {
            let info = adapter(0, wgpu::Backend::Metal, "", "");
            wgpu::AdapterInfo { name: name.into(), ..info }
        };
        assert!(QUIRKS[0].concerns(&metal("Intel(R) Iris(TM) Plus Graphics")));
        assert!(!QUIRKS[0].concerns(&metal("Apple M2")));
    }
}
