// embed: x[r, :] = (x[r, :] if ADD) + scale · table[t, :] with the index t chosen by LOOKUP:
//   0 the token at the row's sequence and position; 1 offset + the row's position; 2 offset.
// One workgroup: one row. The table may be split into several ranges of rows, with one dispatch for each. A dispatch
// writes the rows whose t lies in its range; the first one also writes zeros where t is beyond the whole table.
override WG: u32 = 64u;
override ADD: u32 = 0u;
override LOOKUP: u32 = 0u;

struct Params {
    n_rows: u32,
    n_blocks: u32,      // blocks of 32 columns in a row of the table and of x
    w_stride: u32,      // 16-byte words per row of the table
    tokens_stride: u32, // tokens per sequence
    first: u32,         // first table row of this range
    n_range: u32,       // table rows in this range
    n_table: u32,       // table rows in total
    offset: u32,        // read if LOOKUP
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;     // [n_rows] (sequence, position)
@group(0) @binding(2) var<storage, read> tokens: array<u32>;     // [n_seqs, tokens_stride]
@group(0) @binding(3) var<storage, read> w: array<Word>;         // [n_range, w_stride]
@group(0) @binding(4) var<storage, read_write> x: array<vec4f>;  // [n_rows, 32·n_blocks]

@compute @workgroup_size(WG)
fn embed(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    let row = rows[r];
    var t = params.offset;
    if LOOKUP == 0u {
        t = tokens[row.x * params.tokens_stride + row.y];
    } else if LOOKUP == 1u {
        t += row.y;
    }
    let outside = t >= params.n_table;
    if outside && params.first > 0u {
        return;
    }
    if !outside && (t < params.first || t >= params.first + params.n_range) {
        return;
    }
    for (var i = lane; i < params.n_blocks * (8u / W_VEC4); i += WG) {
        var packed = vec4<u32>();
        var bits = vec3<u32>();
        var scales = vec4f();
        if !outside {
            let row = (t - params.first) * params.w_stride;
            packed = load_word(row, i);
            bits = load_bits(row, i);
            scales = scale(load_head(row, i), i);
        }
        for (var k = 0u; k < W_VEC4; k++) {
            let at = 8u * params.n_blocks * r + W_VEC4 * i + k;
            var value = unpack(packed, bits, k, scales) * params.scale;
            if ADD == 1u {
                value += x[at];
            }
            x[at] = value;
        }
    }
}
