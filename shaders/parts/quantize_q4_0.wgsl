// Contract: as in `quantize_q8_0`.
// Q4_0: d = m / −8 with m the value of largest magnitude, q = ⌊x / d + 8.5⌋, at most 15 (ggml-quants.c,
// quantize_row_q4_0_ref).
const BLOCK_WORDS: u32 = 1u;

fn measure(values: array<vec4f, 8>) -> vec2f {
    var all = values;
    var most = 0.0;
    for (var i = 0u; i < 8u; i++) {
        for (var c = 0u; c < 4u; c++) {
            // On a tie, the first one.
            most = select(most, all[i][c], abs(all[i][c]) > abs(most));
        }
    }
    return vec2f(most / -8.0, 0.0);
}

fn pack_head(measured: array<vec2f, 8>) -> vec4<u32> {
    var m = measured;
    return vec4<u32>(
        pack2x16float(vec2f(m[0].x, m[1].x)), pack2x16float(vec2f(m[2].x, m[3].x)),
        pack2x16float(vec2f(m[4].x, m[5].x)), pack2x16float(vec2f(m[6].x, m[7].x)),
    );
}

fn halves(value: vec4f, inverse: f32) -> u32 {
    let q = vec4u(clamp(floor(value * inverse + 8.5), vec4f(), vec4f(15.0)));
    return q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u);
}

fn pack_block(values: array<vec4f, 8>, b: u32, measured: vec2f, head: vec4<u32>) -> array<vec4<u32>, BLOCK_WORDS> {
    var all = values;
    let inverse = select(0.0, 1.0 / measured.x, measured.x != 0.0);
    var word: vec4<u32>;
    for (var i = 0u; i < 4u; i++) {
        word[i] = halves(all[2u * i], inverse) | (halves(all[2u * i + 1u], inverse) << 4u);
    }
    return array<vec4<u32>, BLOCK_WORDS>(word);
}
