// attention: o[r, h, :] = Σ_j softmax_j(cap(scale · q[r, h, :]·k_j)) v_j over the keys j of the row's
// sequence that a query at its position sees (part visible), in one pass over the keys with a running maximum
// (Dao et al. 2022, algorithm 1); cap(s) = softcap · tanh(s / softcap) if softcap > 0, else s.
// The sink of a head, if it has one, counts in the softmax as the score of one more key, whose value is zero.
// One workgroup: the queries of one block of rows (consecutive positions of one sequence) and of HEADS query heads that
// share one key-value head. If SPLIT, it reads one range of keys and writes partial sums for attention_combine.
// A query's arithmetic does not depend on what else is in its block or batch.
//
// A step takes QUADS times four consecutive keys, and lanes change their parts in it:
// - K_LANES lanes share a key, so that neighbours load neighbouring words; each has a share of the scores of a quad,
// - one lane adds the shares of one query and one quad, and has their weights and their sum of weights,
// - V_LANES lanes share a value; each has the sums of its words over every V_KEYS-th quad, which are added at the end.
override WG: u32 = 64u;
override GROUP: u32 = 1u;    // query heads per key-value head
override HEADS: u32 = 1u;    // query heads per workgroup, at most GROUP
override N_Q: u32 = 1u;      // most queries per workgroup: rows of a block times HEADS
override N_D4: u32 = 16u;    // head_dim / 4, a multiple of KV_VEC4
override SPLIT: u32 = 0u;
override CAUSAL: u32 = 1u;   // 0: queries see keys on both sides
override SINKS: u32 = 0u;    // 1: each head has a sink
override QUADS: u32 = 8u;    // a multiple of V_KEYS; N_Q · QUADS is at most WG
override K_LANES: u32 = 8u;
override K_QUERIES: u32 = 1u; // queries per group of K_LANES lanes
override V_KEYS: u32 = 1u;
override V_QUERIES: u32 = 1u; // queries per lane
override N_SHARES: u32 = 576u; // K_LANES · SHARES_PITCH, and at least MERGED · V_WORDS · KV_VEC4 · WG
override MERGED: u32 = 1u;   // queries per lane that are added at once at the end

// Derived sizes are overrides of their own: naga 30 does not accept every expression as the size of an array.
override PARTS: u32 = (GROUP + HEADS - 1u) / HEADS;
override N_K: u32 = 4u * QUADS;
override N_WORDS: u32 = N_D4 / KV_VEC4;
override PAIRS: u32 = N_Q * QUADS;
// One more, so that the shares of one quad are in different memory banks.
override SHARES_PITCH: u32 = PAIRS + 1u;
override K_WORDS: u32 = (N_WORDS + K_LANES - 1u) / K_LANES;
override K_GROUPS: u32 = WG / K_LANES;
override K_BLOCKS: u32 = (N_Q + K_QUERIES - 1u) / K_QUERIES;
override K_TURNS: u32 = (QUADS * K_BLOCKS + K_GROUPS - 1u) / K_GROUPS;
override Q_WORDS: u32 = K_WORDS * K_LANES;
override QS: u32 = N_Q * Q_WORDS * KV_VEC4;
override V_WORDS: u32 = (N_WORDS + WG - 1u) / WG;
override V_LANES: u32 = (N_WORDS + V_WORDS - 1u) / V_WORDS;
override V_BLOCKS: u32 = (N_Q + V_QUERIES - 1u) / V_QUERIES;
override V_TURNS: u32 = QUADS / V_KEYS;

// Lengths of arrays. Their loops have override bounds, so that compilers unroll them and keep the arrays in registers.
const MAX_LOADS: u32 = 8u;  // 4 · K_TURNS · K_WORDS and 4 · V_TURNS · V_WORDS
const MAX_SUMS: u32 = 8u;   // V_QUERIES · V_WORDS · KV_VEC4
const MAX_QUERIES: u32 = 8u; // K_QUERIES and V_QUERIES

struct Params {
    n_kv_heads: u32,
    q_stride: u32,     // vec4s per row of q
    o_stride: u32,     // vec4s per row of o
    pages_stride: u32, // pages per sequence in the block table
    page_size: u32,    // positions per page, a multiple of four
    window: u32,       // keys that a query sees if CAUSAL, else keys on each side of it; 0: all
    split_len: u32,    // keys per split, a multiple of four
    max_splits: u32,   // splits that fit in o
    block0: u32,       // first block
    scale: f32,
    softcap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;     // (sequence, position)
@group(0) @binding(2) var<storage, read> blocks: array<vec2u>;   // (first row, rows)
@group(0) @binding(3) var<storage, read> pages: array<u32>;      // [n_seqs, pages_stride]
@group(0) @binding(4) var<storage, read> ends_or_sinks: array<u32>; // see part visible
@group(0) @binding(5) var<storage, read> q: array<vec4f>;        // [rows, n_heads, N_D4]
@group(0) @binding(6) var<storage, read> k: array<Kv>;           // [n_pages, n_kv_heads, page_size, N_D4]
@group(0) @binding(7) var<storage, read> v: array<Kv>;           // [n_pages, n_kv_heads, page_size, N_D4]
// [rows, n_heads, N_D4], or if SPLIT [rows, n_heads, max_splits, N_D4 + 1]: the sums, then (maximum, weight).
@group(0) @binding(8) var<storage, read_write> o: array<vec4f>;

var<workgroup> qs: array<vec4f, QS>;           // [N_Q, KV_VEC4, Q_WORDS], padded with zeros
var<workgroup> quads: array<u32, QUADS>;       // first word in k and v of each quad of a step
var<workgroup> shares: array<vec4f, N_SHARES>; // [K_LANES, SHARES_PITCH] of the scores of a pair; at the end, sums
var<workgroup> ps: array<vec4f, PAIRS>;        // [N_Q, QUADS] weights
var<workgroup> tops: array<f32, PAIRS>;        // [N_Q, QUADS] largest score; at the end, sum of weights
var<workgroup> factors: array<f32, N_Q>;       // for the sums so far; at the end, sum of weights
var<workgroup> maxima: array<f32, N_Q>;        // at the end

const LOWEST: f32 = -3.4028234e38; // instead of minus infinity, which a WGSL compiler may assume away

// a·b + c. A fused operation is one instruction to compilers that limit how far they unroll loops.
fn dot_add(a: vec4f, b: vec4f, c: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, c))));
}

@compute @workgroup_size(WG)
fn attention(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = blocks[params.block0 + id.x];
    let kv_head = id.y / PARTS;
    let head0 = id.y % PARTS * HEADS;
    let seq = rows[block.x].x;
    let pos0 = rows[block.x].y;

    // The keys that any query of the block sees, cut to this split's range.
    let n_keys = key_count(seq);
    var origin = 0u;
    var start = visible(pos0, n_keys).x;
    var end = visible(pos0 + block.y - 1u, n_keys).y;
    if SPLIT == 1u {
        origin = id.z * params.split_len;
        start = max(start, origin);
        end = min(end, origin + params.split_len);
        if end <= start {
            return; // this row has fewer splits than the longest; attention_combine skips them
        }
    }

    // Queries that the block lacks repeat the last one.
    for (var e = lane; e < QS; e += WG) {
        let qi = e / (Q_WORDS * KV_VEC4);
        let d4 = e % (Q_WORDS * KV_VEC4);
        let row = block.x + min(qi / HEADS, block.y - 1u);
        let head = kv_head * GROUP + min(head0 + qi % HEADS, GROUP - 1u);
        let query = params.scale * q[row * params.q_stride + head * N_D4 + min(d4, N_D4 - 1u)];
        qs[(qi * KV_VEC4 + d4 % KV_VEC4) * Q_WORDS + d4 / KV_VEC4] = select(vec4f(), query, d4 < N_D4);
    }

    // Steps start at multiples of N_K from `origin`: a key's index in its step, and so the order of sums, depends only on
    // its position. Page and slot of a quad are counted up, not divided.
    var t = origin + (start - origin) / N_K * N_K;
    let table = seq * params.pages_stride;
    let page0 = start / params.page_size;
    let page1 = (end - 1u) / params.page_size;
    let own_t = t + 4u * min(lane, QUADS - 1u);
    var page = own_t / params.page_size;
    var slot = own_t % params.page_size;
    let page_step = N_K / params.page_size;
    let slot_step = N_K % params.page_size;
    if lane < QUADS {
        let base = pages[table + clamp(page, page0, page1)] * params.n_kv_heads + kv_head;
        quads[lane] = (base * params.page_size + slot) * N_WORDS;
    }

    // This lane's part of the keys, of the softmax and of the values.
    let k_lane = lane % K_LANES;
    let k_quad = lane / K_LANES % QUADS;
    let k_block = min(lane / K_LANES / QUADS, K_BLOCKS - 1u);
    let has_keys = lane < K_LANES * min(K_GROUPS, QUADS * K_BLOCKS);
    let pair = min(lane, PAIRS - 1u);
    let pair_q = pair / QUADS;
    let seen = visible(pos0 + min(pair_q / HEADS, block.y - 1u), n_keys);
    let first = max(start, seen.x);
    let last = min(end, seen.y);
    let v_lane = lane % V_LANES;
    let v_quad = lane / V_LANES % V_KEYS;
    let v_block = min(lane / V_LANES / V_KEYS, V_BLOCKS - 1u);
    var top = LOWEST;
    var weight = 0.0;
    var sums: array<vec4f, MAX_SUMS>;
    workgroupBarrier();

    for (; t < end; t += N_K) {
        var keys: array<KvWord, MAX_LOADS>;
        var key_scales: array<f32, MAX_LOADS>;
        for (var turn = 0u; turn < K_TURNS; turn++) {
            let at = quads[min(k_quad + turn * K_GROUPS, QUADS - 1u)];
            for (var i = 0u; i < 4u; i++) {
                for (var w = 0u; w < K_WORDS; w++) {
                    let word = min(k_lane + w * K_LANES, N_WORDS - 1u);
                    keys[(turn * 4u + i) * K_WORDS + w] = k_word(at + i * N_WORDS + word);
                    key_scales[(turn * 4u + i) * K_WORDS + w] = k_scale(at + i * N_WORDS + word);
                }
            }
        }
        page += page_step;
        slot += slot_step;
        let wraps = slot >= params.page_size;
        page = select(page, page + 1u, wraps);
        slot = select(slot, slot - params.page_size, wraps);
        let base = pages[table + clamp(page, page0, page1)] * params.n_kv_heads + kv_head;

        for (var turn = 0u; turn < K_TURNS; turn++) {
            var share: array<vec4f, MAX_QUERIES>;
            for (var w = 0u; w < K_WORDS; w++) {
                let n = turn * 4u * K_WORDS + w;
                var dots: array<vec4f, MAX_QUERIES>;
                for (var e = 0u; e < KV_VEC4; e++) {
                    let k0 = kv_vec4(keys[n], e);
                    let k1 = kv_vec4(keys[n + K_WORDS], e);
                    let k2 = kv_vec4(keys[n + 2u * K_WORDS], e);
                    let k3 = kv_vec4(keys[n + 3u * K_WORDS], e);
                    for (var i = 0u; i < K_QUERIES; i++) {
                        let qi = min(k_block * K_QUERIES + i, N_Q - 1u);
                        let query = qs[(qi * KV_VEC4 + e) * Q_WORDS + k_lane + w * K_LANES];
                        let sum = dots[i];
                        dots[i] = vec4f(
                            dot_add(query, k0, sum.x),
                            dot_add(query, k1, sum.y),
                            dot_add(query, k2, sum.z),
                            dot_add(query, k3, sum.w),
                        );
                    }
                }
                let scale = vec4f(
                    key_scales[n],
                    key_scales[n + K_WORDS],
                    key_scales[n + 2u * K_WORDS],
                    key_scales[n + 3u * K_WORDS],
                );
                for (var i = 0u; i < K_QUERIES; i++) {
                    share[i] += scale * dots[i];
                }
            }
            let quad = k_quad + turn * K_GROUPS;
            if has_keys && quad < QUADS {
                for (var i = 0u; i < K_QUERIES; i++) {
                    let qi = min(k_block * K_QUERIES + i, N_Q - 1u);
                    shares[k_lane * SHARES_PITCH + qi * QUADS + quad] = share[i];
                }
            }
        }
        var values: array<KvWord, MAX_LOADS>;
        var value_scales: array<f32, MAX_LOADS>;
        for (var turn = 0u; turn < V_TURNS; turn++) {
            let at = quads[v_quad + turn * V_KEYS];
            for (var i = 0u; i < 4u; i++) {
                for (var w = 0u; w < V_WORDS; w++) {
                    let word = min(v_lane + w * V_LANES, N_WORDS - 1u);
                    values[(turn * 4u + i) * V_WORDS + w] = v_word(at + i * N_WORDS + word);
                    value_scales[(turn * 4u + i) * V_WORDS + w] = v_scale(at + i * N_WORDS + word);
                }
            }
        }
        // A value that no query sees is not multiplied by zero, but replaced: its slot may hold NaN.
        if t < start || t + N_K > end {
            for (var n = 0u; n < 4u * V_TURNS * V_WORDS; n++) {
                let j = t + 4u * (v_quad + n / V_WORDS / 4u * V_KEYS) + n / V_WORDS % 4u;
                let is_key = j >= start && j < end;
                if KV_SCALED == 1u {
                    value_scales[n] = select(0.0, value_scales[n], is_key);
                } else {
                    values[n] = select(KvWord(), values[n], is_key);
                }
            }
        }
        workgroupBarrier();
        var score = vec4f();
        for (var i = 0u; i < K_LANES; i++) {
            score += shares[i * SHARES_PITCH + pair];
        }
        if params.softcap > 0.0 {
            score = params.softcap * tanh(clamp(score / params.softcap, vec4f(-15.0), vec4f(15.0)));
        }
        let j = vec4u(t + 4u * (pair % QUADS)) + vec4u(0u, 1u, 2u, 3u);
        let sees = j >= vec4u(first) & j < vec4u(last);
        score = select(vec4f(LOWEST), score, sees);
        if lane < PAIRS {
            tops[lane] = max(max(score.x, score.y), max(score.z, score.w));
        }
        workgroupBarrier();
        var high = top;
        for (var i = 0u; i < QUADS; i++) {
            high = max(high, tops[pair_q * QUADS + i]);
        }
        // A step without a visible key changes nothing: the factor is exactly one.
        let factor = select(exp(top - high), 1.0, top == high);
        let p = select(vec4f(), exp(score - high), sees);
        weight = weight * factor + (p.x + p.y + p.z + p.w);
        top = high;
        if lane < PAIRS {
            ps[lane] = p;
            if pair % QUADS == 0u {
                factors[pair_q] = factor;
            }
        }
        if lane < QUADS {
            quads[lane] = (base * params.page_size + slot) * N_WORDS;
        }
        workgroupBarrier();
        for (var i = 0u; i < V_QUERIES; i++) {
            let rescale = factors[min(v_block * V_QUERIES + i, N_Q - 1u)];
            for (var n = 0u; n < V_WORDS * KV_VEC4; n++) {
                sums[i * V_WORDS * KV_VEC4 + n] *= rescale;
            }
        }
        for (var turn = 0u; turn < V_TURNS; turn++) {
            var p: array<vec4f, MAX_QUERIES>;
            for (var i = 0u; i < V_QUERIES; i++) {
                p[i] = ps[min(v_block * V_QUERIES + i, N_Q - 1u) * QUADS + v_quad + turn * V_KEYS];
            }
            for (var j = 0u; j < 4u; j++) {
                for (var w = 0u; w < V_WORDS; w++) {
                    let n = (turn * 4u + j) * V_WORDS + w;
                    for (var e = 0u; e < KV_VEC4; e++) {
                        let value = kv_vec4(values[n], e);
                        for (var i = 0u; i < V_QUERIES; i++) {
                            let to = (i * V_WORDS + w) * KV_VEC4 + e;
                            sums[to] = fma(vec4f(p[i][j] * value_scales[n]), value, sums[to]);
                        }
                    }
                }
            }
        }
    }

    if lane < PAIRS {
        tops[lane] = weight;
        if pair % QUADS == 0u {
            maxima[pair_q] = top;
        }
    }
    workgroupBarrier();
    for (var qi = lane; qi < N_Q; qi += WG) {
        var sum = 0.0;
        for (var i = 0u; i < QUADS; i++) {
            sum += tops[qi * QUADS + i];
        }
        if SPLIT == 0u {
            sum += sink_weight(kv_head * GROUP + min(head0 + qi % HEADS, GROUP - 1u), maxima[qi]);
        }
        factors[qi] = sum;
    }
    // The sums over all quads, MERGED queries of each block of V_QUERIES at a time.
    for (var i0 = 0u; i0 < V_QUERIES; i0 += MERGED) {
        for (var i = 0u; i < MERGED; i++) {
            for (var w = 0u; w < V_WORDS; w++) {
                for (var e = 0u; e < KV_VEC4; e++) {
                    let n = (min(i0 + i, V_QUERIES - 1u) * V_WORDS + w) * KV_VEC4 + e;
                    shares[((i * V_WORDS + w) * KV_VEC4 + e) * WG + lane] = sums[n];
                }
            }
        }
        workgroupBarrier();
        for (var item = lane; item < V_BLOCKS * MERGED * N_D4; item += WG) {
            let d4 = item % N_D4;
            let i = item / N_D4 % MERGED;
            let block_q = item / N_D4 / MERGED;
            let word = d4 / KV_VEC4;
            let share0 = ((i * V_WORDS + word / V_LANES) * KV_VEC4 + d4 % KV_VEC4) * WG
                + block_q * V_KEYS * V_LANES + word % V_LANES;
            var sum = vec4f();
            for (var n = 0u; n < V_KEYS; n++) {
                sum += shares[share0 + n * V_LANES];
            }
            let qi = block_q * V_QUERIES + i0 + i;
            let head = head0 + qi % HEADS;
            if i0 + i < V_QUERIES && qi < block.y * HEADS && head < GROUP {
                let to = block.x + qi / HEADS;
                let head_o = kv_head * GROUP + head;
                if SPLIT == 1u {
                    let at = ((to * params.n_kv_heads * GROUP + head_o) * params.max_splits + id.z) * (N_D4 + 1u);
                    o[at + d4] = sum;
                    if d4 == 0u {
                        o[at + N_D4] = vec4f(maxima[qi], factors[qi], 0.0, 0.0);
                    }
                } else {
                    o[to * params.o_stride + head_o * N_D4 + d4] = sum / factors[qi];
                }
            }
        }
        workgroupBarrier();
    }
}
