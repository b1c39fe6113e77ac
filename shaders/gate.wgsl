// gate: y[r, i] = glu(x[r, i], x[r, n_cols + i]) if GATED (Shazeer 2020), else act(x[r, i]).
// One invocation: one element.
override WG: u32 = 64u;
override ACT: u32 = 0u;
override GATED: u32 = 1u;

struct Params {
    row0: u32,     // first row
    n_rows: u32,   // rows in total
    n_cols: u32,   // columns of y
    x_stride: u32, // elements per row
    y_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // [n_rows, n_cols], [n_rows, 2·n_cols] if GATED
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // [n_rows, n_cols]

@compute @workgroup_size(WG)
fn gate(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let item = id.x + id.y * n.x * WG;
    if item >= params.n_rows * params.n_cols {
        return;
    }
    let r = params.row0 + item / params.n_cols;
    let i = item % params.n_cols;
    let own = x[r * params.x_stride + i];
    if GATED == 1u {
        y[r * params.y_stride + i] = glu(own, x[r * params.x_stride + params.n_cols + i]);
    } else {
        y[r * params.y_stride + i] = act(own);
    }
}
