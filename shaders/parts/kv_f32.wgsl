// Contract: `Kv` is an element of the cache's tensors `k` and `v`; `load_k(at)` and `load_v(at)` give the vec4 of
// four consecutive elements of one key or value; `at` counts vec4s from the tensor's start.
// A word is what a lane loads at once, KV_VEC4 vec4s of one key or value; in `k_word(at)` and `v_word(at)`, `at` counts
// words. `kv_vec4(word, i)` gives a vec4 of it, to be multiplied by `k_scale(at)` or `v_scale(at)`, which is 1 unless
// KV_SCALED. A part that is not scaled is zero if its word is, a scaled one if its scale is.
alias Kv = vec4f;
// Not vec4f: naga 30 would define the zeros of arrays of it twice in HLSL, for the alias and for vec4f.
alias KvWord = vec4<u32>;
const KV_VEC4: u32 = 1u;
const KV_SCALED: u32 = 0u;

fn load_k(at: u32) -> vec4f {
    return k[at];
}

fn load_v(at: u32) -> vec4f {
    return v[at];
}

fn k_word(at: u32) -> KvWord {
    return bitcast<vec4<u32>>(k[at]);
}

fn v_word(at: u32) -> KvWord {
    return bitcast<vec4<u32>>(v[at]);
}

fn kv_vec4(word: KvWord, i: u32) -> vec4f {
    return bitcast<vec4f>(word);
}

fn k_scale(at: u32) -> f32 {
    return 1.0;
}

fn v_scale(at: u32) -> f32 {
    return 1.0;
}
