// Contract: as in `kv_f32`.
alias Kv = vec2<u32>;

fn load_k(at: u32) -> vec4f {
    let e = k[at];
    return vec4f(unpack2x16float(e.x), unpack2x16float(e.y));
}

fn load_v(at: u32) -> vec4f {
    let e = v[at];
    return vec4f(unpack2x16float(e.x), unpack2x16float(e.y));
}
