// Contract: `visible(pos, n_keys)` gives the keys x..y (y exclusive) that a query at `pos` sees; `key_count(seq)` gives
// `n_keys`. If CAUSAL, these are the keys up to `pos`; with a window, the last `window` of them, `pos` included. Else
// they are all keys of the sequence; with a window, those at most `window` positions away on either side.
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
