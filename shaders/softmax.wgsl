// softmax: y[r, i] = e^z_i / Σ_j e^z_j, or its logarithm if LOG, with z = scale[r] · x[r, :]; elements of x below
// floor[r] count as minus infinity (the filter that sampling applied).
// One workgroup: one row.
override WG: u32 = 64u;
override LOG: u32 = 0u;
override FILTER: u32 = 0u;

struct Params {
    n_rows: u32,
    n_cols: u32,
    x_stride: u32, // elements per row
    y_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // [n_rows, n_cols]
@group(0) @binding(2) var<storage, read> filters: array<vec2f>; // [n_rows] (scale, floor), read if FILTER
@group(0) @binding(3) var<storage, read_write> y: array<f32>;  // [n_rows, n_cols]

const LOWEST: f32 = -3.4028234e38;

@compute @workgroup_size(WG)
fn softmax(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    var keep = vec2f(1.0, LOWEST);
    if FILTER == 1u {
        keep = filters[r];
    }
    let from_x = r * params.x_stride;
    var top = LOWEST;
    for (var i = lane; i < params.n_cols; i += WG) {
        top = max(top, x[from_x + i]);
    }
    top = reduce_best(top, lane, lane).value;
    var sum = 0.0;
    for (var i = lane; i < params.n_cols; i += WG) {
        let value = x[from_x + i];
        sum += select(0.0, exp((value - top) * keep.x), value >= keep.y);
    }
    sum = reduce_sum(sum, lane);
    for (var i = lane; i < params.n_cols; i += WG) {
        let value = x[from_x + i];
        let kept = value >= keep.y;
        let z = (value - top) * keep.x;
        if LOG == 1u {
            y[r * params.y_stride + i] = select(LOWEST, z - log(sum), kept);
        } else {
            y[r * params.y_stride + i] = select(0.0, exp(z) / sum, kept);
        }
    }
}
