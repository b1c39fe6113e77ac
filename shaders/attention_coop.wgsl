// attention_coop: attention on cooperative matrices, for prompts:
// o[r, h, :] = Σ_j softmax_j(cap(scale · q[r, h, :]·k_j)) v_j over the keys j of the row's sequence that a
// query at its position sees (part visible), in one pass over the keys (Dao et al. 2022, algorithm 1);
// cap(s) = softcap · tanh(s / softcap) if softcap > 0, else s.
// The sink of a head, if it has one, counts in the softmax as the score of one more key, whose value is zero.
// Queries, keys, weights and values are rounded to f16; scores, softmax and sums are f32.
// Departure from the paper: the maximum that is subtracted from the scores lags behind the running maximum by at most
// LAG; the quotient is the same. So sums are rarely rescaled, which goes through workgroup memory, because WGSL does
// not define the layout of a cooperative matrix in registers.
// One workgroup: the queries of one block of rows (consecutive positions of one sequence) that share one key-value
// head, 32 keys at a time through workgroup memory; each of its N_SG subgroups has TILE of the queries.
// A query's arithmetic does not depend on what else is in its block or batch.
override SG: u32 = 32u;     // lanes of a subgroup, at least TILE
override N_SG: u32 = 4u;    // subgroups
override GROUP: u32 = 1u;   // query heads per key-value head, at most N_SG · TILE
override N_D4: u32 = 16u;   // head_dim / 4
override CAUSAL: u32 = 1u;  // 0: queries see keys on both sides
override SINKS: u32 = 0u;   // 1: each head has a sink

// Derived sizes are overrides of their own: naga 30 does not accept every expression as the size of an array.
override LANES: u32 = SG * N_SG;
override N_T: u32 = (N_D4 + TILE - 1u) / TILE * 4u;   // tiles per head: 4, 8, 12 or 16, the last ones padded with zeros
override PITCH: u32 = N_T * TILE / 4u + 2u;           // vec4s per query, key or value in workgroup memory
override QS: u32 = N_SG * TILE * PITCH;
override KVS: u32 = N_K * PITCH;
override SCORES: u32 = N_SG * TILE * S_PITCH;
override PS: u32 = N_SG * TILE * P_PITCH;
override N_QUERIES: u32 = N_SG * TILE;
// vec4s of keys or values that a lane loads per step. The trip count is constant, so that compilers unroll the loop and
// issue all loads at once.
override KVS_A_LANE: u32 = (N_K * (PITCH - 2u) + LANES - 1u) / LANES;

const N_K: u32 = 32u; // keys per step, whole pairs of tiles
// Padding of two vec4<f16>, or one vec4f, puts the rows of a tile in different memory banks.
const S_PITCH: u32 = 9u;
const P_PITCH: u32 = 10u;
// Weights are at most e^LAG ≈ 148; the largest f16 is 65504.
const LAG: f32 = 5.0;

struct Params {
    n_kv_heads: u32,
    q_stride: u32,     // vec4s per row of q
    o_stride: u32,     // vec4s per row of o
    pages_stride: u32, // pages per sequence in the block table
    page_size: u32,    // positions per page
    window: u32,       // keys that a query sees if CAUSAL, else keys on each side of it; 0: all
    split_len: u32,    // not used: prompts are not split
    max_splits: u32,   // not used
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

var<workgroup> qs: array<vec4<f16>, QS>;      // [N_QUERIES, PITCH]
var<workgroup> kvs: array<vec4<f16>, KVS>;    // [N_K, PITCH], keys, then values
var<workgroup> slots: array<u32, N_K>;        // index in k and v of each key of this step
var<workgroup> scores: array<vec4f, SCORES>;  // [N_QUERIES, S_PITCH]; between steps one tile of sums per subgroup
var<workgroup> ps: array<vec4<f16>, PS>;      // [N_QUERIES, P_PITCH], weights
var<workgroup> factors: array<f32, N_QUERIES>; // for the sums so far; at the end 1 / sum of weights
var<workgroup> moved: atomic<u32>;            // 1: some factor is not one

const LOWEST: f32 = -3.4028234e38; // instead of minus infinity, which a WGSL compiler may assume away

// Clamped to the largest f16, so that nothing becomes infinite.
fn half4(e: vec4f) -> vec4<f16> {
    return vec4<f16>(clamp(e, vec4f(-65504.0), vec4f(65504.0)));
}

// The sums of four tiles of the head; a head has up to four such arrays. They are written out one by one: a compiler
// that does not unroll a loop over them would keep them in memory.
alias Sums = array<TileC, 4>;

fn values(at: u32, d: u32) -> TileB {
    return coopLoadT<TileB>(&kvs[at + d * TILE / 4u], PITCH);
}

// Adds the weights p times values.
fn add(sums: ptr<function, Sums>, p: TileA, at: u32, d: u32) {
    (*sums)[0] = coopMultiplyAdd(p, values(at, d), (*sums)[0]);
    (*sums)[1] = coopMultiplyAdd(p, values(at, d + 1u), (*sums)[1]);
    (*sums)[2] = coopMultiplyAdd(p, values(at, d + 2u), (*sums)[2]);
    (*sums)[3] = coopMultiplyAdd(p, values(at, d + 3u), (*sums)[3]);
}

// Multiplies by the factors of the subgroup's queries, through workgroup memory. All lanes must call it.
fn rescale_tile(sums: TileC, subgroup: u32, lane: u32) -> TileC {
    let own = subgroup * TILE;
    coopStoreT(sums, &scores[own * S_PITCH], S_PITCH);
    workgroupBarrier();
    for (var e = lane; e < TILE * TILE / 4u; e += SG) {
        let r = own + e / (TILE / 4u);
        scores[r * S_PITCH + e % (TILE / 4u)] *= factors[r];
    }
    workgroupBarrier();
    let tile = coopLoadT<TileC>(&scores[own * S_PITCH], S_PITCH);
    workgroupBarrier();
    return tile;
}

fn rescale(sums: ptr<function, Sums>, subgroup: u32, lane: u32) {
    (*sums)[0] = rescale_tile((*sums)[0], subgroup, lane);
    (*sums)[1] = rescale_tile((*sums)[1], subgroup, lane);
    (*sums)[2] = rescale_tile((*sums)[2], subgroup, lane);
    (*sums)[3] = rescale_tile((*sums)[3], subgroup, lane);
}

// Where the block's outputs go in o: first row, first head, number of queries.
struct Target { row: u32, head: u32, n_q: u32 }

// Writes tile d of the head, times the factors. All lanes must call it.
fn write_tile(sums: TileC, d: u32, to: Target, subgroup: u32, lane: u32) {
    let own = subgroup * TILE;
    coopStoreT(sums, &scores[own * S_PITCH], S_PITCH);
    workgroupBarrier();
    for (var e = lane; e < TILE * TILE / 4u; e += SG) {
        let qi = own + e / (TILE / 4u);
        let d4 = d * TILE / 4u + e % (TILE / 4u);
        if qi < to.n_q && d4 < N_D4 {
            let at = (to.row + qi / GROUP) * params.o_stride + (to.head + qi % GROUP) * N_D4 + d4;
            o[at] = scores[qi * S_PITCH + e % (TILE / 4u)] * factors[qi];
        }
    }
    workgroupBarrier();
}

fn write(sums: ptr<function, Sums>, d: u32, to: Target, subgroup: u32, lane: u32) {
    write_tile((*sums)[0], d, to, subgroup, lane);
    write_tile((*sums)[1], d + 1u, to, subgroup, lane);
    write_tile((*sums)[2], d + 2u, to, subgroup, lane);
    write_tile((*sums)[3], d + 3u, to, subgroup, lane);
}

@compute @workgroup_size(LANES)
fn attention_coop(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
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

    for (var e = lane; e < N_QUERIES * (PITCH - 2u); e += LANES) {
        let qi = e / (PITCH - 2u);
        let d4 = e % (PITCH - 2u);
        var query = vec4f();
        if qi < n_q && d4 < N_D4 {
            query = q[(block.x + qi / GROUP) * params.q_stride + (kv_head * GROUP + qi % GROUP) * N_D4 + d4];
        }
        qs[qi * PITCH + d4] = half4(query);
    }

    // For the softmax, each of a subgroup's first TILE lanes has one query.
    let own = subgroup * TILE;
    let qi = own + subgroup_lane;
    let seen = visible(pos0 + qi / GROUP, n_keys);
    let has_query = subgroup_lane < TILE && qi < n_q;
    var top = LOWEST;
    var weight = 0.0;
    var sums0: Sums;
    var sums1: Sums;
    var sums2: Sums;
    var sums3: Sums;

    // Steps start at multiples of N_K: a key's index in its step, and so the order of sums, depends only on its position.
    for (var t = start / N_K * N_K; t < end; t += N_K) {
        for (var i = lane; i < N_K; i += LANES) {
            let j = clamp(t + i, start, end - 1u);
            let page = pages[seq * params.pages_stride + j / params.page_size];
            slots[i] = ((page * params.n_kv_heads + kv_head) * params.page_size + j % params.page_size) * N_D4;
        }
        workgroupBarrier();
        if lane == 0u {
            atomicStore(&moved, 0u);
        }
        // Outside the range, the address is that of the first or last key, and zeros are stored.
        for (var n = 0u; n < KVS_A_LANE; n++) {
            let e = lane + n * LANES;
            let i = e / (PITCH - 2u);
            let d4 = e % (PITCH - 2u);
            let key = load_k(slots[i % N_K] + min(d4, N_D4 - 1u));
            let is_key = t + i >= start && t + i < end && d4 < N_D4;
            if i < N_K {
                kvs[i * PITCH + d4] = half4(select(vec4f(), key, is_key));
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < N_K; i += 2u * TILE) {
            var s0: TileC;
            var s1: TileC;
            for (var d = 0u; d < N_T; d++) {
                let queries = coopLoadT<TileA>(&qs[own * PITCH + d * TILE / 4u], PITCH);
                // Keys are stored by rows; the product takes their transpose.
                let k0 = coopLoad<TileB>(&kvs[i * PITCH + d * TILE / 4u], PITCH);
                let k1 = coopLoad<TileB>(&kvs[(i + TILE) * PITCH + d * TILE / 4u], PITCH);
                s0 = coopMultiplyAdd(queries, k0, s0);
                s1 = coopMultiplyAdd(queries, k1, s1);
            }
            coopStoreT(s0, &scores[own * S_PITCH + i / 4u], S_PITCH);
            coopStoreT(s1, &scores[own * S_PITCH + (i + TILE) / 4u], S_PITCH);
        }
        workgroupBarrier();
        for (var n = 0u; n < KVS_A_LANE; n++) {
            let e = lane + n * LANES;
            let i = e / (PITCH - 2u);
            let d4 = e % (PITCH - 2u);
            let value = load_v(slots[i % N_K] + min(d4, N_D4 - 1u));
            let is_key = t + i >= start && t + i < end && d4 < N_D4;
            if i < N_K {
                kvs[i * PITCH + d4] = half4(select(vec4f(), value, is_key));
            }
        }
        if subgroup_lane < TILE {
            var high = LOWEST;
            for (var i = 0u; i < N_K / 4u; i++) {
                var s = scores[qi * S_PITCH + i] * params.scale;
                if params.softcap > 0.0 {
                    s = params.softcap * tanh(clamp(s / params.softcap, vec4f(-15.0), vec4f(15.0)));
                }
                let j = vec4u(t + 4u * i) + vec4u(0u, 1u, 2u, 3u);
                let sees = j >= vec4u(seen.x) & j < vec4u(seen.y) & vec4<bool>(has_query);
                s = select(vec4f(LOWEST), s, sees);
                scores[qi * S_PITCH + i] = s;
                high = max(high, max(max(s.x, s.y), max(s.z, s.w)));
            }
            // Before the first visible key the sums are zero, and any score is higher.
            let lags = high > top && (top == LOWEST || high > top + LAG);
            let next = select(top, high, lags);
            let factor = select(1.0, exp(top - next), lags && top != LOWEST);
            top = next;
            var sum = vec4f();
            for (var i = 0u; i < N_K / 4u; i++) {
                let s = scores[qi * S_PITCH + i];
                let p = vec4<f16>(select(exp(s - top), vec4f(), s == vec4f(LOWEST)));
                ps[qi * P_PITCH + i] = p;
                sum += vec4f(p); // after rounding, so that the weights add up to one
            }
            weight = weight * factor + dot(sum, vec4f(1.0));
            factors[qi] = factor;
            if factor != 1.0 {
                atomicStore(&moved, 1u);
            }
        }
        workgroupBarrier();
        if atomicLoad(&moved) == 1u {
            rescale(&sums0, subgroup, subgroup_lane);
            if N_T > 4u {
                rescale(&sums1, subgroup, subgroup_lane);
            }
            if N_T > 8u {
                rescale(&sums2, subgroup, subgroup_lane);
            }
            if N_T > 12u {
                rescale(&sums3, subgroup, subgroup_lane);
            }
        }
        for (var i = 0u; i < N_K; i += TILE) {
            let p = coopLoadT<TileA>(&ps[own * P_PITCH + i / 4u], P_PITCH);
            let at = i * PITCH;
            add(&sums0, p, at, 0u);
            if N_T > 4u {
                add(&sums1, p, at, 4u);
            }
            if N_T > 8u {
                add(&sums2, p, at, 8u);
            }
            if N_T > 12u {
                add(&sums3, p, at, 12u);
            }
        }
    }

    if subgroup_lane < TILE {
        let total = weight + sink_weight(kv_head * GROUP + qi % GROUP, top);
        factors[qi] = select(0.0, 1.0 / total, has_query);
    }
    workgroupBarrier();
    let to = Target(block.x, kv_head * GROUP, n_q);
    write(&sums0, 0u, to, subgroup, subgroup_lane);
    if N_T > 4u {
        write(&sums1, 4u, to, subgroup, subgroup_lane);
    }
    if N_T > 8u {
        write(&sums2, 8u, to, subgroup, subgroup_lane);
    }
    if N_T > 12u {
        write(&sums3, 12u, to, subgroup, subgroup_lane);
    }
}
