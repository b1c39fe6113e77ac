// attention_row: attention of single rows for devices where barriers and workgroup memory are expensive (software devices):
// o[r, h, :] = Σ_j softmax_j(cap(scale · q[r, h, :]·k_j)) v_j over the keys j of the row's sequence that a query at its
// position sees (part visible), in one pass over the keys with a running maximum (Dao et al. 2022, algorithm 1);
// cap(s) = softcap · tanh(s / softcap) if softcap > 0, else s.
// The sink of a head, if it has one, counts in the softmax as the score of one more key, whose value is zero.
// One workgroup: the queries of one row that share one key-value head. If SPLIT, it reads one range of keys and writes
// partial sums for attention_combine. The workgroup must be exactly one subgroup. For the scores a lane has a key, and
// queries are shuffled to it; for the sums a lane has a part of the dimensions, and weights are shuffled to it.
override GROUP: u32 = 1u;   // query heads per key-value head, at most MAX_GROUP
override N_D4: u32 = 16u;   // head_dim / 4, at most 8 · MAX_D8
override SPLIT: u32 = 0u;
override CAUSAL: u32 = 1u;  // 0: queries see keys on both sides
override SINKS: u32 = 0u;   // 1: each head has a sink
override N_D8: u32 = (N_D4 + 7u) / 8u; // vec4s of a head per lane

const MAX_GROUP: u32 = 8u;
const MAX_D8: u32 = 8u;

struct Params {
    n_kv_heads: u32,
    q_stride: u32,     // vec4s per row of q
    o_stride: u32,     // vec4s per row of o
    pages_stride: u32, // pages per sequence in the block table
    page_size: u32,    // positions per page, at least 4
    window: u32,       // keys that a query sees if CAUSAL, else keys on each side of it; 0: all
    split_len: u32,    // keys per split
    max_splits: u32,   // splits that fit in o
    block0: u32,       // first block
    scale: f32,
    softcap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;     // (sequence, position)
@group(0) @binding(2) var<storage, read> blocks: array<vec2u>;   // (first row, rows), of one row
@group(0) @binding(3) var<storage, read> pages: array<u32>;      // [n_seqs, pages_stride]
@group(0) @binding(4) var<storage, read> ends_or_sinks: array<u32>; // see part visible
@group(0) @binding(5) var<storage, read> q: array<vec4f>;        // [rows, n_heads, N_D4]
@group(0) @binding(6) var<storage, read> k: array<Kv>;           // [n_pages, n_kv_heads, page_size, N_D4]
@group(0) @binding(7) var<storage, read> v: array<Kv>;           // [n_pages, n_kv_heads, page_size, N_D4]
// [rows, n_heads, N_D4], or if SPLIT [rows, n_heads, max_splits, N_D4 + 1]: the sums, then (maximum, weight).
@group(0) @binding(8) var<storage, read_write> o: array<vec4f>;

const LOWEST: f32 = -3.4028234e38; // instead of minus infinity, which a WGSL compiler may assume away

// The largest value of the eight lanes. `subgroupMax` goes through the lanes one by one on llvmpipe.
fn largest(value: f32) -> f32 {
    let a = max(value, subgroupShuffleXor(value, 1u));
    let b = max(a, subgroupShuffleXor(a, 2u));
    return max(b, subgroupShuffleXor(b, 4u));
}

@compute @workgroup_size(8)
fn attention_row(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = blocks[params.block0 + id.x].x;
    let kv_head = id.y;
    let seq = rows[row].x;

    // The keys that the row sees, cut to this split's range.
    let seen = visible(rows[row].y, key_count(seq));
    var start = seen.x;
    var end = seen.y;
    if SPLIT == 1u {
        start = max(start, id.z * params.split_len);
        end = min(end, (id.z + 1u) * params.split_len);
        if end <= id.z * params.split_len {
            return; // this row has fewer splits than the longest; attention_combine skips them
        }
    }

    let head = kv_head * GROUP;
    var qs: array<vec4f, MAX_GROUP * MAX_D8>;
    for (var i = 0u; i < GROUP; i++) {
        for (var e = 0u; e < N_D8; e++) {
            let d = 8u * e + lane;
            let value = q[row * params.q_stride + (head + i) * N_D4 + min(d, N_D4 - 1u)];
            qs[i * N_D8 + e] = select(vec4f(), value * params.scale, d < N_D4);
        }
    }
    var acc: array<vec4f, MAX_GROUP * MAX_D8>;
    var top: array<f32, MAX_GROUP>;
    var weight: array<f32, MAX_GROUP>; // of this lane's keys
    for (var i = 0u; i < GROUP; i++) {
        top[i] = LOWEST;
    }

    // Steps start at multiples of 8: a key's lane, and so the order of sums, depends only on its position. Page and slot of
    // this lane's next key are incremented instead of divided. A lane without a key of the range reads the last one.
    let from_page = seq * params.pages_stride;
    let last = vec2u(from_page + (end - 1u) / params.page_size, (end - 1u) % params.page_size);
    let first = start / 8u * 8u;
    var page = from_page + (first + lane) / params.page_size;
    var slot = (first + lane) % params.page_size;
    for (var t = first; t < end; t += 8u) {
        let j = t + lane;
        let is_seen = j >= start && j < end;
        let place = select(last, vec2u(page, slot), is_seen);
        let at = ((pages[place.x] * params.n_kv_heads + kv_head) * params.page_size + place.y) * N_D4;
        slot += 8u;
        for (var i = 0u; i < 2u; i++) {
            let is_next = slot >= params.page_size;
            slot -= select(0u, params.page_size, is_next);
            page += select(0u, 1u, is_next);
        }

        var dots: array<vec4f, MAX_GROUP>;
        for (var e = 0u; e < N_D8; e++) {
            var keys: array<vec4f, 8>;
            for (var l = 0u; l < 8u; l++) {
                keys[l] = load_k(at + min(8u * e + l, N_D4 - 1u));
            }
            for (var i = 0u; i < GROUP; i++) {
                let own = qs[i * N_D8 + e];
                for (var l = 0u; l < 8u; l++) {
                    dots[i] += subgroupShuffle(own, l) * keys[l];
                }
            }
        }
        var ps: array<f32, MAX_GROUP>;
        for (var i = 0u; i < GROUP; i++) {
            var score = dot(dots[i], vec4f(1.0));
            if params.softcap > 0.0 {
                score = params.softcap * tanh(clamp(score / params.softcap, -15.0, 15.0));
            }
            score = select(LOWEST, score, is_seen);
            let high = max(top[i], largest(score));
            ps[i] = select(exp(score - high), 0.0, score == LOWEST);
            let factor = select(exp(top[i] - high), 1.0, top[i] == high);
            weight[i] = weight[i] * factor + ps[i];
            top[i] = high;
            for (var e = 0u; e < N_D8; e++) {
                acc[i * N_D8 + e] *= factor;
            }
        }
        for (var e = 0u; e < N_D8; e++) {
            let d = min(8u * e + lane, N_D4 - 1u);
            var values: array<vec4f, 8>;
            for (var l = 0u; l < 8u; l++) {
                values[l] = load_v(subgroupShuffle(at, l) + d);
            }
            for (var i = 0u; i < GROUP; i++) {
                var sum = acc[i * N_D8 + e];
                for (var l = 0u; l < 8u; l++) {
                    sum += subgroupShuffle(ps[i], l) * values[l];
                }
                acc[i * N_D8 + e] = sum;
            }
        }
    }

    for (var i = 0u; i < GROUP; i++) {
        let a = weight[i] + subgroupShuffleXor(weight[i], 1u);
        let b = a + subgroupShuffleXor(a, 2u);
        var total = b + subgroupShuffleXor(b, 4u);
        if SPLIT == 0u {
            total += sink_weight(head + i, top[i]);
        }
        let to = ((row * params.n_kv_heads * GROUP + head + i) * params.max_splits + id.z) * (N_D4 + 1u);
        for (var e = 0u; e < N_D8; e++) {
            let d = 8u * e + lane;
            if d < N_D4 {
                if SPLIT == 1u {
                    o[to + d] = acc[i * N_D8 + e];
                } else {
                    o[row * params.o_stride + (head + i) * N_D4 + d] = acc[i * N_D8 + e] / total;
                }
            }
        }
        if SPLIT == 1u && lane == 0u {
            o[to + N_D4] = vec4f(top[i], total, 0.0, 0.0);
        }
    }
}
