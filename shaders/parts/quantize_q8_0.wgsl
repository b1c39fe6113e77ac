// Contract: quantises a superblock of up to eight blocks of 32: `measure(values)` gives a block's scale (and minimum),
// `pack_head(measured)` the head of all blocks, `pack_block(values, b, measured, head)` the BLOCK_WORDS 16-byte words of
// block b.
// Q8_0: d = max|x| / 127, q = x / d rounded to nearest, ties away from zero (ggml-quants.c, quantize_row_q8_0_ref).
const BLOCK_WORDS: u32 = 2u;

fn measure(values: array<vec4f, 8>) -> vec2f {
    var all = values;
    var most = vec4f();
    for (var i = 0u; i < 8u; i++) {
        most = max(most, abs(all[i]));
    }
    return vec2f(max(max(most.x, most.y), max(most.z, most.w)) / 127.0, 0.0);
}

fn pack_head(measured: array<vec2f, 8>) -> vec4<u32> {
    var m = measured;
    return vec4<u32>(
        pack2x16float(vec2f(m[0].x, m[1].x)), pack2x16float(vec2f(m[2].x, m[3].x)),
        pack2x16float(vec2f(m[4].x, m[5].x)), pack2x16float(vec2f(m[6].x, m[7].x)),
    );
}

fn pack_bytes(value: vec4f, inverse: f32) -> u32 {
    let scaled = value * inverse;
    let q = vec4u(vec4<i32>(sign(scaled) * floor(abs(scaled) + 0.5))) & vec4u(255u);
    return q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u);
}

fn pack_block(values: array<vec4f, 8>, b: u32, measured: vec2f, head: vec4<u32>) -> array<vec4<u32>, BLOCK_WORDS> {
    var all = values;
    let inverse = select(0.0, 1.0 / measured.x, measured.x > 0.0);
    var words: array<vec4<u32>, BLOCK_WORDS>;
    for (var i = 0u; i < 8u; i++) {
        words[i / 4u][i % 4u] = pack_bytes(all[i], inverse);
    }
    return words;
}
