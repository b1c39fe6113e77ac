// Contract: as in `inputs_32`.
// For software devices, for the reason in `words_64`.
alias Four = vec2<u64>;

fn four(both: Four) -> vec4f {
    return bitcast<vec4f>(vec4<u32>(u32(both.x), u32(both.x >> 32u), u32(both.y), u32(both.y >> 32u)));
}

fn four_x(at: u32) -> vec4f {
    return four(x[at]);
}

fn four_g(at: u32) -> vec4f {
    return four(g[at]);
}
