// Contract: as in `kv_f32`.
// For software devices, for the reason in `words_64`.
alias Kv = u64;
alias KvWord = u64;
const KV_VEC4: u32 = 1u;
const KV_SCALED: u32 = 0u;

fn kv_halves(e: u64) -> vec4f {
    return vec4f(unpack2x16float(u32(e)), unpack2x16float(u32(e >> 32u)));
}

fn load_k(at: u32) -> vec4f {
    return kv_halves(k[at]);
}

fn load_v(at: u32) -> vec4f {
    return kv_halves(v[at]);
}

fn k_word(at: u32) -> KvWord {
    return k[at];
}

fn v_word(at: u32) -> KvWord {
    return v[at];
}

fn kv_vec4(word: KvWord, i: u32) -> vec4f {
    return kv_halves(word);
}

fn k_scale(at: u32) -> f32 {
    return 1.0;
}

fn v_scale(at: u32) -> f32 {
    return 1.0;
}
