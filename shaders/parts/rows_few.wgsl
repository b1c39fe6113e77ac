// Contract: the product of a kernel over few rows. `multiply(r0, o, lane)` computes x̂[r0 + r]·w[o[j]] for the N_ROWS rows
// from r0 on; `o` are the 16-byte words where four rows of weights start. x̂ = x, or if NORM the RMS norm
// x / sqrt(mean(x²) + eps) · (g + offset) (Zhang & Sennrich 2019, eq. 4), whose factor is taken out of the sum.
// `quad(group, lane)` is the index of the four outputs that this lane works on. It finishes LANE_ROWS rows of them,
// `lane_row(i, lane)` with sums `sums(r)`, if that row is below N_ROWS.
// The order of a sum does not depend on N_ROWS. Uses the kernel's `params`, `x`, `g` and `w`.
// Here a workgroup has one quad, and its lanes stride over the inputs: the weights are read once for all rows, in
// coalesced 16-byte loads.
override WG: u32 = 64u;
override NORM: u32 = 0u;
const LANE_ROWS: u32 = 1u; // WG is at least N_ROWS

// vec4s of a word whose inputs are loaded together, before the first is used: four loads are in flight, or one for each
// row. More would take registers that hold more waves.
const TOGETHER: u32 = min(W_VEC4, max(1u, 4u / N_ROWS));

var<private> acc: array<vec4f, N_ROWS>;

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

fn multiply(r0: u32, o: vec4u, lane: u32) {
    var squares: array<f32, N_ROWS>;
    var starts: array<u32, N_ROWS>;
    for (var r = 0u; r < N_ROWS; r++) {
        starts[r] = (params.row0 + min(r0 + r, params.n_rows - 1u)) * params.x_stride;
    }
    let n_words = params.n_blocks * (8u / W_VEC4);
    let offset = params.offset;
    for (var i = lane; i < n_words; i += WG) {
        let s = i / (64u / W_VEC4);
        let w0 = w[o.x + i];
        let w1 = w[o.y + i];
        let w2 = w[o.z + i];
        let w3 = w[o.w + i];
        let s0 = scale(load_head(o.x, s), i);
        let s1 = scale(load_head(o.y, s), i);
        let s2 = scale(load_head(o.z, s), i);
        let s3 = scale(load_head(o.w, s), i);
        for (var first = 0u; first < W_VEC4; first += TOGETHER) {
            var values: array<vec4f, TOGETHER * N_ROWS>;
            var factors: array<vec4f, TOGETHER>;
            for (var k = 0u; k < TOGETHER; k++) {
                let at = W_VEC4 * i + first + k;
                if NORM == 1u {
                    factors[k] = g[at];
                }
                for (var r = 0u; r < N_ROWS; r++) {
                    values[k * N_ROWS + r] = x[starts[r] + at];
                }
            }
            for (var k = 0u; k < TOGETHER; k++) {
                let v0 = unpack(w0, first + k, s0);
                let v1 = unpack(w1, first + k, s1);
                let v2 = unpack(w2, first + k, s2);
                let v3 = unpack(w3, first + k, s3);
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
    for (var r = 0u; r < N_ROWS; r++) {
        acc[r] = reduce_sum4(acc[r], lane);
        if NORM == 1u {
            acc[r] *= inverseSqrt(reduce_sum(squares[r], lane) / f32(params.n_in) + params.eps);
        }
    }
}
