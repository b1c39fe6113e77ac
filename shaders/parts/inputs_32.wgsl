// Contract: `Four` is the type of four elements of the kernel's `x` and `g`; `four_x(at)` and `four_g(at)` are the vec4 `at`.
alias Four = vec4f;

fn four_x(at: u32) -> vec4f {
    return x[at];
}

fn four_g(at: u32) -> vec4f {
    return g[at];
}
