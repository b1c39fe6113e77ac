// head_norm: RMS norm of each query and key head, or of all of them together, in place in the joint projection.
// x[r, g, :] = x[r, g, :] / sqrt(mean(x[r, g, :]²) + eps) · (g < n_q ? q_w : k_w)
// where the groups g are the heads, or all query heads and all key heads.
// One workgroup: one group of one row. The value heads, which come last, do not change.
override WG: u32 = 64u;

struct Params {
    n_rows: u32,
    n_q: u32,    // groups of queries
    n_k: u32,    // groups of keys
    q_n4: u32,   // vec4s per group of queries
    k_n4: u32,
    stride: u32, // vec4s per row
    eps: f32,
    offset: f32, // added to the weights
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_w: array<vec4f>;      // [q_n4]
@group(0) @binding(2) var<storage, read> k_w: array<vec4f>;      // [k_n4]
@group(0) @binding(3) var<storage, read_write> x: array<vec4f>;  // [n_rows, n_q·q_n4 + 2·n_k·k_n4]

@compute @workgroup_size(WG)
fn head_norm(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let n_normed = params.n_q + params.n_k;
    let item = id.x + id.y * n.x;
    if item >= params.n_rows * n_normed {
        return;
    }
    let g = item % n_normed;
    let is_query = g < params.n_q;
    let n4 = select(params.k_n4, params.q_n4, is_query);
    let before = min(g, params.n_q) * params.q_n4 + (g - min(g, params.n_q)) * params.k_n4;
    let base = item / n_normed * params.stride + before;
    var sum = 0.0;
    for (var i = lane; i < n4; i += WG) {
        sum += dot(x[base + i], x[base + i]);
    }
    let scale = inverseSqrt(reduce_sum(sum, lane) / f32(4u * n4) + params.eps);
    for (var i = lane; i < n4; i += WG) {
        var weight: vec4f;
        if is_query {
            weight = q_w[i];
        } else {
            weight = k_w[i];
        }
        x[base + i] = x[base + i] * scale * (weight + params.offset);
    }
}
