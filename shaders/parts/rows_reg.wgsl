// Contract: as in `rows_few`.
// For devices where barriers and workgroup memory are expensive and loads are not coalesced (software devices). A lane
// has its own quad, with the sums in registers. The workgroup is exactly one subgroup of eight lanes: each loads one
// eighth of a block of x and shuffles it to the others, because eight loads of the same address cost eight times as much.
override WG: u32 = 8u;
override NORM: u32 = 0u;
const LANE_ROWS: u32 = N_ROWS;

var<private> acc: array<vec4f, N_ROWS>;

fn quad(group: u32, lane: u32) -> u32 {
    return group * 8u + lane;
}

fn lane_row(i: u32, lane: u32) -> u32 {
    return i;
}

fn sums(r: u32) -> vec4f {
    return acc[r];
}

fn multiply(r0: u32, o: vec4u, lane: u32) {
    var squares: array<f32, N_ROWS>;
    for (var s = 0u; s < params.n_blocks; s += HEAD_BLOCKS) {
        let h0 = load_head(o.x, s * (8u / W_VEC4));
        let h1 = load_head(o.y, s * (8u / W_VEC4));
        let h2 = load_head(o.z, s * (8u / W_VEC4));
        let h3 = load_head(o.w, s * (8u / W_VEC4));
        for (var b = s; b < min(s + HEAD_BLOCKS, params.n_blocks); b++) {
            var own: array<vec4f, N_ROWS>;
            for (var r = 0u; r < N_ROWS; r++) {
                own[r] = four_x(input_row(r0 + r) * params.x_stride + 8u * b + lane);
            }
            if NORM == 1u {
                let factor = four_g(8u * b + lane) + params.offset;
                for (var r = 0u; r < N_ROWS; r++) {
                    squares[r] += dot(own[r], own[r]);
                    own[r] *= factor;
                }
            }
            for (var i = 0u; i < 8u / W_VEC4; i++) {
                let at = b * (8u / W_VEC4) + i;
                let w0 = load_word(o.x, at);
                let w1 = load_word(o.y, at);
                let w2 = load_word(o.z, at);
                let w3 = load_word(o.w, at);
                let b0 = load_bits(o.x, at);
                let b1 = load_bits(o.y, at);
                let b2 = load_bits(o.z, at);
                let b3 = load_bits(o.w, at);
                let s0 = scale(h0, at);
                let s1 = scale(h1, at);
                let s2 = scale(h2, at);
                let s3 = scale(h3, at);
                for (var k = 0u; k < W_VEC4; k++) {
                    let v0 = unpack(w0, b0, k, s0);
                    let v1 = unpack(w1, b1, k, s1);
                    let v2 = unpack(w2, b2, k, s2);
                    let v3 = unpack(w3, b3, k, s3);
                    for (var r = 0u; r < N_ROWS; r++) {
                        let value = subgroupShuffle(own[r], i * W_VEC4 + k);
                        acc[r] += vec4f(dot(v0, value), dot(v1, value), dot(v2, value), dot(v3, value));
                    }
                }
            }
        }
    }
    if NORM == 1u {
        for (var r = 0u; r < N_ROWS; r++) {
            acc[r] *= inverseSqrt(subgroupAdd(squares[r]) / f32(params.n_in) + params.eps);
        }
    }
}
