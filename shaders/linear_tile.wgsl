// linear_tile: y[r, o] = (y[r, o] if ADD) + (b[o] if BIAS) + Σ_i x[r, i] · w[o, i], for many rows.
// One workgroup: a tile of 64 rows by 64 outputs, 16 inputs at a time through workgroup memory; each of the
// 256 lanes holds 4 × 4 sums in registers.

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

// 16 inputs are 4 vec4; a fifth keeps neighbouring rows in different memory banks.
const PITCH: u32 = 5u;
var<workgroup> xs: array<vec4f, 320>; // [64, PITCH]
var<workgroup> ws: array<vec4f, 320>; // [64, PITCH]

@compute @workgroup_size(256)
fn linear_tile(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let o0 = id.x * 64u;
    let r0 = id.y * 64u;
    let tx = lane % 16u;
    let ty = lane / 16u;
    var acc: array<vec4f, 4>; // rows ty + 16·i; components: outputs tx + 16·j
    let steps = (params.n_groups + 1u) / 2u;
    for (var step = 0u; step < steps; step++) {
        // Every lane fetches one vec4 of x, every second one eight weights.
        let k4 = lane % 4u;
        let xr = r0 + lane / 4u;
        var xv = vec4f();
        if xr < params.n_rows && step * 4u + k4 < params.n_groups * 2u {
            xv = x[(params.row0 + xr) * params.x_stride + step * 4u + k4];
        }
        xs[(lane / 4u) * PITCH + k4] = xv;
        if lane < 128u {
            let g = step * 2u + lane % 2u;
            let o = o0 + lane / 2u;
            var a = vec4f();
            var c = vec4f();
            if o < params.n_out && g < params.n_groups {
                let v = load_w(o * params.n_groups + g);
                a = v.a;
                c = v.b;
            }
            ws[(lane / 2u) * PITCH + (lane % 2u) * 2u] = a;
            ws[(lane / 2u) * PITCH + (lane % 2u) * 2u + 1u] = c;
        }
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            let v0 = ws[tx * PITCH + k];
            let v1 = ws[(tx + 16u) * PITCH + k];
            let v2 = ws[(tx + 32u) * PITCH + k];
            let v3 = ws[(tx + 48u) * PITCH + k];
            for (var i = 0u; i < 4u; i++) {
                let xi = xs[(ty + 16u * i) * PITCH + k];
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
