// Contract: the product of a kernel over few rows. `multiply(r0, o, lane)` leaves `acc[r][j]` = x̂[r0 + r]·w[o[j]] for
// the N_ROWS rows from r0 on; `o` are the 16-byte words where four rows of weights start. x̂ = x, or if NORM the RMS norm
// x / sqrt(mean(x²) + eps) · (g + offset) (Zhang & Sennrich 2019, eq. 4), whose factor is taken out of the sum.
// `quad(group, lane)` is the index of the four outputs that this lane works on; `finishes(r, lane)` is whether it writes
// row r. The order of a sum does not depend on N_ROWS. Uses the kernel's `params`, `x`, `g` and `w`.
// Here a workgroup has one quad, and its lanes stride over the inputs: the weights are read once for all rows, in
// coalesced 16-byte loads.
override WG: u32 = 64u;
override NORM: u32 = 0u;

var<private> acc: array<vec4f, N_ROWS>;

fn quad(group: u32, lane: u32) -> u32 {
    return group;
}

fn finishes(r: u32, lane: u32) -> bool {
    return lane == r % WG;
}

fn multiply(r0: u32, o: vec4u, lane: u32) {
    var squares: array<f32, N_ROWS>;
    for (var i = lane; i < params.n_blocks * (8u / W_VEC4); i += WG) {
        let s = i / (64u / W_VEC4);
        let w0 = word(o.x + i);
        let w1 = word(o.y + i);
        let w2 = word(o.z + i);
        let w3 = word(o.w + i);
        let s0 = scale(load_head(o.x, s), i);
        let s1 = scale(load_head(o.y, s), i);
        let s2 = scale(load_head(o.z, s), i);
        let s3 = scale(load_head(o.w, s), i);
        for (var k = 0u; k < W_VEC4; k++) {
            let at = W_VEC4 * i + k;
            let v0 = unpack(w0, k, s0);
            let v1 = unpack(w1, k, s1);
            let v2 = unpack(w2, k, s2);
            let v3 = unpack(w3, k, s3);
            var factor = vec4f();
            if NORM == 1u {
                factor = four_g(at) + params.offset;
            }
            for (var r = 0u; r < N_ROWS; r++) {
                var value = four_x((params.row0 + min(r0 + r, params.n_rows - 1u)) * params.x_stride + at);
                if NORM == 1u {
                    squares[r] += dot(value, value);
                    value *= factor;
                }
                acc[r] += vec4f(dot(v0, value), dot(v1, value), dot(v2, value), dot(v3, value));
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
