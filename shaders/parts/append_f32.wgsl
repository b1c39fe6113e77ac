// Contract: `Kv` is an element of the cache's tensors `k` and `v`; `append_k(at, values)` and `append_v` write
// KV_VEC4 vec4s of one key or value; `at` counts vec4s from the tensor's start.
alias Kv = vec4f;
const KV_VEC4: u32 = 1u;

fn append_k(at: u32, values: array<vec4f, KV_VEC4>) {
    k[at] = values[0];
}

fn append_v(at: u32, values: array<vec4f, KV_VEC4>) {
    v[at] = values[0];
}
