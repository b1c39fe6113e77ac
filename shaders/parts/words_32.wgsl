// Contract: `Word` is the type of a 16-byte word of the kernel's `w`; `word(at)` is word `at` of w as four 32-bit numbers,
// `pair(at)` two of them from 8 · at bytes on, `number(at)` the one at 4 · at bytes.
alias Word = vec4<u32>;

fn word(at: u32) -> vec4<u32> {
    return w[at];
}

fn pair(at: u32) -> vec2<u32> {
    let half = at % 2u * 2u;
    return vec2<u32>(w[at / 2u][half], w[at / 2u][half + 1u]);
}

fn number(at: u32) -> u32 {
    return w[at / 4u][at % 4u];
}
