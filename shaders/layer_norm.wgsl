// layer_norm: y[r, i] = (x[s, i] - mean) / sqrt(var + eps) · w[i] + b[i]        (Ba et al. 2016, eq. 4)
// where s = r, or s = index[r] if GATHER; the variance is a second pass over x − mean.
// One workgroup: one row.
override WG: u32 = 64u;
override GATHER: u32 = 0u;

struct Params {
    n_rows: u32,
    n_cols: u32,
    x_stride: u32, // vec4s per row; the padding of x, w and b is zero
    y_stride: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;        // [_, n_cols]
@group(0) @binding(2) var<storage, read> w: array<vec4f>;        // [n_cols]
@group(0) @binding(3) var<storage, read> b: array<vec4f>;        // [n_cols]
@group(0) @binding(4) var<storage, read> index: array<u32>;      // [n_rows], read if GATHER
@group(0) @binding(5) var<storage, read_write> y: array<vec4f>;  // [n_rows, n_cols]

@compute @workgroup_size(WG)
fn layer_norm(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    var s = r;
    if GATHER == 1u {
        s = index[r];
    }
    let n4 = (params.n_cols + 3u) / 4u;
    var sum = 0.0;
    for (var i = lane; i < n4; i += WG) {
        sum += dot(x[s * params.x_stride + i], vec4f(1.0));
    }
    let mean = reduce_sum(sum, lane) / f32(params.n_cols);
    var squares = 0.0;
    for (var i = lane; i < n4; i += WG) {
        let real = vec4u(4u * i) + vec4u(0u, 1u, 2u, 3u) < vec4u(params.n_cols);
        let d = select(vec4f(), x[s * params.x_stride + i] - mean, real);
        squares += dot(d, d);
    }
    let scale = inverseSqrt(reduce_sum(squares, lane) / f32(params.n_cols) + params.eps);
    for (var i = lane; i < n4; i += WG) {
        // In the padding w and b are zero, and so is y.
        y[r * params.y_stride + i] = (x[s * params.x_stride + i] - mean) * scale * w[i] + b[i];
    }
}
