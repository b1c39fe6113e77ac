// sample: draws the next token of each row and advances its sequence by one position.
// p_i ∝ e^(z_i / T) with logits z and temperature T. Three filters, in this order: top_k keeps the tokens at least as
// probable as the k-th; top_p keeps the fewest most probable of those that hold top_p of the mass; min_p keeps those
// with at least min_p times the largest probability. Tokens as probable as the last one kept are kept too, so that the
// choice does not depend on the order of the vocabulary.
// The draw is argmax_i(z_i / T + g_i) with Gumbel noise g_i (Gumbel 1954; Maddison et al. 2014). Its generator is keyed
// only by (seed, position, token): the same seed gives the same text whatever else runs in the batch.
// Temperature 0 takes the largest logit; on a tie, the smallest token.
// Logits that are not finite give NOT_A_TOKEN.
// One workgroup: one row.
override WG: u32 = 256u;

struct Params {
    n_rows: u32,
    n_vocab: u32,
    z_stride: u32,      // elements per row
    tokens_stride: u32, // tokens per sequence
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> index: array<u32>;            // [n_rows] row that each row of z belongs to
@group(0) @binding(2) var<storage, read> sampling: array<Sampling>;    // [n_seqs]
@group(0) @binding(3) var<storage, read> z: array<f32>;                // [n_rows, n_vocab]
@group(0) @binding(4) var<storage, read_write> rows: array<vec2u>;     // (sequence, position); position advances
@group(0) @binding(5) var<storage, read_write> tokens: array<u32>;     // [n_seqs, tokens_stride]; gets the token
@group(0) @binding(6) var<storage, read_write> counts: array<u32>;     // [n_seqs, n_vocab]; counts the token
@group(0) @binding(7) var<storage, read_write> chosen: array<u32>;     // [n_rows]
@group(0) @binding(8) var<storage, read_write> filters: array<vec2f>;  // [n_rows] (1 / T, smallest logit kept)

const LOWEST: f32 = -3.4028234e38;
const NOT_A_TOKEN: u32 = 0xffffffffu;

// Maps floats to integers with the same order; −0 equals 0.
fn order(f: f32) -> u32 {
    let bits = bitcast<u32>(select(f, 0.0, f == 0.0));
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// The inverse of order.
fn unorder(o: u32) -> f32 {
    return bitcast<f32>(select(~o, o & 0x7fffffffu, (o & 0x80000000u) != 0u));
}

// The hash pcg4d of Jarzynski & Olano 2020 on four words.
fn random(seed: vec2u, pos: u32, token: u32) -> u32 {
    var v = vec4u(seed, pos, token) * 1664525u + 1013904223u;
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v ^= v >> vec4u(16u);
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    return v.x ^ v.w;
}

// Gumbel noise −ln(E) with E = −ln(1 − u) exponential. Large values, which decide the argmax, come from small u; a
// series keeps the precision there that 1 − u would lose.
fn gumbel(bits: u32) -> f32 {
    let u = f32(bits >> 8u) * 5.9604645e-8 + (f32(bits & 0xffu) + 0.5) * 2.3283064e-10;
    let series = u * (1.0 + u * (0.5 + u * (0.33333333 + u * 0.25)));
    let e = select(-log(max(1.0 - u, 1e-8)), series, u < 0.01);
    return -log(e);
}

// The largest threshold t, as an ordered integer, for which the weights of the tokens with order(z) ≥ max(t, floor) sum
// up to at least `goal`; a token weighs 1 if `count`, else e^((z − top) / T). Finds four bits per round.
fn threshold(base: u32, lane: u32, floor: u32, top: f32, inv_t: f32, count: bool, goal: f32) -> u32 {
    var t = 0u;
    for (var round = 0u; round < 8u; round++) {
        let shift = 28u - 4u * round;
        let step = vec4u(0u, 1u, 2u, 3u) << vec4u(shift);
        let t0 = vec4u(t) + step;
        let t1 = t0 + vec4u(4u << shift);
        let t2 = t0 + vec4u(8u << shift);
        let t3 = t0 + vec4u(12u << shift);
        var m0 = vec4f();
        var m1 = vec4f();
        var m2 = vec4f();
        var m3 = vec4f();
        for (var i = lane; i < params.n_vocab; i += WG) {
            let value = z[base + i];
            let o = order(value);
            if o >= floor {
                let weight = select(exp((value - top) * inv_t), 1.0, count);
                let v = vec4u(o);
                m0 += select(vec4f(), vec4f(weight), v >= t0);
                m1 += select(vec4f(), vec4f(weight), v >= t1);
                m2 += select(vec4f(), vec4f(weight), v >= t2);
                m3 += select(vec4f(), vec4f(weight), v >= t3);
            }
        }
        m0 = reduce_sum4(m0, lane);
        m1 = reduce_sum4(m1, lane);
        m2 = reduce_sum4(m2, lane);
        m3 = reduce_sum4(m3, lane);
        // Sums fall as thresholds rise, so those that reach the goal come first; the sum at t itself always does.
        let goals = vec4f(goal);
        let one = vec4u(1u);
        let reached = select(vec4u(), one, m0 >= goals) + select(vec4u(), one, m1 >= goals)
            + select(vec4u(), one, m2 >= goals) + select(vec4u(), one, m3 >= goals);
        let n = max(1u, reached.x + reached.y + reached.z + reached.w);
        t += (n - 1u) << shift;
    }
    return max(t, floor);
}

@compute @workgroup_size(WG)
fn sample(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    let row = index[r];
    let place = reduce_first(rows[row], lane);
    let seq = place.x;
    let pos = place.y;
    let s = sampling[seq];
    let base = r * params.z_stride;
    let has_top_k = s.top_k > 0u && s.top_k < params.n_vocab;

    var top = LOWEST;
    var top_index = NOT_A_TOKEN;
    var faults = 0.0;
    for (var i = lane; i < params.n_vocab; i += WG) {
        let value = z[base + i];
        // Tests bits, because a compiler may assume that there are no infinities and NaNs. Minus infinity marks a token
        // that cannot be drawn.
        let bits = bitcast<u32>(value);
        if (bits & 0x7f800000u) == 0x7f800000u && bits != 0xff800000u {
            faults += 1.0;
        } else if value > top {
            top = value;
            top_index = i;
        }
    }
    let best = reduce_best(top, top_index, lane);
    let faulty = reduce_sum(faults, lane) > 0.0 || best.index == NOT_A_TOKEN;
    var token = best.index;
    var floor = order(best.value);
    var inv_t = 1.0;
    if s.temperature > 0.0 {
        inv_t = 1.0 / s.temperature;
        floor = order(LOWEST);
        if has_top_k {
            floor = threshold(base, lane, floor, best.value, inv_t, true, f32(s.top_k));
        }
        if s.top_p < 1.0 {
            var mass = 0.0;
            for (var i = lane; i < params.n_vocab; i += WG) {
                let value = z[base + i];
                mass += select(0.0, exp((value - best.value) * inv_t), order(value) >= floor);
            }
            mass = reduce_sum(mass, lane);
            floor = threshold(base, lane, floor, best.value, inv_t, false, s.top_p * mass);
        }
        if s.min_p > 0.0 {
            floor = max(floor, order(best.value + log(s.min_p) * s.temperature));
        }
        // The best token is always kept, however the thresholds were rounded.
        floor = min(floor, order(best.value));
        var score = LOWEST;
        var candidate = NOT_A_TOKEN;
        for (var i = lane; i < params.n_vocab; i += WG) {
            let value = z[base + i];
            if order(value) >= floor {
                let noise = gumbel(random(vec2u(s.seed_low, s.seed_high), pos, i));
                let noisy = (value - best.value) * inv_t + noise;
                if noisy > score {
                    score = noisy;
                    candidate = i;
                }
            }
        }
        token = reduce_best(score, candidate, lane).index;
    }
    if lane == 0u {
        if faulty {
            token = NOT_A_TOKEN;
        }
        chosen[r] = token;
        filters[r] = vec2f(inv_t, unorder(floor));
        rows[row].y = pos + 1u;
        if pos + 1u < params.tokens_stride {
            tokens[seq * params.tokens_stride + pos + 1u] = token;
        }
        if s.counts == 1u && !faulty {
            counts[seq * params.n_vocab + token] += 1u;
        }
    }
}
