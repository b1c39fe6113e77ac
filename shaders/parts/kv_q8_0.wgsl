// Contract: as in `kv_f32`.
// Four blocks of 32 values in 36 u32s, so that neighbours load whole words of eight bytes: the four scales, which are
// f32, then the signed bytes. No two invocations write to one u32.
alias Kv = vec2<u32>;
alias KvWord = vec2<u32>;
const KV_VEC4: u32 = 2u;
const KV_SCALED: u32 = 1u;

fn kv_bytes(e: u32) -> vec4f {
    return vec4f(unpack4xI8(e));
}

fn load_k(at: u32) -> vec4f {
    return k_scale(at / 2u) * kv_bytes(k[at / 32u * 18u + 2u + at % 32u / 2u][at % 2u]);
}

fn load_v(at: u32) -> vec4f {
    return v_scale(at / 2u) * kv_bytes(v[at / 32u * 18u + 2u + at % 32u / 2u][at % 2u]);
}

fn k_word(at: u32) -> KvWord {
    return k[at / 16u * 18u + 2u + at % 16u];
}

fn v_word(at: u32) -> KvWord {
    return v[at / 16u * 18u + 2u + at % 16u];
}

fn kv_vec4(word: KvWord, i: u32) -> vec4f {
    return kv_bytes(word[i]);
}

fn k_scale(at: u32) -> f32 {
    return bitcast<f32>(k[at / 16u * 18u + at % 16u / 8u][at % 8u / 4u]);
}

fn v_scale(at: u32) -> f32 {
    return bitcast<f32>(v[at / 16u * 18u + at % 16u / 8u][at % 8u / 4u]);
}
