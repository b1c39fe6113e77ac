// probe_subgroups: widths[i] = width of the subgroup that invocation i runs in, or 0 if the invocation's index in its
// subgroup does not follow from i. A driver may choose the width when it compiles a workgroup of this size.
// One workgroup, no more.
override WG: u32 = 32u;

struct Params {
    n: u32, // invocations
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> widths: array<u32>; // [n]

@compute @workgroup_size(WG)
fn probe_subgroups(
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    if lane < params.n {
        widths[lane] = select(0u, width, lane == subgroup * width + subgroup_lane);
    }
}
