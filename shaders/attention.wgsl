// attention: o[r, h, :] = Σ_j softmax_j(cap(scale · q[r, h, :]·k_j)) v_j over the keys j of the row's
// sequence that a query at its position sees (part visible), in one pass over the keys with a running maximum
// (Dao et al. 2022, algorithm 1); cap(s) = softcap · tanh(s / softcap) if softcap > 0, else s.
// One workgroup: the queries of one block of rows (consecutive positions of one sequence) that share one
// key-value head. If SPLIT, it reads one range of keys and writes partial sums for attention_combine.
// A query's arithmetic does not depend on what else is in its block or batch.
override WG: u32 = 64u;
override GROUP: u32 = 1u;   // query heads per key-value head
override N_Q: u32 = 16u;    // most queries in a block: rows of a block times GROUP
override N_D4: u32 = 16u;   // head_dim / 4
override SPLIT: u32 = 0u;
override CAUSAL: u32 = 1u;  // 0: queries see keys on both sides

// Keys per step. The vec4 sums of a lane, N_Q · N_D4 / WG, must be at most MAX_SUMS.
const N_K: u32 = 16u;
const MAX_SUMS: u32 = 32u;

struct Params {
    n_kv_heads: u32,
    q_stride: u32,     // vec4s per row of q
    o_stride: u32,     // vec4s per row of o
    pages_stride: u32, // pages per sequence in the block table
    page_size: u32,    // positions per page
    window: u32,       // keys that a query sees if CAUSAL, else keys on each side of it; 0: all
    split_len: u32,    // keys per split, a multiple of N_K
    max_splits: u32,   // splits that fit in o
    block0: u32,       // first block
    scale: f32,
    softcap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;     // (sequence, position)
@group(0) @binding(2) var<storage, read> blocks: array<vec2u>;   // (first row, rows)
@group(0) @binding(3) var<storage, read> pages: array<u32>;      // [n_seqs, pages_stride]
@group(0) @binding(4) var<storage, read> ends: array<u32>;      // [n_seqs] keys, if not CAUSAL
@group(0) @binding(5) var<storage, read> q: array<vec4f>;        // [rows, n_heads, N_D4]
@group(0) @binding(6) var<storage, read> k: array<Kv>;           // [n_pages, n_kv_heads, page_size, N_D4]
@group(0) @binding(7) var<storage, read> v: array<Kv>;           // [n_pages, n_kv_heads, page_size, N_D4]
// [rows, n_heads, N_D4], or if SPLIT [rows, n_heads, max_splits, N_D4 + 1]: the sums, then (maximum, weight).
@group(0) @binding(8) var<storage, read_write> o: array<vec4f>;

var<workgroup> qs: array<vec4f, N_Q * N_D4>;
var<workgroup> ps: array<f32, N_Q * N_K>;     // scores, then weights
var<workgroup> running: array<vec4f, N_Q>;    // running maximum, sum of weights, factor for the sums so far

const LOWEST: f32 = -3.4028234e38; // instead of minus infinity, which a WGSL compiler may assume away

@compute @workgroup_size(WG)
fn attention(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = blocks[params.block0 + id.x];
    let kv_head = id.y;
    let n_q = block.y * GROUP;
    let seq = rows[block.x].x;
    let pos0 = rows[block.x].y;

    // The keys that any query of the block sees, cut to this split's range.
    let n_keys = key_count(seq);
    var start = visible(pos0, n_keys).x;
    var end = visible(pos0 + block.y - 1u, n_keys).y;
    if SPLIT == 1u {
        start = max(start, id.z * params.split_len);
        end = min(end, (id.z + 1u) * params.split_len);
        if end <= id.z * params.split_len {
            return; // this row has fewer splits than the longest; attention_combine skips them
        }
    }

    for (var e = lane; e < n_q * N_D4; e += WG) {
        let qi = e / N_D4;
        let at = (block.x + qi / GROUP) * params.q_stride + (kv_head * GROUP + qi % GROUP) * N_D4 + e % N_D4;
        qs[e] = q[at] * params.scale;
    }
    for (var qi = lane; qi < n_q; qi += WG) {
        running[qi] = vec4f(LOWEST, 0.0, 0.0, 0.0);
    }
    workgroupBarrier();

    var acc: array<vec4f, MAX_SUMS>;
    for (var t = start / N_K * N_K; t < end; t += N_K) {
        for (var e = lane; e < n_q * N_K; e += WG) {
            let qi = e / N_K;
            let j = t + e % N_K;
            let seen = visible(pos0 + qi / GROUP, n_keys);
            var score = LOWEST;
            if j >= max(start, seen.x) && j < min(end, seen.y) {
                let page = pages[seq * params.pages_stride + j / params.page_size];
                let at = ((page * params.n_kv_heads + kv_head) * params.page_size + j % params.page_size) * N_D4;
                var sum = vec4f();
                for (var d = 0u; d < N_D4; d++) {
                    sum += qs[qi * N_D4 + d] * load_k(at + d);
                }
                score = dot(sum, vec4f(1.0));
                if params.softcap > 0.0 {
                    score = params.softcap * tanh(clamp(score / params.softcap, -15.0, 15.0));
                }
            }
            ps[e] = score;
        }
        workgroupBarrier();
        for (var qi = lane; qi < n_q; qi += WG) {
            let old = running[qi];
            var top = old.x;
            for (var j = 0u; j < N_K; j++) {
                top = max(top, ps[qi * N_K + j]);
            }
            // A step without a visible key changes nothing: the factor is exactly one.
            let factor = select(exp(old.x - top), 1.0, top == old.x);
            var weight = old.y * factor;
            for (var j = 0u; j < N_K; j++) {
                let s = ps[qi * N_K + j];
                let p = select(exp(s - top), 0.0, s == LOWEST);
                ps[qi * N_K + j] = p;
                weight += p;
            }
            running[qi] = vec4f(top, weight, factor, 0.0);
        }
        workgroupBarrier();
        let n_k = min(N_K, end - t);
        for (var i = 0u; i < MAX_SUMS; i++) {
            let e = lane + WG * i;
            if e >= n_q * N_D4 {
                break;
            }
            let qi = e / N_D4;
            var sum = acc[i] * running[qi].z;
            for (var j = 0u; j < n_k; j++) {
                let p = ps[qi * N_K + j];
                // A masked value is skipped, not multiplied by zero: its slot may hold NaN.
                if p != 0.0 {
                    let page = pages[seq * params.pages_stride + (t + j) / params.page_size];
                    let at = ((page * params.n_kv_heads + kv_head) * params.page_size
                        + (t + j) % params.page_size) * N_D4;
                    sum += p * load_v(at + e % N_D4);
                }
            }
            acc[i] = sum;
        }
        workgroupBarrier();
    }

    for (var i = 0u; i < MAX_SUMS; i++) {
        let e = lane + WG * i;
        if e >= n_q * N_D4 {
            break;
        }
        let qi = e / N_D4;
        let row = block.x + qi / GROUP;
        let head = kv_head * GROUP + qi % GROUP;
        if SPLIT == 1u {
            let at = ((row * params.n_kv_heads * GROUP + head) * params.max_splits + id.z) * (N_D4 + 1u);
            o[at + e % N_D4] = acc[i];
            if e % N_D4 == 0u {
                o[at + N_D4] = running[qi];
            }
        } else {
            o[row * params.o_stride + head * N_D4 + e % N_D4] = acc[i] / running[qi].y;
        }
    }
}
