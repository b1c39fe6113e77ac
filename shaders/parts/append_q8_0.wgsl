// Contract: as in `append_f32`; the layout is that of `kv_q8_0`.
// d = max|x| / 127, q = x / d rounded to nearest (ggml-quants.c, quantize_row_q8_0_ref).
alias Kv = u32;
const KV_VEC4: u32 = 8u;

fn kv_scale(values: array<vec4f, KV_VEC4>) -> f32 {
    var all = values;
    var most = vec4f();
    for (var i = 0u; i < KV_VEC4; i++) {
        most = max(most, abs(all[i]));
    }
    return max(max(most.x, most.y), max(most.z, most.w)) / 127.0;
}

fn kv_word(value: vec4f, d: f32) -> u32 {
    let q = vec4u(vec4<i32>(round(value * select(0.0, 1.0 / d, d > 0.0)))) & vec4u(255u);
    return q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u);
}

fn append_k(at: u32, values: array<vec4f, KV_VEC4>) {
    var all = values;
    let d = kv_scale(values);
    let first = at / 32u * 36u;
    k[first + at % 32u / 8u] = bitcast<u32>(d);
    for (var i = 0u; i < KV_VEC4; i++) {
        k[first + 4u + at % 32u + i] = kv_word(all[i], d);
    }
}

fn append_v(at: u32, values: array<vec4f, KV_VEC4>) {
    var all = values;
    let d = kv_scale(values);
    let first = at / 32u * 36u;
    v[first + at % 32u / 8u] = bitcast<u32>(d);
    for (var i = 0u; i < KV_VEC4; i++) {
        v[first + 4u + at % 32u + i] = kv_word(all[i], d);
    }
}
