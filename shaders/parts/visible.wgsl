// Contract: `visible(pos, n_keys)` gives the keys that a query at `pos` sees, from `x` on and before `y`. If CAUSAL,
// those up to its own position, and with a window the last so many of them, its own included; else all keys of the
// sequence, and with a window those at most so far away on either side. `key_count(seq)` gives `n_keys`.
fn key_count(seq: u32) -> u32 {
    if CAUSAL == 1u {
        return 0xffffffffu;
    }
    return ends[seq];
}

fn visible(pos: u32, n_keys: u32) -> vec2u {
    let first = select(0u, pos - min(pos, params.window - CAUSAL), params.window > 0u);
    if CAUSAL == 1u {
        return vec2u(first, pos + 1u);
    }
    return vec2u(first, select(n_keys, min(n_keys, pos + params.window + 1u), params.window > 0u));
}
