// speech_rules: sets the logits of tokens that may not come next in a transcript to FORBIDDEN (Radford et al. 2022; the
// filters of openai/whisper's decoding.py, in their order). With n tokens generated so far:
// if n = 0, forbids the tokens of `suppress_first`;
// with timestamps, forbids `no_timestamps`, and if n = 0 everything but timestamps up to `max_initial`;
// a timestamp after text ends a segment: a timestamp or the end must follow; after two timestamps, text must follow;
// timestamps never decrease, and a segment ends later than it begins;
// if all timestamps together are more probable than any text token, forbids text.
// One workgroup: one row.
override WG: u32 = 256u;

struct Params {
    n_rows: u32,
    n_vocab: u32,
    z_stride: u32,      // elements per row
    tokens_stride: u32, // tokens per sequence
}

// The record of one sequence, which the host writes when it admits the sequence.
struct Rules {
    on: u32,
    prompt_len: u32,             // tokens before the first generated one
    end: u32,                    // the token that ends a transcript
    timestamps: u32,             // 1: with timestamps
    first: u32,                  // the timestamp 0.00; all later tokens are timestamps too
    no_timestamps: u32,
    max_initial: u32,            // the latest timestamp that may come first, counted from `first`
    pad: u32,
    suppress_first: vec4u,       // tokens; n_vocab and above: none
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;      // (sequence, position)
@group(0) @binding(2) var<storage, read> index: array<u32>;       // [n_rows] row that each row of z belongs to
@group(0) @binding(3) var<storage, read> rules: array<Rules>;     // [n_seqs]
@group(0) @binding(4) var<storage, read> tokens: array<u32>;      // [n_seqs, tokens_stride]
@group(0) @binding(5) var<storage, read_write> z: array<f32>;     // [n_rows, n_vocab]

// Low enough to be negligible beside any logit, and finite when divided by a small temperature.
const FORBIDDEN: f32 = -1e30;
// Logits that a lane loads at once, so that it waits once for all.
const AT_ONCE: u32 = 4u;

@compute @workgroup_size(WG)
fn speech_rules(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    let seq = rows[index[r]].x;
    let pos = rows[index[r]].y;
    let rule = rules[seq];
    if rule.on == 0u {
        return;
    }
    let base = r * params.z_stride;
    let history = seq * params.tokens_stride;
    let n_generated = pos + 1u - rule.prompt_len;

    // Allowed: text tokens in text_begin..text_end, timestamps in time_begin..time_end.
    var text_begin = 0u;
    var text_end = params.n_vocab;
    var time_begin = params.n_vocab;
    var time_end = params.n_vocab;
    if rule.timestamps == 1u {
        text_end = rule.first;
        time_begin = rule.first;
        if n_generated == 0u {
            text_end = 0u;
            time_end = min(params.n_vocab, rule.first + min(rule.max_initial, params.n_vocab) + 1u);
        } else {
            let last_is_time = tokens[history + pos] >= rule.first;
            var before_is_time = true;
            if n_generated > 1u {
                before_is_time = tokens[history + pos - 1u] >= rule.first;
            }
            if last_is_time && before_is_time {
                time_begin = params.n_vocab;
            } else {
                if last_is_time {
                    text_begin = rule.end;
                }
                // Timestamps do not decrease, so the highest one is the latest.
                var latest = 0u;
                for (var i = lane; i < n_generated; i += WG) {
                    let token = tokens[history + rule.prompt_len + i];
                    latest = max(latest, select(0u, token, token >= rule.first));
                }
                // Tokens below 2^24 are exact as floats.
                latest = u32(reduce_best(f32(latest), lane, lane).value);
                if latest > 0u {
                    time_begin = select(latest + 1u, latest, last_is_time);
                }
            }
        }
    }

    var best_text = FORBIDDEN;
    var best_time = FORBIDDEN;
    for (var t0 = lane; t0 < params.n_vocab; t0 += AT_ONCE * WG) {
        var values: array<f32, AT_ONCE>;
        for (var i = 0u; i < AT_ONCE; i++) {
            values[i] = z[base + min(t0 + i * WG, params.n_vocab - 1u)];
        }
        for (var i = 0u; i < AT_ONCE; i++) {
            let t = t0 + i * WG;
            let is_time = rule.timestamps == 1u && t >= rule.first;
            var allowed = t >= text_begin && t < text_end;
            if is_time {
                allowed = t >= time_begin && t < time_end;
            }
            if rule.timestamps == 1u && t == rule.no_timestamps {
                allowed = false;
            }
            if n_generated == 0u && any(rule.suppress_first == vec4u(t)) {
                allowed = false;
            }
            if t < params.n_vocab && !allowed {
                z[base + t] = FORBIDDEN;
            }
            let value = select(FORBIDDEN, values[i], t < params.n_vocab && allowed);
            best_time = max(best_time, select(FORBIDDEN, value, is_time));
            best_text = max(best_text, select(value, FORBIDDEN, is_time));
        }
    }
    if rule.timestamps == 0u {
        return;
    }
    best_text = reduce_best(best_text, lane, lane).value;
    best_time = reduce_best(best_time, lane, lane).value;
    var sum = 0.0;
    // No barrier: each lane reads only what it wrote.
    for (var t = rule.first / WG * WG + lane; t < params.n_vocab; t += WG) {
        if t >= rule.first && z[base + t] > FORBIDDEN {
            sum += exp(z[base + t] - best_time);
        }
    }
    sum = reduce_sum(sum, lane);
    if sum > 0.0 && best_time + log(sum) > best_text {
        for (var t = lane; t < rule.first; t += WG) {
            z[base + t] = FORBIDDEN;
        }
    }
}
