// Contract: `Kv` is an element of the cache's tensors `k` and `v`: two consecutive values as `kv_pair` packs them.
alias Kv = vec2f;

fn kv_pair(v: vec2f) -> Kv {
    return v;
}
