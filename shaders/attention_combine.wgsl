// attention_combine: joins the partial sums of attention's splits.
// o[r, h, :] = Σ_s e^(m_s − m) a_s / Σ_s e^(m_s − m) l_s with m = max_s m_s.
// One invocation: four dimensions of one head of one row.
override WG: u32 = 64u;
override N_D4: u32 = 16u;  // head_dim / 4
override CAUSAL: u32 = 1u; // 0: queries see keys on both sides

struct Params {
    n_rows: u32,
    n_heads: u32,
    o_stride: u32,   // vec4s per row of o
    split_len: u32,  // keys per split
    max_splits: u32, // splits that fit in partial
    window: u32,     // keys that a query sees if CAUSAL, else keys on each side of it; 0: all
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;     // [n_rows] (sequence, position)
@group(0) @binding(2) var<storage, read> ends: array<u32>;       // [n_seqs] keys, if not CAUSAL
@group(0) @binding(3) var<storage, read> partial: array<vec4f>;  // [n_rows, n_heads, max_splits, N_D4 + 1]
@group(0) @binding(4) var<storage, read_write> o: array<vec4f>;  // [n_rows, n_heads, N_D4]

@compute @workgroup_size(WG)
fn attention_combine(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let item = id.x + id.y * n.x * WG;
    if item >= params.n_rows * params.n_heads * N_D4 {
        return;
    }
    let d4 = item % N_D4;
    let head = item / N_D4 % params.n_heads;
    let r = item / N_D4 / params.n_heads;
    let seen = visible(rows[r].y, key_count(rows[r].x));
    let first = seen.x / params.split_len;
    let last = (seen.y - 1u) / params.split_len;
    let base = (r * params.n_heads + head) * params.max_splits;
    var top = -3.4028234e38;
    for (var s = first; s <= last; s++) {
        top = max(top, partial[(base + s) * (N_D4 + 1u) + N_D4].x);
    }
    var sum = vec4f();
    var weight = 0.0;
    for (var s = first; s <= last; s++) {
        let at = (base + s) * (N_D4 + 1u);
        let part = partial[at + N_D4];
        let factor = select(exp(part.x - top), 1.0, part.x == top);
        sum += factor * partial[at + d4];
        weight += factor * part.y;
    }
    o[r * params.o_stride + head * N_D4 + d4] = sum / weight;
}
