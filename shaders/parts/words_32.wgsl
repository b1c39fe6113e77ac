// Contract: `Word` is the type of a 16-byte word of the kernel's `w`; `word(at)` is word `at` of w as four 32-bit numbers.
alias Word = vec4<u32>;

fn word(at: u32) -> vec4<u32> {
    return w[at];
}
