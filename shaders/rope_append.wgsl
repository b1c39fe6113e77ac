// rope_append: rotates queries and keys and appends keys and values to their pages.
// With angle a = pos · f_i (Su et al. 2021, eq. 34), for the pair (u, v) of rotated dimensions:
// u' = u·cos a − v·sin a,  v' = v·cos a + u·sin a; the pair is (i, i + n_rot/2), or (2i, 2i + 1) if
// INTERLEAVED, which is the paper's. Dimensions from n_rot on, and values, pass unchanged.
// One invocation: four dimensions of one head of one row.
override WG: u32 = 64u;
override INTERLEAVED: u32 = 0u;

struct Params {
    n_rows: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,     // a multiple of 4
    n_rot: u32,        // rotated dimensions, even, at most head_dim; 0: none
    x_stride: u32,     // elements a row of x
    q_stride: u32,     // vec4 a row of q
    pages_stride: u32, // pages a sequence in the block table
    page_size: u32,    // positions a page
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;      // [n_rows] (sequence, position)
@group(0) @binding(2) var<storage, read> pages: array<u32>;       // [n_seqs, pages_stride]
@group(0) @binding(3) var<storage, read> x: array<f32>;           // [n_rows, n_heads + 2·n_kv_heads, head_dim]
@group(0) @binding(4) var<storage, read> cos_sin: array<vec2f>;   // [max positions, n_rot / 2]
@group(0) @binding(5) var<storage, read_write> q: array<vec4f>;   // [n_rows, n_heads, head_dim]
@group(0) @binding(6) var<storage, read_write> k: array<Kv4>;     // [n_pages, n_kv_heads, page_size, head_dim / 4]
@group(0) @binding(7) var<storage, read_write> v: array<Kv4>;     // [n_pages, n_kv_heads, page_size, head_dim / 4]

@compute @workgroup_size(WG)
fn rope_append(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let n4 = params.head_dim / 4u;
    let a_row = (params.n_heads + 2u * params.n_kv_heads) * n4;
    let item = id.x + id.y * n.x * WG;
    if item >= params.n_rows * a_row {
        return;
    }
    let r = item / a_row;
    let h = item % a_row / n4;
    let d4 = item % n4;
    let seq = rows[r].x;
    let pos = rows[r].y;
    let base = r * params.x_stride + h * params.head_dim;
    var out: vec4f;
    for (var c = 0u; c < 4u; c++) {
        let d = 4u * d4 + c;
        var value = x[base + d];
        if d < params.n_rot && h < params.n_heads + params.n_kv_heads {
            let half = params.n_rot / 2u;
            var i = d % half;
            var first = d < half;
            var partner = select(d - half, d + half, first);
            if INTERLEAVED == 1u {
                i = d / 2u;
                first = d % 2u == 0u;
                partner = select(d - 1u, d + 1u, first);
            }
            let cs = cos_sin[pos * half + i];
            let other = x[base + partner];
            value = value * cs.x + select(other, -other, first) * cs.y;
        }
        out[c] = value;
    }
    if h < params.n_heads {
        q[r * params.q_stride + h * n4 + d4] = out;
        return;
    }
    let page = pages[seq * params.pages_stride + pos / params.page_size];
    let kv_head = (h - params.n_heads) % params.n_kv_heads;
    let at = ((page * params.n_kv_heads + kv_head) * params.page_size + pos % params.page_size) * n4 + d4;
    if h < params.n_heads + params.n_kv_heads {
        k[at] = kv_pack(out);
    } else {
        v[at] = kv_pack(out);
    }
}
