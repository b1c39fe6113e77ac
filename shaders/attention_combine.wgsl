// attention_combine: joins the partial sums of attention's splits.
// o[r, h, :] = Σ_s e^(m_s − m) a_s / (Σ_s e^(m_s − m) l_s + sink) with m = max_s m_s; sink = e^(sink_h − m) if heads have
// sinks, else 0.
// One workgroup: one head of one row. SHARES groups of lanes share its splits. Splits that a row lacks have the factor
// zero, so that loops have constant bounds and all loads of a lane are in flight at once.
override WG: u32 = 64u;
override N_D4: u32 = 16u;    // head_dim / 4
override N_SPLITS: u32 = 8u; // splits that fit in partial
override SHARES: u32 = 4u;   // WG / N_D4, and at least 1
override CAUSAL: u32 = 1u;   // 0: queries see keys on both sides
override SINKS: u32 = 0u;    // 1: each head has a sink

override TURNS: u32 = (N_SPLITS + SHARES - 1u) / SHARES; // splits per lane
override SPLITS: u32 = TURNS * SHARES;
override SUMS: u32 = SHARES * N_D4;

struct Params {
    n_rows: u32,
    n_heads: u32,
    o_stride: u32,  // vec4s per row of o
    split_len: u32, // keys per split
    window: u32,    // keys that a query sees if CAUSAL, else keys on each side of it; 0: all
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;     // [n_rows] (sequence, position)
@group(0) @binding(2) var<storage, read> ends_or_sinks: array<u32>; // see part visible
@group(0) @binding(3) var<storage, read> partial: array<vec4f>;  // [n_rows, n_heads, N_SPLITS, N_D4 + 1]
@group(0) @binding(4) var<storage, read_write> o: array<vec4f>;  // [n_rows, n_heads, N_D4]

var<workgroup> tops: array<f32, SPLITS>;
var<workgroup> weights: array<f32, SPLITS>;
var<workgroup> factors: array<f32, SPLITS>;
var<workgroup> sums: array<vec4f, SUMS>;

const LOWEST: f32 = -3.4028234e38; // instead of minus infinity, which a WGSL compiler may assume away

@compute @workgroup_size(WG)
fn attention_combine(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let item = id.x + id.y * n.x;
    if item >= params.n_rows * params.n_heads {
        return;
    }
    let r = item / params.n_heads;
    let head = item % params.n_heads;
    let seen = visible(rows[r].y, key_count(rows[r].x));
    let first = seen.x / params.split_len;
    let n_own = (seen.y - 1u) / params.split_len + 1u - first;
    let base = (item * N_SPLITS + first) * (N_D4 + 1u);
    for (var s = lane; s < SPLITS; s += WG) {
        let part = partial[base + min(s, n_own - 1u) * (N_D4 + 1u) + N_D4];
        tops[s] = select(LOWEST, part.x, s < n_own);
        weights[s] = select(0.0, part.y, s < n_own);
    }
    workgroupBarrier();
    var top = LOWEST;
    for (var s = 0u; s < SPLITS; s++) {
        top = max(top, tops[s]);
    }
    for (var s = lane; s < SPLITS; s += WG) {
        // The factor of the highest maximum is exactly one: a row with one split is as if it were not split.
        let factor = select(exp(tops[s] - top), 1.0, tops[s] == top);
        factors[s] = select(0.0, factor, s < n_own);
    }
    workgroupBarrier();
    var weight = 0.0;
    for (var s = 0u; s < SPLITS; s++) {
        weight += factors[s] * weights[s];
    }
    weight += sink_weight(head, top);
    let share = min(lane / N_D4, SHARES - 1u);
    for (var d0 = 0u; d0 < N_D4; d0 += WG) {
        let d4 = min(d0 + lane % N_D4, N_D4 - 1u);
        var sum = vec4f();
        for (var i = 0u; i < TURNS; i++) {
            let s = share + i * SHARES;
            sum += factors[s] * partial[base + min(s, n_own - 1u) * (N_D4 + 1u) + d4];
        }
        if lane < SUMS && d0 + lane % N_D4 < N_D4 {
            sums[share * N_D4 + d4] = sum;
        }
        workgroupBarrier();
        if lane < N_D4 && d0 + lane < N_D4 {
            var all = vec4f();
            for (var i = 0u; i < SHARES; i++) {
                all += sums[i * N_D4 + d4];
            }
            o[r * params.o_stride + head * N_D4 + d4] = all / weight;
        }
        workgroupBarrier();
    }
}
