// quantize: y[r] = the quantised row nearest to w[r], by ggml's rules for the type of the part (`quantize_*`), in the
// layout that `weights_*` reads: the words of all blocks of 32, then a head for each superblock of 256.
// One invocation: one superblock of one row.
override WG: u32 = 64u;

struct Params {
    n_rows: u32,
    n_blocks: u32, // blocks of 32 in a row; the padding of w is zero
    w_stride: u32, // 16-byte words per row of w
    y_stride: u32, // 16-byte words per row of y
    y0: u32,       // first row of y
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> w: array<Word>;             // [n_rows, w_stride]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<u32>>;  // [y0 + n_rows, y_stride]

fn load_block(row: u32, b: u32) -> array<vec4f, 8> {
    var values: array<vec4f, 8>;
    for (var i = 0u; i < 8u / W_VEC4; i++) {
        let packed = load_word(row, b * (8u / W_VEC4) + i);
        for (var k = 0u; k < W_VEC4; k++) {
            values[i * W_VEC4 + k] = unpack(packed, vec3<u32>(), k, vec4f());
        }
    }
    return values;
}

@compute @workgroup_size(WG)
fn quantize(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let n_super = (params.n_blocks + 7u) / 8u;
    let item = id.x + id.y * n.x * WG;
    if item >= params.n_rows * n_super {
        return;
    }
    let r = item / n_super;
    let s = item % n_super;
    let from_row = r * params.w_stride;
    let to_row = (params.y0 + r) * params.y_stride;
    let n_here = min(8u, params.n_blocks - 8u * s);
    var measured: array<vec2f, 8>;
    for (var b = 0u; b < n_here; b++) {
        measured[b] = measure(load_block(from_row, 8u * s + b));
    }
    let head = pack_head(measured);
    y[to_row + params.n_blocks * BLOCK_WORDS + s] = head;
    for (var b = 0u; b < n_here; b++) {
        var words = pack_block(load_block(from_row, 8u * s + b), b, measured[b], head);
        for (var i = 0u; i < BLOCK_WORDS; i++) {
            y[to_row + (8u * s + b) * BLOCK_WORDS + i] = words[i];
        }
    }
}
