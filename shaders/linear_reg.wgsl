// linear_reg: y[r, o] = (y[r, o] if ADD) + (b[o] if BIAS) + Σ_i x[r, i] · w[o, i], for many rows where
// barriers and workgroup memory are dear (software devices).
// One invocation: 8 rows by 4 outputs in registers, no barrier. One workgroup: 8 such pieces side by side, which
// must be exactly one subgroup: each lane loads x for one of the rows and hands it to the others, because
// where loads are not coalesced, eight lanes that load the same address pay eight times.

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

@compute @workgroup_size(8)
fn linear_reg(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let o = (id.x * 8u + lane) * 4u;
    let r0 = id.y * 8u;
    let last = params.n_out - 1u;
    let w0 = min(o, last) * params.n_groups;
    let w1 = min(o + 1u, last) * params.n_groups;
    let w2 = min(o + 2u, last) * params.n_groups;
    let w3 = min(o + 3u, last) * params.n_groups;
    var acc: array<vec4f, 8>;
    for (var i = 0u; i < params.n_groups; i++) {
        let v0 = load_w(w0 + i);
        let v1 = load_w(w1 + i);
        let v2 = load_w(w2 + i);
        let v3 = load_w(w3 + i);
        let at = (params.row0 + min(r0 + lane, params.n_rows - 1u)) * params.x_stride + 2u * i;
        let own_a = x[at];
        let own_b = x[at + 1u];
        for (var r = 0u; r < 8u; r++) {
            let xa = subgroupShuffle(own_a, r);
            let xb = subgroupShuffle(own_b, r);
            acc[r] += vec4f(
                dot(v0.a, xa) + dot(v0.b, xb),
                dot(v1.a, xa) + dot(v1.b, xb),
                dot(v2.a, xa) + dot(v2.b, xb),
                dot(v3.a, xa) + dot(v3.b, xb),
            );
        }
    }
    for (var r = 0u; r < 8u; r++) {
        for (var j = 0u; j < 4u; j++) {
            put(r0 + r, o + j, acc[r][j]);
        }
    }
}
