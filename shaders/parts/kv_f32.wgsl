// Contract: `Kv` is an element of the cache's tensors `k` and `v`; `load_k(at)` and `load_v(at)` give the vec4 of
// four consecutive elements of one key or value; `at` counts vec4s from the tensor's start.
alias Kv = vec4f;

fn load_k(at: u32) -> vec4f {
    return k[at];
}

fn load_v(at: u32) -> vec4f {
    return v[at];
}
