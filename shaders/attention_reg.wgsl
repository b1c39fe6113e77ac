// attention_reg: attention of prompts for devices where barriers and workgroup memory are expensive (software devices):
// o[r, h, :] = Σ_j softmax_j(cap(scale · q[r, h, :]·k_j)) v_j over the keys j of the row's sequence that a
// query at its position sees (part visible), in one pass over the keys with a running maximum
// (Dao et al. 2022, algorithm 1); cap(s) = softcap · tanh(s / softcap) if softcap > 0, else s.
// The sink of a head, if it has one, counts in the softmax as the score of one more key, whose value is zero.
// One invocation: one query. One workgroup: up to 8 queries of one block of rows (consecutive positions of one
// sequence) that share one key-value head. The workgroup must be exactly one subgroup: each lane loads a part of a key
// or value and shuffles it to the others, because without coalescing eight loads of the same address cost eight times
// as much as one.
// A query's arithmetic does not depend on what else is in its block or batch.
override GROUP: u32 = 1u;   // query heads per key-value head
override N_D4: u32 = 16u;   // head_dim / 4, at most MAX_D4
override CAUSAL: u32 = 1u;  // 0: queries see keys on both sides
override SINKS: u32 = 0u;   // 1: each head has a sink

// Keys per step. Loops over keys have a constant trip count, the length of the arrays that they index, so that compilers
// unroll them and keep those arrays in registers. The arrays over dimensions are in memory, and read once per step.
const N_K: u32 = 8u;
const MAX_D4: u32 = 64u;

struct Params {
    n_kv_heads: u32,
    q_stride: u32,     // vec4s per row of q
    o_stride: u32,     // vec4s per row of o
    pages_stride: u32, // pages per sequence in the block table
    page_size: u32,    // positions per page
    window: u32,       // keys that a query sees if CAUSAL, else keys on each side of it; 0: all
    split_len: u32,    // of decode rows
    max_splits: u32,
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
@group(0) @binding(8) var<storage, read_write> o: array<vec4f>;  // [rows, n_heads, N_D4]

const LOWEST: f32 = -3.4028234e38; // instead of minus infinity, which a WGSL compiler may assume away

@compute @workgroup_size(8)
fn attention_reg(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = blocks[params.block0 + id.x];
    let kv_head = id.y;
    let n_q = block.y * GROUP;
    let seq = rows[block.x].x;
    let pos0 = rows[block.x].y;

    // The keys that any query of the block sees.
    let n_keys = key_count(seq);
    let start = visible(pos0, n_keys).x;
    let end = visible(pos0 + block.y - 1u, n_keys).y;

    // Lanes without a query repeat the last one.
    let qi = min(lane, n_q - 1u);
    let row = block.x + qi / GROUP;
    let head = kv_head * GROUP + qi % GROUP;
    let seen = visible(pos0 + qi / GROUP, n_keys);
    let first = max(start, seen.x);
    let last = min(end, seen.y);
    var qs: array<vec4f, MAX_D4>;
    for (var d = 0u; d < N_D4; d++) {
        qs[d] = q[row * params.q_stride + head * N_D4 + d] * params.scale;
    }
    var acc: array<vec4f, MAX_D4>;
    var top = LOWEST;
    var weight = 0.0;
    // Page and slot of the next key, incremented instead of divided.
    var page = seq * params.pages_stride + start / params.page_size;
    var slot = start % params.page_size;
    // Steps start at multiples of N_K: a key's index in its step, and so the order of sums, depends only on its position.
    for (var t = start / N_K * N_K; t < end; t += N_K) {
        var at: array<u32, N_K>;
        for (var i = 0u; i < N_K; i++) {
            // Outside the range, the address is that of the first or last key, and the score is masked: every slot
            // that is read holds a key that some query sees.
            at[i] = ((pages[page] * params.n_kv_heads + kv_head) * params.page_size + slot) * N_D4;
            if t + i >= start && t + i + 1u < end {
                slot++;
                if slot == params.page_size {
                    slot = 0u;
                    page++;
                }
            }
        }
        var ps: array<f32, N_K>; // scores, then weights
        for (var d = 0u; d < N_D4; d += 8u) {
            // If the head ends within these eight, the queries beyond it are zero.
            var own: array<vec4f, N_K>;
            for (var i = 0u; i < N_K; i++) {
                own[i] = load_k(at[i] + min(d + lane, N_D4 - 1u));
            }
            for (var l = 0u; l < 8u; l++) {
                let part = qs[d + l];
                for (var i = 0u; i < N_K; i++) {
                    ps[i] += dot(part, subgroupShuffle(own[i], l));
                }
            }
        }
        var high = top;
        for (var i = 0u; i < N_K; i++) {
            let j = t + i;
            var score = ps[i];
            if params.softcap > 0.0 {
                score = params.softcap * tanh(clamp(score / params.softcap, -15.0, 15.0));
            }
            ps[i] = select(LOWEST, score, j >= first && j < last);
            high = max(high, ps[i]);
        }
        // A step without a visible key changes nothing: the factor is exactly one.
        let factor = select(exp(top - high), 1.0, top == high);
        weight *= factor;
        for (var i = 0u; i < N_K; i++) {
            ps[i] = select(exp(ps[i] - high), 0.0, ps[i] == LOWEST);
            weight += ps[i];
        }
        top = high;
        for (var d = 0u; d < N_D4; d += 8u) {
            var own: array<vec4f, N_K>;
            for (var i = 0u; i < N_K; i++) {
                own[i] = load_v(at[i] + min(d + lane, N_D4 - 1u));
            }
            for (var l = 0u; l < 8u; l++) {
                var sum = acc[d + l] * factor;
                for (var i = 0u; i < N_K; i++) {
                    sum += ps[i] * subgroupShuffle(own[i], l);
                }
                acc[d + l] = sum;
            }
        }
    }

    if lane >= n_q {
        return;
    }
    let total = weight + sink_weight(head, top);
    for (var d = 0u; d < N_D4; d++) {
        o[row * params.o_stride + head * N_D4 + d] = acc[d] / total;
    }
}
