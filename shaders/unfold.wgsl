// unfold: im2col, y[t, 3c + k] = x[first + stride·t + k − 1, c], or zero if that row is outside the n_in rows of x.
// A convolution of width 3 over rows, padded by one, is the product of y with its weights [n_out, n_channels, 3] as a
// matrix [n_out, 3·n_channels].
// One invocation: one element of y.
override WG: u32 = 64u;

struct Params {
    first: u32,      // row of x that counts as row 0
    n_in: u32,
    n_rows: u32,     // rows of y
    n_channels: u32,
    stride: u32,
    x_stride: u32,   // elements per row
    y_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // [_, n_channels]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // [n_rows, 3 · n_channels]

@compute @workgroup_size(WG)
fn unfold(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let item = id.x + id.y * n.x * WG;
    let n_cols = 3u * params.n_channels;
    if item >= params.n_rows * n_cols {
        return;
    }
    let t = item / n_cols;
    let c = item % n_cols;
    let row = params.stride * t + c % 3u; // the row plus one, so that it is not negative
    var value = 0.0;
    if row >= 1u && row <= params.n_in {
        value = x[(params.first + row - 1u) * params.x_stride + c / 3u];
    }
    y[t * params.y_stride + c] = value;
}
