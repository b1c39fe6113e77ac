// Contract: as in `kv_f32`.
// For software devices, for the reason in `words_64`.
alias Kv = vec2<u64>;
alias KvWord = vec2<u64>;
const KV_VEC4: u32 = 1u;
const KV_SCALED: u32 = 0u;

fn kv_floats(e: vec2<u64>) -> vec4f {
    return bitcast<vec4f>(vec4u(u32(e.x), u32(e.x >> 32u), u32(e.y), u32(e.y >> 32u)));
}

fn load_k(at: u32) -> vec4f {
    return kv_floats(k[at]);
}

fn load_v(at: u32) -> vec4f {
    return kv_floats(v[at]);
}

fn k_word(at: u32) -> KvWord {
    return k[at];
}

fn v_word(at: u32) -> KvWord {
    return v[at];
}

fn kv_vec4(word: KvWord, i: u32) -> vec4f {
    return kv_floats(word);
}

fn k_scale(at: u32) -> f32 {
    return 1.0;
}

fn v_scale(at: u32) -> f32 {
    return 1.0;
}
