// Contract: `Kv4` is how the cache stores four consecutive values of a key or value.
alias Kv4 = vec2<u32>;

fn kv_pack(v: vec4f) -> Kv4 {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}

fn kv_unpack(e: Kv4) -> vec4f {
    return vec4f(unpack2x16float(e.x), unpack2x16float(e.y));
}
