// attention_weights: p[r, j] = softmax_j(scale · q[r, h, :]·k_j) over all keys j of the row's sequence, for one head h:
// the weights of attention, for alignment (word timestamps).
// One workgroup: one row.
override WG: u32 = 64u;
override GROUP: u32 = 1u;   // query heads per key-value head
override N_D4: u32 = 16u;   // head_dim / 4

struct Params {
    row0: u32,         // first row of the batch
    n_rows: u32,
    n_kv_heads: u32,
    head: u32,
    q_stride: u32,     // vec4s per row of q
    p_stride: u32,     // elements per row of p
    p_first: u32,      // element of p's row where the first weight goes
    pages_stride: u32, // pages per sequence in the block table
    page_size: u32,    // positions per page
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;     // (sequence, position)
@group(0) @binding(2) var<storage, read> pages: array<u32>;      // [n_seqs, pages_stride]
@group(0) @binding(3) var<storage, read> ends: array<u32>;       // [n_seqs] keys
@group(0) @binding(4) var<storage, read> q: array<vec4f>;        // [rows, n_heads, N_D4]
@group(0) @binding(5) var<storage, read> k: array<Kv>;           // [n_pages, n_kv_heads, page_size, N_D4]
@group(0) @binding(6) var<storage, read> v: array<Kv>;           // not used, but the part `kv_*` names it
@group(0) @binding(7) var<storage, read_write> p: array<f32>;    // [rows, p_stride]

@compute @workgroup_size(WG)
fn attention_weights(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let i = id.x + id.y * n.x;
    if i >= params.n_rows {
        return;
    }
    let r = params.row0 + i;
    let seq = rows[r].x;
    let n_keys = ends[seq];
    let query = r * params.q_stride + params.head * N_D4;
    let to = r * params.p_stride + params.p_first;
    var top = -3.4028234e38;
    for (var j = lane; j < n_keys; j += WG) {
        let page = pages[seq * params.pages_stride + j / params.page_size];
        let at = ((page * params.n_kv_heads + params.head / GROUP) * params.page_size + j % params.page_size) * N_D4;
        var sum = vec4f();
        for (var d = 0u; d < N_D4; d++) {
            sum += q[query + d] * load_k(at + d);
        }
        let score = params.scale * dot(sum, vec4f(1.0));
        p[to + j] = score;
        top = max(top, score);
    }
    top = reduce_best(top, lane, lane).value;
    var sum = 0.0;
    for (var j = lane; j < n_keys; j += WG) {
        // No barrier: each lane reads only what it wrote.
        let weight = exp(p[to + j] - top);
        p[to + j] = weight;
        sum += weight;
    }
    sum = reduce_sum(sum, lane);
    for (var j = lane; j < n_keys; j += WG) {
        p[to + j] /= sum;
    }
}
