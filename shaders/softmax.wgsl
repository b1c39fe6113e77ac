// softmax: y[r, i] = e^z_i / Σ_j e^z_j, or its logarithm if LOG, with z = scale[r] · x[r, :]; elements of x below
// floor[r] count as minus infinity (the filter that sampling applied).
// One workgroup: one row.
override WG: u32 = 64u;
override LOG: u32 = 0u;
override FILTER: u32 = 0u;

struct Params {
    n_rows: u32,
    n_cols: u32,
    x_stride: u32, // vec4s per row
    y_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;        // [n_rows, n_cols]
@group(0) @binding(2) var<storage, read> filters: array<vec2f>;  // [n_rows] (scale, floor), read if FILTER
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;  // [n_rows, n_cols]

var<private> row: u32; // first vec4 of the row

fn load(i: u32) -> vec4f {
    return x[row + i];
}

@compute @workgroup_size(WG)
fn softmax(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    var keep = vec2f(1.0, LOWEST);
    if FILTER == 1u {
        keep = filters[r];
    }
    row = r * params.x_stride;
    let sum = reduce_exp(params.n_cols, keep, lane);
    let n4 = (params.n_cols + 3u) / 4u;
    for (var i = lane; i < n4; i += WG) {
        let value = x[row + i];
        let kept = value >= vec4f(keep.y);
        let z = (value - sum.top) * keep.x;
        var result = select(vec4f(), exp(z) / sum.sum, kept);
        if LOG == 1u {
            result = select(vec4f(LOWEST), z - log(sum.sum), kept);
        }
        // The padding stays zero.
        let is_real = vec4u(4u * i) + vec4u(0u, 1u, 2u, 3u) < vec4u(params.n_cols);
        y[r * params.y_stride + i] = select(vec4f(), result, is_real);
    }
}
