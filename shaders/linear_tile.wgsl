// linear_tile: y[r, o] = (y[r, o] if ADD) + (b[o] if BIAS) + Σ_i x[r, i] · w[o, i], for many rows.
// One workgroup: a tile of 64 rows by 64 outputs, 32 inputs at a time through workgroup memory; each of the
// 128 lanes holds 8 × 4 sums in registers.

struct Params {
    row0: u32,     // first row
    n_rows: u32,   // rows in all
    n_groups: u32, // groups of 8 inputs, a multiple of 4; the padding of x and w is zero
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

// [64, 8], 32 inputs a row, each vec4 at the place that `place` gives: as large as 16 KiB allow.
var<workgroup> xs: array<vec4f, 512>;
var<workgroup> ws: array<vec4f, 512>;

// Neighbouring rows have a column in different memory banks, without padding.
fn place(row: u32, column: u32) -> u32 {
    return row * 8u + (column ^ (row % 8u));
}

@compute @workgroup_size(128)
fn linear_tile(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let o0 = id.x * 64u;
    let r0 = id.y * 64u;
    let tx = lane % 16u;
    let ty = lane / 16u;
    var acc: array<vec4f, 8>; // rows ty + 8·i; components: outputs tx + 16·j
    let steps = params.n_groups / 4u;
    for (var step = 0u; step < steps; step++) {
        // Beyond the last row and output those repeat; put leaves out what comes of them.
        // These loops count what compilers can count, so that they unroll them and all loads are on their way at once.
        for (var i = 0u; i < 4u; i++) {
            let e = lane + i * 128u;
            let r = params.row0 + min(r0 + e / 8u, params.n_rows - 1u);
            xs[place(e / 8u, e % 8u)] = x[r * params.x_stride + step * 8u + e % 8u];
        }
        for (var i = 0u; i < 2u; i++) {
            let e = lane + i * 128u;
            let o = min(o0 + e / 4u, params.n_out - 1u);
            let v = load_w(o * params.n_groups + step * 4u + e % 4u);
            ws[place(e / 4u, e % 4u * 2u)] = v.a;
            ws[place(e / 4u, e % 4u * 2u + 1u)] = v.b;
        }
        workgroupBarrier();
        for (var k = 0u; k < 8u; k++) {
            let v = transpose(mat4x4f(
                ws[place(tx, k)],
                ws[place(tx + 16u, k)],
                ws[place(tx + 32u, k)],
                ws[place(tx + 48u, k)],
            ));
            for (var i = 0u; i < 8u; i++) {
                // In this order each step is one fused multiply-add.
                let u = xs[place(ty + 8u * i, k)];
                acc[i] = acc[i] + v[0] * u.x + v[1] * u.y + v[2] * u.z + v[3] * u.w;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 8u; i++) {
        for (var j = 0u; j < 4u; j++) {
            put(r0 + ty + 8u * i, o0 + tx + 16u * j, acc[i][j]);
        }
    }
}
