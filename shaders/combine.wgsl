// combine: x[r, i] += Σ_s weights[r, s] · y[r·k + s, i], the slots in their order.
// One invocation: one element.
struct Params {
    n_rows: u32,
    n_cols: u32,
    k: u32,        // slots
    x_stride: u32, // elements per row
    w_stride: u32,
    y_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;  // [n_rows, k]
@group(0) @binding(2) var<storage, read> y: array<f32>;        // [n_rows·k, n_cols]
@group(0) @binding(3) var<storage, read_write> x: array<f32>;  // [n_rows, n_cols]

const WG: u32 = 64u;

@compute @workgroup_size(WG)
fn combine(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let item = id.x + id.y * n.x * WG;
    if item >= params.n_rows * params.n_cols {
        return;
    }
    let r = item / params.n_cols;
    let i = item % params.n_cols;
    var sum = 0.0;
    for (var s = 0u; s < params.k; s++) {
        sum += weights[r * params.w_stride + s] * y[(r * params.k + s) * params.y_stride + i];
    }
    x[r * params.x_stride + i] += sum;
}
