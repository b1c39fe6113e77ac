//! Capabilities of devices that are not there: to list the variants that would run on them.

use super::{Caps, Subgroups};

/// A kind of device and its capabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// The devices that it stands for.
    pub about: &'static str,
    /// Capabilities as those devices report them to `wgpu`, with what a probe finds there.
    pub caps: Caps,
}

/// What every device has.
fn minimum() -> Caps {
    Caps {
        f16: false,
        int64: false,
        subgroups: None,
        subgroup_probe: true,
        timestamps: false,
        pipeline_cache: false,
        cooperative_matrices: Vec::new(),
        f32_products: false,
        tuning: false,
        cpu: false,
        max_binding_bytes: 128 << 20,
        max_buffer_bytes: 256 << 20,
        max_workgroup_bytes: 16 << 10,
        max_workgroup_size: 256,
        max_storage_buffers: 8,
        max_workgroups: 65_535,
        storage_align: 256,
        uniform_align: 256,
    }
}

/// A graphics card of today.
fn card(subgroups: Option<Subgroups>, workgroup_kib: u32) -> Caps {
    Caps {
        f16: true,
        int64: true,
        subgroups,
        max_binding_bytes: 4 << 30,
        max_buffer_bytes: 16 << 30,
        max_workgroup_bytes: workgroup_kib << 10,
        max_workgroup_size: 1024,
        max_storage_buffers: 64,
        ..minimum()
    }
}

/// RADV compiles workgroups of at most 32 invocations for subgroups of 32, and larger ones for 64.
fn rdna() -> Subgroups {
    Subgroups::range(32, 64).probed(1024, |workgroup, _| Some(if workgroup <= 32 { 32 } else { 64 }))
}

/// The table of devices.
pub fn profiles() -> Vec<Profile> {
    let lavapipe = |tiles: &[(u32, u32, u32)]| Caps {
        cpu: true,
        max_binding_bytes: 128 << 20,
        max_buffer_bytes: 2 << 30,
        cooperative_matrices: tiles.to_vec(),
        ..card(Some(Subgroups::fixed(8)), 32)
    };
    let with_tiles = |n: u32, caps: Caps| Caps { cooperative_matrices: vec![(n, n, n)], ..caps };
    let fixed = |width| Some(Subgroups::fixed(width));
    let intel = Subgroups::range(8, 32);
    let apple = Subgroups::range(4, 64).probed(1024, |_, _| Some(32));
    [
        ("minimum", "what every device has", minimum()),
        ("lavapipe", "Mesa's software Vulkan", lavapipe(&[])),
        ("lavapipe-26", "Mesa's software Vulkan from Mesa 26 on", lavapipe(&[(8, 8, 8)])),
        ("nvidia", "NVIDIA from Turing on, on Vulkan", with_tiles(16, card(fixed(32), 48))),
        ("gcn", "AMD before RDNA", card(fixed(64), 64)),
        ("rdna2", "AMD RDNA 1 and 2, on Vulkan", card(Some(rdna()), 64)),
        ("rdna3", "AMD from RDNA 3 on, on Vulkan", with_tiles(16, card(Some(rdna()), 64))),
        (
            "adopted",
            "a host's device whose widths of subgroups vary",
            card(Some(Subgroups::range(32, 64)), 64),
        ),
        ("intel", "Intel Xe and Arc, on Vulkan, whose widths a probe cannot tell", card(Some(intel), 64)),
        ("apple", "Apple M1 and later", with_tiles(8, card(Some(apple), 32))),
        (
            "dx12-fxc",
            "DX12 with Microsoft's FXC: shader model 5.1",
            Caps { f16: false, int64: false, ..card(None, 32) },
        ),
        ("dx12-32", "DX12 with Microsoft's DXC, waves of 32", card(fixed(32), 32)),
        ("dx12-64", "DX12 with Microsoft's DXC, waves of 64", card(fixed(64), 32)),
    ]
    .map(|(name, about, caps)| Profile { name, about, caps })
    .into()
}
