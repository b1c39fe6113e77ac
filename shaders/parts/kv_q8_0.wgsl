// Contract: as in `kv_f32`.
// Blocks of 32 values in nine words: the scale, then signed bytes. The scale is an f32, so that no two invocations write
// to one word.
alias Kv = u32;

fn kv_bytes(word: u32, scale: u32) -> vec4f {
    return bitcast<f32>(scale) * vec4f(vec4<i32>(vec4u(word) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}

fn load_k(at: u32) -> vec4f {
    let block = at / 8u * 9u;
    return kv_bytes(k[block + 1u + at % 8u], k[block]);
}

fn load_v(at: u32) -> vec4f {
    let block = at / 8u * 9u;
    return kv_bytes(v[block + 1u + at % 8u], v[block]);
}
