// Contract: `visible(pos, n_keys)` gives the keys x..y (y exclusive) that a query at `pos` sees; `key_count(seq)` gives
// `n_keys`. If CAUSAL, these are the keys up to `pos`; with a window, the last `window` of them, `pos` included. Else
// they are all keys of the sequence; with a window, those at most `window` positions away on either side.
// `sink_weight(head, top)` is the weight of the head's sink beside keys whose largest score is `top`: zero unless SINKS,
// which only CAUSAL attention has. So one binding is enough for both: `ends_or_sinks` has the keys of each sequence
// [n_seqs] if not CAUSAL, and the bits of the sinks [n_heads] if SINKS.
fn key_count(seq: u32) -> u32 {
    if CAUSAL == 1u {
        return 0xffffffffu;
    }
    return ends_or_sinks[seq];
}

fn sink_weight(head: u32, top: f32) -> f32 {
    if SINKS == 0u {
        return 0.0;
    }
    // Beside a sink that is higher by so much, the weights of the keys are nothing. Without the limit it is infinite.
    return exp(min(bitcast<f32>(ends_or_sinks[head]) - top, 80.0));
}

fn visible(pos: u32, n_keys: u32) -> vec2u {
    let first = select(0u, pos - min(pos, params.window - CAUSAL), params.window > 0u);
    if CAUSAL == 1u {
        return vec2u(first, pos + 1u);
    }
    return vec2u(first, select(n_keys, min(n_keys, pos + params.window + 1u), params.window > 0u));
}
