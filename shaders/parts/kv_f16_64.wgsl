// Contract: `Kv`, `load_k` and `load_v` as in `kv_f32`; no words.
// For software devices, for the reason in `words_64`.
alias Kv = u64;

fn kv_halves(e: u64) -> vec4f {
    return vec4f(unpack2x16float(u32(e)), unpack2x16float(u32(e >> 32u)));
}

fn load_k(at: u32) -> vec4f {
    return kv_halves(k[at]);
}

fn load_v(at: u32) -> vec4f {
    return kv_halves(v[at]);
}
