// probe_coop: widths as in probe_subgroups, in a kernel on cooperative matrices: a driver may choose another width there.
// Each subgroup multiplies as well, so that no compiler removes the matrices:
// y[s, i, j] = Σ_k a[i, k] · b[k, j] with a[i, k] = i + 1 and b[k, j] = j + 2, so TILE · (i + 1) · (j + 2).
// One workgroup, no more.
override WG: u32 = 32u;

struct Params {
    n: u32, // invocations
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> widths: array<u32>; // [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;      // [subgroups, TILE, TILE]

var<workgroup> a: array<f16, TILE * TILE>;
var<workgroup> b: array<f16, TILE * TILE>;

@compute @workgroup_size(WG)
fn probe_coop(
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) width: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    for (var e = lane; e < TILE * TILE; e += WG) {
        a[e] = f16(e / TILE + 1u);
        b[e] = f16(e % TILE + 2u);
    }
    workgroupBarrier();
    var sums: TileC;
    // Both are stored by rows.
    sums = coopMultiplyAdd(coopLoadT<TileA>(&a[0], TILE), coopLoadT<TileB>(&b[0], TILE), sums);
    let own = subgroup * TILE * TILE;
    coopStoreT(sums, &y[own], TILE);
    if lane < params.n {
        widths[lane] = select(0u, width, lane == subgroup * width + subgroup_lane);
    }
}
