// Contract: as in `kv_f32`, but only words; they have 16 bytes, for heads that are a multiple of eight elements.
alias Kv = vec4<u32>;
alias KvWord = vec4<u32>;
const KV_VEC4: u32 = 2u;
const KV_SCALED: u32 = 0u;

fn k_word(at: u32) -> KvWord {
    return k[at];
}

fn v_word(at: u32) -> KvWord {
    return v[at];
}

fn kv_vec4(word: KvWord, i: u32) -> vec4f {
    return vec4f(unpack2x16float(word[2u * i]), unpack2x16float(word[2u * i + 1u]));
}

fn k_scale(at: u32) -> f32 {
    return 1.0;
}

fn v_scale(at: u32) -> f32 {
    return 1.0;
}
