// head_norm: RMS norm of each query and key head, in place in the joint projection.
// x[r, h, :] = x[r, h, :] / sqrt(mean(x[r, h, :]²) + eps) · (h < n_heads ? q_w : k_w)
// One workgroup: one head of one row. The value heads, which come last, do not change.
override WG: u32 = 64u;

struct Params {
    n_rows: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32, // a multiple of 4
    stride: u32,   // vec4s per row
    eps: f32,
    offset: f32,   // added to the weights
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q_w: array<vec4f>;      // [head_dim]
@group(0) @binding(2) var<storage, read> k_w: array<vec4f>;      // [head_dim]
@group(0) @binding(3) var<storage, read_write> x: array<vec4f>;  // [n_rows, n_heads + 2·n_kv_heads, head_dim]

@compute @workgroup_size(WG)
fn head_norm(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let n_normed = params.n_heads + params.n_kv_heads;
    let item = id.x + id.y * n.x;
    if item >= params.n_rows * n_normed {
        return;
    }
    let h = item % n_normed;
    let n4 = params.head_dim / 4u;
    let base = item / n_normed * params.stride + h * n4;
    var sum = 0.0;
    for (var i = lane; i < n4; i += WG) {
        sum += dot(x[base + i], x[base + i]);
    }
    let scale = inverseSqrt(reduce_sum(sum, lane) / f32(params.head_dim) + params.eps);
    for (var i = lane; i < n4; i += WG) {
        let weight = select(k_w[i], q_w[i], h < params.n_heads);
        x[base + i] = x[base + i] * scale * (weight + params.offset);
    }
}
