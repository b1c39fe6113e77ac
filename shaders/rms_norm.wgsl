// rms_norm: y[r, i] = x[s, i] / sqrt(mean_i(x[s, i]²) + eps) · w[i]        (Zhang & Sennrich 2019, eq. 4)
// where s = r, or s = index[r] if GATHER. If ADD, added to y[r, i].
// One workgroup: one row, from row0 on.
override WG: u32 = 64u;
override GATHER: u32 = 0u;
override ADD: u32 = 0u;

struct Params {
    row0: u32,
    n_rows: u32,
    n_cols: u32,
    x_stride: u32, // vec4s per row; the padding of x and w is zero
    y_stride: u32,
    eps: f32,
    offset: f32,   // added to w: some models store the weight minus one
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;        // [_, n_cols]
@group(0) @binding(2) var<storage, read> w: array<vec4f>;        // [n_cols]
@group(0) @binding(3) var<storage, read> index: array<u32>;      // [row0 + n_rows], read if GATHER
@group(0) @binding(4) var<storage, read_write> y: array<vec4f>;  // [row0 + n_rows, n_cols]

@compute @workgroup_size(WG)
fn rms_norm(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let group = id.x + id.y * n.x;
    if group >= params.n_rows {
        return;
    }
    let r = params.row0 + group;
    var s = r;
    if GATHER == 1u {
        s = index[r];
    }
    let n4 = (params.n_cols + 3u) / 4u;
    var sum = 0.0;
    for (var i = lane; i < n4; i += WG) {
        let v = x[s * params.x_stride + i];
        sum += dot(v, v);
    }
    let scale = inverseSqrt(reduce_sum(sum, lane) / f32(params.n_cols) + params.eps);
    for (var i = lane; i < n4; i += WG) {
        // The offset does not reach the padding: x is zero there.
        var value = x[s * params.x_stride + i] * scale * (w[i] + params.offset);
        if ADD == 1u {
            value += y[r * params.y_stride + i];
        }
        y[r * params.y_stride + i] = value;
    }
}
