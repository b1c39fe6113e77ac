// Contract: `Kv4` is how the cache stores four consecutive values of a key or value.
alias Kv4 = vec4f;

fn kv_pack(v: vec4f) -> Kv4 {
    return v;
}

fn kv_unpack(e: Kv4) -> vec4f {
    return e;
}
