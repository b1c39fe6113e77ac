// Contract: `Kv`, `load_k` and `load_v` as in `kv_f32`; no words.
// For software devices, for the reason in `words_64`.
alias Kv = vec2<u64>;

fn kv_floats(e: vec2<u64>) -> vec4f {
    return bitcast<vec4f>(vec4u(u32(e.x), u32(e.x >> 32u), u32(e.y), u32(e.y >> 32u)));
}

fn load_k(at: u32) -> vec4f {
    return kv_floats(k[at]);
}

fn load_v(at: u32) -> vec4f {
    return kv_floats(v[at]);
}
