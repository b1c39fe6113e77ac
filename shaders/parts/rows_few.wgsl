// Contract: the product of a kernel over few rows. `multiply(r0, o, lane)` computes x̂[r0 + r]·w[o[j]] for the N_ROWS rows
// from r0 on; `o` are the 16-byte words where four rows of weights start. x̂ = x, or if NORM the RMS norm
// x / sqrt(mean(x²) + eps) · (g + offset) (Zhang & Sennrich 2019, eq. 4), whose factor is taken out of the sum.
// `quad(group, lane)` is the index of the four outputs that this lane works on. It finishes LANE_ROWS rows of them,
// `lane_row(i, lane)` with sums `sums(r)`, if that row is below N_ROWS.
// The order of a sum does not depend on N_ROWS. Uses the kernel's `params`, `x`, `g`, `w` and `input_row`.
// Here a workgroup has one quad, and its lanes stride over the inputs: the weights are read once for all rows, in
// coalesced 16-byte loads.
override WG: u32 = 64u;
override NORM: u32 = 0u;
const LANE_ROWS: u32 = 1u; // WG is at least N_ROWS

// Inputs that a lane loads together, before it uses the first: four vec4s of one row or two, else one of each row. More
// would take registers that hold more waves. If a word has fewer, words of the weights are loaded together as well.
const TOGETHER: u32 = min(W_VEC4, max(1u, 4u / N_ROWS));
const WORDS_TOGETHER: u32 = max(1u, 4u / W_VEC4 / N_ROWS);

var<private> acc: array<vec4f, N_ROWS>;
var<private> squares: array<f32, N_ROWS>;
var<private> starts: array<u32, N_ROWS>; // of the rows of x

fn quad(group: u32, lane: u32) -> u32 {
    return group;
}

fn lane_row(i: u32, lane: u32) -> u32 {
    return lane;
}

// Selects, because an array with an index that is known only at run time is kept in memory.
fn sums(r: u32) -> vec4f {
    var own = acc[0];
    for (var i = 1u; i < N_ROWS; i++) {
        own = select(own, acc[i], r == i);
    }
    return own;
}

// Word i of each row of weights.
fn words(o: vec4u, i: u32) -> array<vec4<u32>, 4> {
    return array<vec4<u32>, 4>(load_word(o.x, i), load_word(o.y, i), load_word(o.z, i), load_word(o.w, i));
}

// Adds the products of these four words to the sums.
fn add(o: vec4u, i: u32, four: array<vec4<u32>, 4>, offset: f32) {
    let b0 = load_bits(o.x, i);
    let b1 = load_bits(o.y, i);
    let b2 = load_bits(o.z, i);
    let b3 = load_bits(o.w, i);
    let s0 = scale(load_head(o.x, i), i);
    let s1 = scale(load_head(o.y, i), i);
    let s2 = scale(load_head(o.z, i), i);
    let s3 = scale(load_head(o.w, i), i);
    for (var first = 0u; first < W_VEC4; first += TOGETHER) {
        var values: array<vec4f, TOGETHER * N_ROWS>;
        var factors: array<vec4f, TOGETHER>;
        for (var k = 0u; k < TOGETHER; k++) {
            let at = W_VEC4 * i + first + k;
            if NORM == 1u {
                factors[k] = four_g(at);
            }
            for (var r = 0u; r < N_ROWS; r++) {
                values[k * N_ROWS + r] = four_x(starts[r] + at);
            }
        }
        for (var k = 0u; k < TOGETHER; k++) {
            let v0 = unpack(four[0], b0, first + k, s0);
            let v1 = unpack(four[1], b1, first + k, s1);
            let v2 = unpack(four[2], b2, first + k, s2);
            let v3 = unpack(four[3], b3, first + k, s3);
            for (var r = 0u; r < N_ROWS; r++) {
                var value = values[k * N_ROWS + r];
                if NORM == 1u {
                    squares[r] += dot(value, value);
                    value *= factors[k] + offset;
                }
                acc[r] += vec4f(dot(v0, value), dot(v1, value), dot(v2, value), dot(v3, value));
            }
        }
    }
}

fn multiply(r0: u32, o: vec4u, lane: u32) {
    for (var r = 0u; r < N_ROWS; r++) {
        starts[r] = input_row(r0 + r) * params.x_stride;
    }
    let n_words = params.n_blocks * (8u / W_VEC4);
    let offset = params.offset;
    var i = lane;
    for (; i + (WORDS_TOGETHER - 1u) * WG < n_words; i += WORDS_TOGETHER * WG) {
        var all: array<array<vec4<u32>, 4>, WORDS_TOGETHER>;
        for (var a = 0u; a < WORDS_TOGETHER; a++) {
            all[a] = words(o, i + a * WG);
        }
        for (var a = 0u; a < WORDS_TOGETHER; a++) {
            add(o, i + a * WG, all[a], offset);
        }
    }
    if WORDS_TOGETHER > 1u {
        for (; i < n_words; i += WG) {
            add(o, i, words(o, i), offset);
        }
    }
    for (var r = 0u; r < N_ROWS; r++) {
        acc[r] = reduce_sum4(acc[r], lane);
        if NORM == 1u {
            acc[r] *= inverseSqrt(reduce_sum(squares[r], lane) / f32(params.n_in) + params.eps);
        }
    }
}
