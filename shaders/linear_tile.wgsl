// linear_tile: y[r, o] = (y[r, o] if ADD) + (b[o] if BIAS) + Σ_i x[r, i] · w[o, i], for many rows.
// One workgroup: a tile of 64 rows by 64 outputs, a block of 32 inputs at a time through workgroup memory; each of
// the 256 lanes holds 4 × 4 sums in registers.

struct Params {
    row0: u32,     // first row
    n_rows: u32,   // rows in all
    n_in: u32,     // inputs
    n_blocks: u32, // blocks of 32 inputs; the padding of x and w is zero
    x_stride: u32, // vec4 a row of x
    w_stride: u32, // 16-byte words a row of w
    out0: u32,     // first output of this range of w
    n_out: u32,    // outputs in this range
    y_stride: u32, // elements a row of y
    eps: f32,      // not used: the input is normalised already
    offset: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;      // [row0 + n_rows, n_in]
@group(0) @binding(2) var<storage, read> g: array<vec4f>;      // not used
@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;  // [n_out, w_stride]
@group(0) @binding(4) var<storage, read> b: array<f32>;        // [out0 + n_out], read if BIAS
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // [row0 + n_rows, out0 + n_out]

// A row is 8 vec4, whose places are permuted by the row so that neighbouring rows lie in different memory banks: with
// a ninth vec4 the two tiles would not fit the 16 KiB that every device has.
var<workgroup> xs: array<vec4f, 512>; // [64, 8]
var<workgroup> ws: array<vec4f, 512>; // [64, 8]

fn place(row: u32, k: u32) -> u32 {
    return row * 8u + (k ^ (row & 7u));
}

@compute @workgroup_size(256)
fn linear_tile(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let o0 = id.x * 64u;
    let r0 = id.y * 64u;
    let tx = lane % 16u;
    let ty = lane / 16u;
    const GROUPS: u32 = 8u / W_VEC4; // of a row's block
    var acc: array<vec4f, 4>; // rows ty + 16·i; components: outputs tx + 16·j
    for (var b = 0u; b < params.n_blocks; b++) {
        for (var e = lane; e < 512u; e += 256u) {
            let r = e / 8u;
            var value = vec4f();
            if r0 + r < params.n_rows {
                value = x[(params.row0 + r0 + r) * params.x_stride + 8u * b + e % 8u];
            }
            xs[place(r, e % 8u)] = value;
        }
        for (var e = lane; e < 64u * GROUPS; e += 256u) {
            let o = e / GROUPS;
            let i = e % GROUPS;
            let row = min(o0 + o, params.n_out - 1u) * params.w_stride; // the last one stands in, unread
            let word = w[row + b * GROUPS + i];
            let scales = scale(load_head(row, b / 8u), b * GROUPS + i);
            for (var k = 0u; k < W_VEC4; k++) {
                ws[place(o, i * W_VEC4 + k)] = unpack(word, k, scales);
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 8u; k++) {
            let v0 = ws[place(tx, k)];
            let v1 = ws[place(tx + 16u, k)];
            let v2 = ws[place(tx + 32u, k)];
            let v3 = ws[place(tx + 48u, k)];
            for (var i = 0u; i < 4u; i++) {
                let xi = xs[place(ty + 16u * i, k)];
                acc[i] += vec4f(dot(xi, v0), dot(xi, v1), dot(xi, v2), dot(xi, v3));
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            put(r0 + ty + 16u * i, o0 + tx + 16u * j, acc[i][j]);
        }
    }
}
