// rope_append: rotates queries and keys and appends keys and values to their pages.
// With angle a = pos · f_i (Su et al. 2021, eq. 34), for the pair (u, v) of rotated dimensions:
// u' = u·cos a − v·sin a,  v' = v·cos a + u·sin a; the pair is (i, i + n_rot/2), or (2i, 2i + 1) if
// INTERLEAVED, as in the paper. Dimensions from n_rot on, and values, pass unchanged. If TEMPERED, queries are multiplied
// by 1 + beta · ln(1 + ⌊pos / original⌋) (transformers' modeling_ministral3.py, get_llama_4_attn_scale).
// One invocation: 4·KV_VEC4 dimensions of one head of one row, from row0 on.
override WG: u32 = 64u;
override INTERLEAVED: u32 = 0u;
override ROTATES: u32 = 1u; // 0 if n_rot is 0
override TEMPERED: u32 = 0u;

struct Params {
    row0: u32,
    n_rows: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,     // a multiple of 4·KV_VEC4
    n_rot: u32,        // rotated dimensions, even, at most head_dim; 0: none
    x_stride: u32,     // elements per row of x
    q_stride: u32,     // vec4s per row of q
    pages_stride: u32, // pages per sequence in the block table
    page_size: u32,    // positions per page
    original: u32,     // positions, and the factor of the logarithm, if TEMPERED
    beta: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;      // [n_rows] (sequence, position)
@group(0) @binding(2) var<storage, read> pages: array<u32>;       // [n_seqs, pages_stride]
@group(0) @binding(3) var<storage, read> x: array<f32>;           // [n_rows, n_heads + 2·n_kv_heads, head_dim]
@group(0) @binding(4) var<storage, read> cos_sin: array<vec2f>;   // [max positions, n_rot / 2]
@group(0) @binding(5) var<storage, read_write> q: array<vec4f>;   // [n_rows, n_heads, head_dim]
@group(0) @binding(6) var<storage, read_write> k: array<Kv>;      // [n_pages, n_kv_heads, page_size, head_dim / 4]
@group(0) @binding(7) var<storage, read_write> v: array<Kv>;      // [n_pages, n_kv_heads, page_size, head_dim / 4]

@compute @workgroup_size(WG)
fn rope_append(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let n4 = params.head_dim / 4u;
    let a_row = (params.n_heads + 2u * params.n_kv_heads) * n4 / KV_VEC4;
    let item = id.x + id.y * n.x * WG;
    if item >= params.n_rows * a_row {
        return;
    }
    let r = params.row0 + item / a_row;
    let first = item % a_row * KV_VEC4; // in vec4s from the start of the row
    let h = first / n4;
    let seq = rows[r].x;
    let pos = rows[r].y;
    let base = r * params.x_stride + h * params.head_dim;
    var out: array<vec4f, KV_VEC4>;
    for (var j = 0u; j < KV_VEC4; j++) {
        for (var c = 0u; c < 4u; c++) {
            let d = 4u * (first % n4 + j) + c;
            var value = x[base + d];
            if ROTATES == 1u && d < params.n_rot && h < params.n_heads + params.n_kv_heads {
                let half = params.n_rot / 2u;
                var i = d % half;
                var is_first = d < half;
                var partner = select(d - half, d + half, is_first);
                if INTERLEAVED == 1u {
                    i = d / 2u;
                    is_first = d % 2u == 0u;
                    partner = select(d - 1u, d + 1u, is_first);
                }
                let cs = cos_sin[pos * half + i];
                let other = x[base + partner];
                value = value * cs.x + select(other, -other, is_first) * cs.y;
            }
            out[j][c] = value;
        }
    }
    if h < params.n_heads {
        for (var j = 0u; j < KV_VEC4; j++) {
            var own = out[j];
            if TEMPERED == 1u {
                own *= 1.0 + params.beta * log(1.0 + f32(pos / params.original));
            }
            q[r * params.q_stride + first + j] = own;
        }
        return;
    }
    let page = pages[seq * params.pages_stride + pos / params.page_size];
    let kv_head = (h - params.n_heads) % params.n_kv_heads;
    let at = ((page * params.n_kv_heads + kv_head) * params.page_size + pos % params.page_size) * n4 + first % n4;
    if h < params.n_heads + params.n_kv_heads {
        append_k(at, out);
    } else {
        append_v(at, out);
    }
}
