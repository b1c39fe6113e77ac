// linear_tile: y[r, o] = (y[r, o] if ADD) + (b[o] if BIAS) + Σ_i x[r, i] · w[o, i], for many rows.
// One workgroup: a tile of 64 rows by 64 outputs, 32 inputs at a time through workgroup memory; each of the
// 128 lanes holds 8 × 4 sums in registers.

struct Params {
    row0: u32,     // first row
    n_rows: u32,   // rows in total
    n_in: u32,     // inputs
    n_blocks: u32, // blocks of 32 inputs; the padding of x and w is zero
    x_stride: u32, // vec4s per row of x
    w_stride: u32, // 16-byte words per row of w
    out0: u32,     // first output of this range of w
    n_out: u32,    // outputs in this range
    y_stride: u32, // elements per row of y
    eps: f32,      // not used, like offset and g: the input is already normalised
    offset: f32,
    n_slots: u32,  // if ROUTED: pairs per row of x
    expert0: u32,  // first expert of this range of w, of whose rows n_out are an expert's
    n_experts: u32, // experts in this range
    b_stride: u32, // elements of b per expert
    w0: u32,       // first row of w, unless ROUTED
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;      // [row0 + n_rows, n_in]
@group(0) @binding(2) var<storage, read> g: array<vec4f>;      // not used
@group(0) @binding(3) var<storage, read> w: array<Word>;       // [w0 + n_out, w_stride]
@group(0) @binding(4) var<storage, read> b: array<f32>;        // [out0 + n_out], read if BIAS
@group(0) @binding(5) var<storage, read> routes: array<u32>;   // read if ROUTED
@group(0) @binding(6) var<storage, read_write> y: array<f32>;  // [row0 + n_rows, out0 + n_out]

const WORDS: u32 = 8u / W_VEC4;              // words of a row of w per block
const SHARING: u32 = max(1u, 2u / WORDS);    // lanes that unpack one word, so that all have work
const XS_A_LANE: u32 = 4u;                   // vec4s of x that a lane loads per block
const WS_A_LANE: u32 = WORDS * SHARING / 2u; // words of w that a lane loads per block

// [64, 8] vec4s, 32 inputs per row, at the indices that `place` gives. Both together are 16 KiB, the default limit.
var<workgroup> xs: array<vec4f, 512>;
var<workgroup> ws: array<vec4f, 512>;

// Puts a column of neighbouring rows in different memory banks; padding would exceed 16 KiB.
fn place(row: u32, column: u32) -> u32 {
    return row * 8u + (column ^ (row % 8u));
}

@compute @workgroup_size(128)
fn linear_tile(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let o0 = id.x * 64u;
    let taken = take(id.y, 64u);
    if taken.n_rows == 0u {
        return;
    }
    let r0 = taken.r0;
    let tx = lane % 16u;
    let ty = lane / 16u;
    let n_blocks = params.n_blocks;
    // The trip counts of the loops over a lane's share are constant, so that compilers unroll them and issue all loads
    // at once. Beyond the last row and output, the last ones repeat; `put` skips their results.
    var x_starts: array<u32, XS_A_LANE>;
    var x_next: array<vec4f, XS_A_LANE>;
    for (var i = 0u; i < XS_A_LANE; i++) {
        let e = lane + i * 128u;
        x_starts[i] = input_row(r0 + e / 8u) * params.x_stride + e % 8u;
        x_next[i] = x[x_starts[i]];
    }
    var w_starts: array<u32, WS_A_LANE>;
    var w_next: array<vec4<u32>, WS_A_LANE>;
    var bits_next: array<vec3<u32>, WS_A_LANE>;
    var head_next: array<Head, WS_A_LANE>;
    for (var i = 0u; i < WS_A_LANE; i++) {
        let e = (lane + i * 128u) / SHARING;
        w_starts[i] = weight_row(o0 + e / WORDS) * params.w_stride;
        w_next[i] = load_word(w_starts[i], e % WORDS);
        bits_next[i] = load_bits(w_starts[i], e % WORDS);
        head_next[i] = load_head(w_starts[i], e % WORDS);
    }
    var acc: array<vec4f, 8>; // rows ty + 8·i; components: outputs tx + 16·j
    for (var b = 0u; b < n_blocks; b++) {
        for (var i = 0u; i < XS_A_LANE; i++) {
            let e = lane + i * 128u;
            xs[place(e / 8u, e % 8u)] = x_next[i];
        }
        for (var i = 0u; i < WS_A_LANE; i++) {
            let e = (lane + i * 128u) / SHARING;
            let first = lane % SHARING * (W_VEC4 / SHARING);
            // The first vec4 that this lane unpacks is the first of its word.
            let packed = select(w_next[i], w_next[i].zwxy, first > 0u);
            let bits = bits_next[i] >> vec3u(first);
            let halves = scale(head_next[i], b * WORDS + e % WORDS);
            let scales = select(halves, halves.zwxy, first > 0u);
            for (var k = 0u; k < W_VEC4 / SHARING; k++) {
                ws[place(e / WORDS, e % WORDS * W_VEC4 + first + k)] = unpack(packed, bits, k, scales);
            }
        }
        // The next block is on its way while this one is multiplied; the last one is loaded twice.
        let next = min(b + 1u, n_blocks - 1u);
        for (var i = 0u; i < XS_A_LANE; i++) {
            x_next[i] = x[x_starts[i] + next * 8u];
        }
        for (var i = 0u; i < WS_A_LANE; i++) {
            let e = (lane + i * 128u) / SHARING;
            let at = next * WORDS + e % WORDS;
            w_next[i] = load_word(w_starts[i], at);
            bits_next[i] = load_bits(w_starts[i], at);
            head_next[i] = load_head(w_starts[i], at);
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
                // In this order, each addition fuses with its product.
                let u = xs[place(ty + 8u * i, k)];
                acc[i] = acc[i] + v[0] * u.x + v[1] * u.y + v[2] * u.z + v[3] * u.w;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 8u; i++) {
        for (var j = 0u; j < 4u; j++) {
            acc[i][j] = finished(r0 + ty + 8u * i, o0 + tx + 16u * j, acc[i][j]);
        }
    }
    for (var i = 0u; i < 8u; i++) {
        for (var j = 0u; j < 4u; j++) {
            put(r0 + ty + 8u * i, o0 + tx + 16u * j, acc[i][j]);
        }
    }
}
