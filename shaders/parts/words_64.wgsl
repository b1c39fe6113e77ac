// Contract: as in `words_32`.
// For software devices: old versions of llvmpipe load each component of each lane on its own, in about the same time
// whatever its size.
alias Word = vec2<u64>;

fn word(at: u32) -> vec4<u32> {
    let both = w[at];
    return vec4<u32>(u32(both.x), u32(both.x >> 32u), u32(both.y), u32(both.y >> 32u));
}

fn pair(at: u32) -> vec2<u32> {
    let both = w[at / 2u][at % 2u];
    return vec2<u32>(u32(both), u32(both >> 32u));
}

fn number(at: u32) -> u32 {
    let both = pair(at / 2u);
    return select(both.x, both.y, at % 2u == 1u);
}
