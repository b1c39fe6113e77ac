// sample: draws the next token of each row and advances its sequence by one position.
// p_i ∝ e^(z_i / T) with logits z and temperature T. Three filters, in this order: top_k keeps the tokens at least as
// probable as the k-th; top_p keeps the fewest most probable of those that hold top_p of the mass; min_p keeps those
// with at least min_p times the largest probability. Tokens as probable as the last one kept are kept too, so that the
// choice does not depend on the order of the vocabulary.
// The draw is argmax_i(z_i / T + g_i) with Gumbel noise g_i (Gumbel 1954; Maddison et al. 2014). Its generator is keyed
// only by (seed, position, token): the same seed gives the same text whatever else runs in the batch.
// Temperature 0 takes the largest logit; on a tie, the smallest token.
// Logits that are not finite give NOT_A_TOKEN.
// One workgroup: one row. Thresholds are found digit by digit: see the part `select`. A draw reads the logits once if T is 0,
// twice without top_k and top_p, four times with top_k, five times with top_p, six times with both; and mostly two or
// three times with top_k, because then what is left soon fits in workgroup memory.
override WG: u32 = 256u;

struct Params {
    n_rows: u32,
    n_vocab: u32,
    z_stride: u32,      // vec4s per row
    tokens_stride: u32, // tokens per sequence
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> index: array<u32>;            // [n_rows] row that each row of z belongs to
@group(0) @binding(2) var<storage, read> sampling: array<Sampling>;    // [n_seqs]
@group(0) @binding(3) var<storage, read> z: array<vec4f>;              // [n_rows, n_vocab]
@group(0) @binding(4) var<storage, read_write> rows: array<vec2u>;     // (sequence, position); position advances
@group(0) @binding(5) var<storage, read_write> tokens: array<u32>;     // [n_seqs, tokens_stride]; gets the token
@group(0) @binding(6) var<storage, read_write> counts: array<u32>;     // [n_seqs, n_vocab]; counts the token
@group(0) @binding(7) var<storage, read_write> chosen: array<u32>;     // [n_rows]
@group(0) @binding(8) var<storage, read_write> filters: array<vec2f>;  // [n_rows] (1 / T, smallest logit kept)

const LOWEST: f32 = -3.4028234e38;
const NOT_A_TOKEN: u32 = 0xffffffffu;
const KEY_INFINITY: u32 = 0xff800000u;
// 0.999 · 2^32: what the masses of a row add up to. The rest is for their rounding.
const MASSES: f32 = 4.29067e9;

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

// What a row's draw needs of its parameters.
struct Draw {
    top: f32,   // the largest logit
    inv_t: f32,
    scale: f32, // of masses
    floor: u32, // the smallest key that counts
}

var<private> row: u32; // first vec4 of the row
var<private> draw: Draw;

fn load(i: u32) -> vec4f {
    return z[row + i];
}

// e^((z − top) / T) as an integer. All together are almost 2^32, so each is rounded by at most 2^−33 of the sum.
fn mass(key: u32) -> u32 {
    return u32(exp((of_key(key) - draw.top) * draw.inv_t) * draw.scale + 0.5);
}

// What the first pass finds.
struct First {
    best: Best,
    faulty: bool,
    mass: f32, // Σ e^((z − top) / T), if there is top_p
}

// Adds up the first digits too if there is top_k.
fn first_pass(inv_t: f32, has_top_k: bool, has_top_p: bool, lane: u32) -> First {
    var best = vec4u(KEY_LOWEST);
    var at = vec4u(NOT_A_TOKEN);
    var least = vec4u(KEY_NONE);
    // The sum is relative to the largest logit so far.
    var top = LOWEST;
    var sum = 0.0;
    for (var i = lane; i < n_left(); i += AT_ONCE * WG) {
        var all = sixteen_keys(i);
        for (var u = 0u; u < AT_ONCE; u++) {
            let k = all[u];
            let is_better = k > best;
            best = select(best, k, is_better);
            at = select(at, vec4u(4u * (i + u * WG)) + vec4u(0u, 1u, 2u, 3u), is_better);
            least = min(least, k);
            if has_top_k {
                for (var c = 0u; c < 4u; c++) {
                    if k[c] >= KEY_LOWEST {
                        atomicAdd(&bins[k[c] >> 21u], 1u);
                    }
                }
            }
            if has_top_p {
                let value = vec4f(of_key(k.x), of_key(k.y), of_key(k.z), of_key(k.w));
                let larger = max(max(value.x, value.y), max(value.z, value.w));
                if larger > top {
                    sum *= exp((top - larger) * inv_t);
                    top = larger;
                }
                let weights = select(vec4f(), exp((value - top) * inv_t), k >= vec4u(KEY_LOWEST));
                sum += dot(weights, vec4f(1.0));
            }
        }
    }
    // Infinity and what is no number have the highest keys, or lower ones than minus infinity, which marks a token that
    // cannot be drawn.
    let highest = max(max(best.x, best.y), max(best.z, best.w));
    let lowest = min(min(least.x, least.y), min(least.z, least.w));
    let fault = highest >= KEY_INFINITY || lowest < KEY_NONE;
    let same = select(vec4u(NOT_A_TOKEN), at, best == vec4u(highest));
    let token = min(min(same.x, same.y), min(same.z, same.w));
    let found = reduce_best(select(of_key(highest), LOWEST, fault), select(token, NOT_A_TOKEN, fault), lane);
    let faulty = reduce_sum(f32(fault), lane) > 0.0 || found.index == NOT_A_TOKEN;
    var total = 0.0;
    if has_top_p {
        total = reduce_sum(sum * exp((top - found.value) * inv_t), lane);
    }
    return First(found, faulty, total);
}

// What a pass does with the keys from `least` to `most`.
struct Pass {
    least: u32,
    most: u32,
    shift: u32, // of the digit, which has 11 bits
    task: u32,
}

// Adds up the numbers of the keys with each value of the digit.
const COUNT: u32 = 0u;
// Adds up their masses.
const WEIGH: u32 = 1u;
// Counts keys by their last ten bits if the others are those of `least`, in the first half of the bins; weighs the others by
// their first ten bits, in the second half.
const BOTH: u32 = 2u;
// Lists the keys.
const ENLIST: u32 = 3u;

fn run(work: Pass, lane: u32) {
    for (var i = lane; i < n_left(); i += AT_ONCE * WG) {
        let k = sixteen_keys(i);
        var bits = bits_of(k, max(work.least, draw.floor), work.most);
        let count = countOneBits(bits);
        for (var j = 0u; j < count; j++) {
            let bit = firstTrailingBit(bits);
            bits &= bits - 1u;
            let key = key_at(k, bit);
            if work.task == ENLIST {
                list_add(key, index_at(i, bit));
                continue;
            }
            let behind = work.task == BOTH && key >> 10u == work.least >> 10u;
            var bin = (key >> work.shift) % BINS;
            if work.task == BOTH {
                bin = select(1024u + (key >> 22u), key % 1024u, behind);
            }
            var n = 1u;
            if work.task != COUNT && !behind {
                n = mass(key);
            }
            atomicAdd(&bins[bin], n);
        }
    }
}

// The steps of `find_floor`.
const K_1: u32 = 0u;      // the first digit of top_k's threshold, which the first pass added up
const K_LIST_1: u32 = 1u; // a list of the keys with this digit or a higher one, if they are few
const K_2: u32 = 2u;
const K_LIST_2: u32 = 3u;
const K_3: u32 = 4u;      // the last digit; and a pass for the first digit of top_p's threshold
const P_1: u32 = 5u;
const P_2: u32 = 6u;
const P_3: u32 = 7u;

// The smallest key that top_k and top_p keep; top_p weighs what top_k keeps. There is one loop with one pass in it: a pass
// for each step would be more code than the caches of instructions hold.
fn find_floor(s: Sampling, has_top_k: bool, has_top_p: bool, lane: u32) {
    // The bits of a threshold that are known. Without top_k, all finite numbers are above.
    var least = KEY_LOWEST - 1u - 1024u;
    // Keys above these bits, and all that have them or are above.
    var n_above = 0u;
    var n_kept = params.n_vocab;
    var is_listed = false;
    var goal = s.top_k;
    for (var step = 0u; step < 8u; step++) {
        let is_list = step == K_LIST_1 || step == K_LIST_2;
        let is_on = select(has_top_k || step == K_3, has_top_p, step > K_3);
        if !is_on || (is_list && (is_listed || n_kept > LIST)) {
            continue;
        }
        if is_list {
            list_begin(lane);
            workgroupBarrier();
        } else if step != K_1 && step != P_1 {
            bins_clear(lane);
        }
        if step == P_1 {
            // What top_k keeps with the bits that were known before its last digit: the keys in a bin are the same.
            if has_top_k {
                for (var i = (draw.floor & 1023u) + lane; i < 1024u; i += WG) {
                    let weight = mass((draw.floor & ~1023u) | i);
                    atomicAdd(&bins[1024u + (draw.floor >> 22u)], atomicLoad(&bins[i]) * weight);
                }
            }
        } else if step != K_1 {
            var next = Pass(least, 0xffffffffu, 0u, ENLIST);
            if step == K_2 {
                next = Pass(least, least | 0x1fffffu, 10u, COUNT);
            } else if step == K_3 {
                next = Pass(least, select(least | 1023u, 0xffffffffu, has_top_p), 0u, BOTH);
            } else if step == P_2 {
                next = Pass(least, least | 0x3fffffu, 11u, WEIGH);
            } else if step == P_3 {
                next = Pass(least, least | 2047u, 0u, WEIGH);
            }
            run(next, lane);
        }
        if is_list {
            workgroupBarrier();
            n_list = n_kept;
            is_listed = true;
        }
        if is_list || (step == K_3 && !has_top_k) {
            continue;
        }
        let first = select(0u, 1024u, step == P_1);
        let n = select(BINS, 1024u, step == K_3 || step == P_1);
        let total = bins_sum(first, n, lane);
        if step == K_1 {
            goal = min(goal, total);
        } else if step == P_1 {
            // The most probable token is always kept.
            goal = clamp(u32(s.top_p * f32(total)), 1u, total);
        }
        let found = bins_find(first, n, goal, lane);
        goal -= found.above;
        n_above += found.above;
        n_kept = n_above + found.inside;
        if step == K_1 {
            least = found.bin << 21u;
        } else if step == K_2 {
            least |= found.bin << 10u;
        } else if step == P_1 {
            least = found.bin << 22u;
        } else if step == P_2 {
            least |= found.bin << 11u;
        } else {
            draw.floor = max(draw.floor, least | found.bin);
        }
    }
}

// The token with the largest noisy score among those whose keys are at least `floor`.
fn noisiest(seed: vec2u, pos: u32, lane: u32) -> u32 {
    var score = LOWEST;
    var candidate = NOT_A_TOKEN;
    for (var i = lane; i < n_left(); i += AT_ONCE * WG) {
        let k = sixteen_keys(i);
        var bits = bits_of(k, draw.floor, 0xffffffffu);
        let count = countOneBits(bits);
        for (var j = 0u; j < count; j++) {
            let bit = firstTrailingBit(bits);
            bits &= bits - 1u;
            let token = index_at(i, bit);
            let noise = gumbel(random(seed, pos, token));
            let noisy = (of_key(key_at(k, bit)) - draw.top) * draw.inv_t + noise;
            // The list is in no order.
            if noisy > score || (noisy == score && token < candidate) {
                score = noisy;
                candidate = token;
            }
        }
    }
    return reduce_best(score, candidate, lane).index;
}

@compute @workgroup_size(WG)
fn sample(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    let place = reduce_first(rows[index[r]], lane);
    let seq = place.x;
    let pos = place.y;
    let s = sampling[seq];
    let draws = s.temperature > 0.0;
    let has_top_k = draws && s.top_k > 0u && s.top_k < params.n_vocab;
    let has_top_p = draws && s.top_p < 1.0;
    let inv_t = select(1.0, 1.0 / s.temperature, draws);
    row = r * params.z_stride;
    n_row = params.n_vocab;
    if has_top_k {
        bins_clear(lane);
    }
    let first = first_pass(inv_t, has_top_k, has_top_p, lane);
    var token = first.best.index;
    var floor = key_of(first.best.value);
    if draws {
        draw = Draw(first.best.value, inv_t, MASSES / first.mass, KEY_LOWEST);
        if has_top_k || has_top_p {
            find_floor(s, has_top_k, has_top_p, lane);
        }
        if s.min_p > 0.0 {
            draw.floor = max(draw.floor, key_of(first.best.value + log(s.min_p) * s.temperature));
        }
        // The best token is always kept, however the thresholds were rounded.
        draw.floor = min(draw.floor, floor);
        floor = draw.floor;
        token = noisiest(vec2u(s.seed_low, s.seed_high), pos, lane);
    }
    if lane == 0u {
        if first.faulty {
            token = NOT_A_TOKEN;
        }
        chosen[r] = token;
        filters[r] = vec2f(inv_t, of_key(floor));
        rows[index[r]].y = pos + 1u;
        if pos + 1u < params.tokens_stride {
            tokens[seq * params.tokens_stride + pos + 1u] = token;
        }
        if s.counts == 1u && !first.faulty {
            counts[seq * params.n_vocab + token] += 1u;
        }
    }
}
