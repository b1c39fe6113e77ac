// linear_few: y[r, o] = (y[r, o] if ADD) + (b[o] if BIAS) + Σ_i x[r, i] · w[o, i], for few rows.
// One workgroup: 4 outputs of N_ROWS rows; lanes stride over i, so that the weights, which are read once
// for all N_ROWS rows, stream by in 16-byte loads. The order of the sum does not depend on N_ROWS.
override WG: u32 = 64u;
override N_ROWS: u32 = 1u; // 1 … 8

struct Params {
    row0: u32,     // first row
    n_rows: u32,   // rows in all
    n_groups: u32, // groups of 8 inputs; the padding of x and w is zero
    x_stride: u32, // vec4 a row of x
    out0: u32,     // first output of this range of w
    n_out: u32,    // outputs in this range
    y_stride: u32, // elements a row of y
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;      // [row0 + n_rows, 8·n_groups]
@group(0) @binding(2) var<storage, read> w: array<vec4<u32>>;  // [n_out, 8·n_groups] packed
@group(0) @binding(3) var<storage, read> b: array<f32>;        // [out0 + n_out], read if BIAS
@group(0) @binding(4) var<storage, read_write> y: array<f32>;  // [row0 + n_rows, out0 + n_out]

@compute @workgroup_size(WG)
fn linear_few(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let o = (id.x + id.y * n.x) * 4u;
    if o >= params.n_out {
        return;
    }
    let last = params.n_out - 1u;
    let w0 = min(o, last) * params.n_groups;
    let w1 = min(o + 1u, last) * params.n_groups;
    let w2 = min(o + 2u, last) * params.n_groups;
    let w3 = min(o + 3u, last) * params.n_groups;
    let r0 = id.z * N_ROWS;
    var acc: array<vec4f, 8>;
    for (var i = lane; i < params.n_groups; i += WG) {
        let v0 = load_w(w0 + i);
        let v1 = load_w(w1 + i);
        let v2 = load_w(w2 + i);
        let v3 = load_w(w3 + i);
        for (var r = 0u; r < N_ROWS; r++) {
            let at = (params.row0 + min(r0 + r, params.n_rows - 1u)) * params.x_stride + 2u * i;
            let xa = x[at];
            let xb = x[at + 1u];
            acc[r] += vec4f(
                dot(v0.a, xa) + dot(v0.b, xb),
                dot(v1.a, xa) + dot(v1.b, xb),
                dot(v2.a, xa) + dot(v2.b, xb),
                dot(v3.a, xa) + dot(v3.b, xb),
            );
        }
    }
    for (var r = 0u; r < N_ROWS; r++) {
        let sum = reduce_sum4(acc[r], lane);
        if lane < 4u {
            put(r0 + r, o + lane, sum[lane]);
        }
    }
}
