// linear_coop: y[r, o] = (y[r, o] if ADD) + (b[o] if BIAS) + Σ_i x[r, i] · w[o, i], for many rows, on cooperative
// matrices. Inputs and weights are rounded to f16; sums are f32.
// One workgroup: a tile of ROWS rows by OUTS outputs, 32 inputs at a time through workgroup memory. Each of its
// SG_ROWS × SG_OUTS subgroups holds the sums of 2 × 4 cooperative matrices. They are written out one by one: a compiler
// that does not unroll a loop over them would keep them in memory.
// The order of a sum depends only on TILE: every workgroup shape gives the same bits.
override SG: u32 = 32u;     // lanes of a subgroup
override SG_ROWS: u32 = 4u; // subgroups down the rows
override SG_OUTS: u32 = 2u; // subgroups along the outputs
// Derived sizes are overrides of their own: naga 30 does not accept an expression as the size of an array if a part's
// override follows it.
override LANES: u32 = SG * SG_ROWS * SG_OUTS;
override ROWS: u32 = 2u * TILE * SG_ROWS;
override OUTS: u32 = 4u * TILE * SG_OUTS;
override XS: u32 = ROWS * PITCH;
override WS: u32 = OUTS * PITCH;
override SUMS: u32 = SG_ROWS * SG_OUTS * TILE * TILE;
override XS_A_LANE: u32 = ROWS * 8u / LANES; // vec4s of x that a lane loads per step; divides exactly
override SHARING: u32 = max(1u, LANES / (OUTS * WORDS)); // lanes that unpack one word, so that all have work; at most 4
override WS_A_LANE: u32 = OUTS * WORDS * SHARING / LANES; // words of w that a lane loads per step; divides exactly
override WS_VEC4: u32 = W_VEC4 / SHARING; // vec4s of a word that a lane unpacks

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

const WORDS: u32 = 8u / W_VEC4; // words of a row of w per step
// 32 inputs are 8 vec4s; two more put the rows of a tile in different memory banks.
const PITCH: u32 = 10u;
// Most vec4s, words or sums that a lane has a share of, in the smallest subgroups (8 lanes of 8 × 8 matrices).
const MOST: u32 = 16u;
var<workgroup> xs: array<vec4<f16>, XS>;
var<workgroup> ws: array<vec4<f16>, WS>;
var<workgroup> sums: array<f32, SUMS>; // one tile per subgroup, on its way to y

// Clamped to the largest f16, so that nothing finite becomes infinite. What is no number stays so.
fn half4(v: vec4f) -> vec4<f16> {
    let is_odd = (bitcast<vec4u>(v) & vec4u(0x7f800000u)) == vec4u(0x7f800000u);
    return vec4<f16>(select(clamp(v, vec4f(-65504.0), vec4f(65504.0)), v, is_odd));
}

// Rotates a word left by `by` components.
fn rotated(packed: vec4<u32>, by: u32) -> vec4<u32> {
    let half = select(packed, packed.zwxy, (by & 2u) != 0u);
    return select(half, half.yzwx, (by & 1u) != 0u);
}

fn finish(tile: TileC, r: u32, o: u32, subgroup: u32, lane: u32) {
    let own = subgroup * TILE * TILE;
    coopStoreT(tile, &sums[own], TILE);
    workgroupBarrier();
    var values: array<f32, MOST>;
    for (var i = 0u; i < TILE * TILE / SG; i++) {
        let e = lane + i * SG;
        values[i] = finished(r + e / TILE, o + e % TILE, sums[own + e]);
    }
    for (var i = 0u; i < TILE * TILE / SG; i++) {
        let e = lane + i * SG;
        put(r + e / TILE, o + e % TILE, values[i]);
    }
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn linear_coop(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let o0 = id.x * OUTS;
    // What `take` finds, in expressions that naga sees to be the same for all lanes: matrices need that.
    if ROUTED > 0u {
        if routes[3u * id.y] - params.expert0 >= params.n_experts {
            return;
        }
        if routes[3u * id.y + 2u] == 0u {
            return;
        }
    }
    let r0 = take(id.y, ROWS).r0;
    // This subgroup's part of the tile.
    let row = subgroup / SG_OUTS * 2u * TILE;
    let out = subgroup % SG_OUTS * 4u * TILE;
    let n_steps = params.n_blocks;
    // The trip counts of the loops over a lane's share are constant, so that compilers unroll them and issue all loads
    // at once. Beyond the last row and output, the last ones repeat; `put` skips their results.
    var x_starts: array<u32, MOST>;
    var x_next: array<vec4f, MOST>;
    for (var i = 0u; i < XS_A_LANE; i++) {
        let e = lane + i * LANES;
        x_starts[i] = input_row(r0 + e / 8u) * params.x_stride + e % 8u;
        x_next[i] = x[x_starts[i]];
    }
    var w_starts: array<u32, MOST>;
    var w_next: array<vec4<u32>, MOST>;
    var bits_next: array<vec3<u32>, MOST>;
    var head_next: array<Head, MOST>;
    for (var i = 0u; i < WS_A_LANE; i++) {
        let e = (lane + i * LANES) / SHARING;
        w_starts[i] = weight_row(o0 + e / WORDS) * params.w_stride;
        w_next[i] = load_word(w_starts[i], e % WORDS);
        bits_next[i] = load_bits(w_starts[i], e % WORDS);
        head_next[i] = load_head(w_starts[i], e % WORDS);
    }
    var acc: array<TileC, 8>; // [2, 4]
    for (var step = 0u; step < n_steps; step++) {
        for (var i = 0u; i < XS_A_LANE; i++) {
            let e = lane + i * LANES;
            xs[e / 8u * PITCH + e % 8u] = half4(x_next[i]);
        }
        for (var i = 0u; i < WS_A_LANE; i++) {
            let e = (lane + i * LANES) / SHARING;
            let part = lane % SHARING;
            // The first vec4 that this lane unpacks is the first of its word.
            let packed = rotated(w_next[i], part * (4u / SHARING));
            let bits = bits_next[i] >> vec3u(part * WS_VEC4);
            let halves = scale(head_next[i], step * WORDS + e % WORDS);
            let scales = select(halves, halves.zwxy, 2u * part >= SHARING);
            for (var k = 0u; k < WS_VEC4; k++) {
                let v = unpack(packed, bits, k, scales);
                let at = e / WORDS * PITCH + e % WORDS * W_VEC4 + part * WS_VEC4 + k;
                if FITS_F16 {
                    ws[at] = vec4<f16>(v);
                } else {
                    ws[at] = half4(v);
                }
            }
        }
        // The next step is on its way while this one is multiplied; the last one is loaded twice.
        let next = min(step + 1u, n_steps - 1u);
        for (var i = 0u; i < XS_A_LANE; i++) {
            x_next[i] = x[x_starts[i] + next * 8u];
        }
        for (var i = 0u; i < WS_A_LANE; i++) {
            let e = (lane + i * LANES) / SHARING;
            let at = next * WORDS + e % WORDS;
            w_next[i] = load_word(w_starts[i], at);
            bits_next[i] = load_bits(w_starts[i], at);
            head_next[i] = load_head(w_starts[i], at);
        }
        workgroupBarrier();
        for (var k = 0u; k < 8u; k += TILE / 4u) {
            let xa = row * PITCH + k;
            let wa = out * PITCH + k;
            // x and w are stored by rows; the product takes the transpose of w.
            let x0 = coopLoadT<TileA>(&xs[xa], PITCH);
            let x1 = coopLoadT<TileA>(&xs[xa + TILE * PITCH], PITCH);
            let w0 = coopLoad<TileB>(&ws[wa], PITCH);
            let w1 = coopLoad<TileB>(&ws[wa + TILE * PITCH], PITCH);
            let w2 = coopLoad<TileB>(&ws[wa + 2u * TILE * PITCH], PITCH);
            let w3 = coopLoad<TileB>(&ws[wa + 3u * TILE * PITCH], PITCH);
            acc[0] = coopMultiplyAdd(x0, w0, acc[0]);
            acc[1] = coopMultiplyAdd(x0, w1, acc[1]);
            acc[2] = coopMultiplyAdd(x0, w2, acc[2]);
            acc[3] = coopMultiplyAdd(x0, w3, acc[3]);
            acc[4] = coopMultiplyAdd(x1, w0, acc[4]);
            acc[5] = coopMultiplyAdd(x1, w1, acc[5]);
            acc[6] = coopMultiplyAdd(x1, w2, acc[6]);
            acc[7] = coopMultiplyAdd(x1, w3, acc[7]);
        }
        workgroupBarrier();
    }
    let r = r0 + row;
    let o = o0 + out;
    finish(acc[0], r, o, subgroup, subgroup_lane);
    finish(acc[1], r, o + TILE, subgroup, subgroup_lane);
    finish(acc[2], r, o + 2u * TILE, subgroup, subgroup_lane);
    finish(acc[3], r, o + 3u * TILE, subgroup, subgroup_lane);
    finish(acc[4], r + TILE, o, subgroup, subgroup_lane);
    finish(acc[5], r + TILE, o + TILE, subgroup, subgroup_lane);
    finish(acc[6], r + TILE, o + 2u * TILE, subgroup, subgroup_lane);
    finish(acc[7], r + TILE, o + 3u * TILE, subgroup, subgroup_lane);
}
