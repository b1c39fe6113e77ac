// qkv: s[r] = w·x̂[r] + (b if BIAS), the queries, keys and values of row r; x̂ = x, or its RMS norm if NORM. Queries and
// keys are rotated as in rope_append; queries go to q, keys and values to the cache. For few rows, which share one read
// of w. (u, v) → (u·cos a − v·sin a, v·cos a + u·sin a) for the pair (i, i + n_rot/2), or (2i, 2i + 1) if INTERLEAVED
// (Su et al. 2021, eq. 34). If TEMPERED, queries are multiplied as in rope_append.
// One workgroup: N_ROWS rows of its lanes' quads; a quad is two pairs of dimensions of one head.
override BIAS: u32 = 0u;
override INTERLEAVED: u32 = 0u;
override TEMPERED: u32 = 0u;

struct Params {
    row0: u32,         // first row
    n_rows: u32,       // rows in total
    n_in: u32,         // inputs
    n_blocks: u32,     // blocks of 32 inputs; the padding of x and w is zero
    x_stride: u32,     // vec4s per row of x
    w_stride: u32,     // 16-byte words per row of w
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,     // a multiple of 4
    n_rot: u32,        // rotated dimensions, a multiple of 4, at most head_dim; 0: none
    q_stride: u32,     // vec2s per row of q
    pages_stride: u32, // pages per sequence in the block table
    page_size: u32,    // positions per page
    eps: f32,          // of the norm
    offset: f32,       // added to g
    original: u32,     // positions, and the factor of the logarithm, if TEMPERED
    beta: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Four>;         // [row0 + n_rows, n_in]
@group(0) @binding(2) var<storage, read> g: array<Four>;         // [n_in], read if NORM
@group(0) @binding(3) var<storage, read> w: array<Word>;         // [(n_heads + 2·n_kv_heads)·head_dim, w_stride]
@group(0) @binding(4) var<storage, read> b: array<f32>;          // [(n_heads + 2·n_kv_heads)·head_dim], read if BIAS
@group(0) @binding(5) var<storage, read> rows: array<vec2u>;     // [row0 + n_rows] (sequence, position)
@group(0) @binding(6) var<storage, read> pages: array<u32>;      // [n_seqs, pages_stride]
@group(0) @binding(7) var<storage, read> cos_sin: array<vec2f>;  // [max positions, n_rot / 2]
@group(0) @binding(8) var<storage, read_write> q: array<vec2f>;  // [row0 + n_rows, n_heads, head_dim]
@group(0) @binding(9) var<storage, read_write> k: array<Kv>;     // [n_pages, n_kv_heads, page_size, head_dim / 2]
@group(0) @binding(10) var<storage, read_write> v: array<Kv>;    // [n_pages, n_kv_heads, page_size, head_dim / 2]

// The row of x that row r reads; beyond the last one, the last.
fn input_row(r: u32) -> u32 {
    return params.row0 + min(r, params.n_rows - 1u);
}

// The pair p, rotated by the angle with cosine cs.x and sine cs.y.
fn turned(p: vec2f, cs: vec2f) -> vec2f {
    return vec2f(p.x * cs.x - p.y * cs.y, p.y * cs.x + p.x * cs.y);
}

// Rotates one row's sums, quad t of head h with dimensions `d`, and writes them to q or the cache.
fn finish(r: u32, h: u32, t: u32, is_rotated: bool, d: vec2u, own: vec4f) {
    let row = params.row0 + r;
    let seq = rows[row].x;
    let pos = rows[row].y;
    var s = own;
    if BIAS == 1u {
        let o = h * params.head_dim + d;
        s += vec4f(b[o.x], b[o.x + 1u], b[o.y], b[o.y + 1u]);
    }
    // Dimensions that are not rotated get the angle zero.
    let angles = pos * (params.n_rot / 2u) + 2u * t;
    let none = vec2f(1.0, 0.0);
    let c0 = select(none, cos_sin[angles], is_rotated);
    let c1 = select(none, cos_sin[angles + 1u], is_rotated);
    if INTERLEAVED == 1u {
        s = vec4f(turned(s.xy, c0), turned(s.zw, c1));
    } else if params.n_rot > 0u {
        let first = turned(s.xz, c0);
        let second = turned(s.yw, c1);
        s = vec4f(first.x, second.x, first.y, second.y);
    }
    let pair = d / 2u;
    if h < params.n_heads {
        if TEMPERED == 1u {
            s *= 1.0 + params.beta * log(1.0 + f32(pos / params.original));
        }
        let at = row * params.q_stride + h * params.head_dim / 2u;
        q[at + pair.x] = s.xy;
        q[at + pair.y] = s.zw;
    } else {
        let page = pages[seq * params.pages_stride + pos / params.page_size];
        let place = (page * params.n_kv_heads + (h - params.n_heads) % params.n_kv_heads) * params.page_size;
        let at = (place + pos % params.page_size) * params.head_dim / 2u + pair;
        if h < params.n_heads + params.n_kv_heads {
            k[at.x] = kv_pair(s.xy);
            k[at.y] = kv_pair(s.zw);
        } else {
            v[at.x] = kv_pair(s.xy);
            v[at.y] = kv_pair(s.zw);
        }
    }
}

@compute @workgroup_size(WG)
fn qkv(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let quads = params.head_dim / 4u; // per head
    let n_quads = (params.n_heads + 2u * params.n_kv_heads) * quads;
    let group = id.y + id.z * n.y;
    if quad(group, 0u) >= n_quads {
        return;
    }
    let r0 = id.x * N_ROWS;
    let own = min(quad(group, lane), n_quads - 1u);
    let h = own / quads;
    let t = own % quads;
    let is_rotated = 4u * t < params.n_rot && h < params.n_heads + params.n_kv_heads;
    // Two pairs of neighbouring dimensions: adjacent, or n_rot/2 apart.
    var d = vec2u(4u * t, 4u * t + 2u);
    if is_rotated && INTERLEAVED == 0u {
        d = vec2u(2u * t, 2u * t + params.n_rot / 2u);
    }
    let o = h * params.head_dim + d;
    multiply(r0, vec4u(o.x, o.x + 1u, o.y, o.y + 1u) * params.w_stride, lane);
    for (var i = 0u; i < LANE_ROWS; i++) {
        let r = lane_row(i, lane);
        if r < N_ROWS && r0 + r < params.n_rows && quad(group, lane) < n_quads {
            finish(r0 + r, h, t, is_rotated, d, sums(r));
        }
    }
}
