// fill_normal: w[r, c] = mean + scale · z(r, c) with z approximately standard normal: the sum of four random bytes
// minus its mean 510, divided by its standard deviation (central limit theorem; |z| < 3.5). The bytes are a hash of
// (seed, r, c), so that an element does not depend on its neighbours.
// One invocation: 16 bytes of one row, 4 or 8 elements; the padding of a row becomes zero.
override WG: u32 = 64u;
override TYPE: u32 = 0u; // 0: F32, 1: F16, 2: BF16

struct Params {
    seed: u32,
    row0: u32,   // first row of this range
    n_rows: u32, // rows of this range
    n_cols: u32,
    stride: u32, // vec4s per row
    mean: f32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> w: array<vec4<u32>>; // [n_rows, stride] packed

// The hash pcg4d of Jarzynski & Olano 2020 on four words.
fn pcg4d(words: vec4u) -> vec4u {
    var v = words * 1664525u + 1013904223u;
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v ^= v >> vec4u(16u);
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    return v;
}

// Elements 4i … 4i+3 of row r; zero beyond the last column.
fn normal4(r: u32, i: u32) -> vec4f {
    let bits = pcg4d(vec4u(params.seed, r, i, 0u));
    let byte = vec4u(0xffu);
    let sum = (bits & byte) + ((bits >> vec4u(8u)) & byte) + ((bits >> vec4u(16u)) & byte) + (bits >> vec4u(24u));
    // The variance of a byte is (256² − 1) / 12.
    let z = (vec4f(sum) - 510.0) * (1.0 / 147.80054);
    let there = vec4u(4u * i) + vec4u(0u, 1u, 2u, 3u) < vec4u(params.n_cols);
    return select(vec4f(), params.mean + params.scale * z, there);
}

// Two BF16 in a word, rounded to nearest, ties to even.
fn pack_bf16(v: vec2f) -> u32 {
    let bits = bitcast<vec2u>(v);
    let rounded = (bits + 0x7fffu + ((bits >> vec2u(16u)) & vec2u(1u))) >> vec2u(16u);
    return rounded.x | (rounded.y << 16u);
}

@compute @workgroup_size(WG)
fn fill_normal(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let at = id.x + id.y * n.x * WG;
    if at >= params.n_rows * params.stride {
        return;
    }
    let r = params.row0 + at / params.stride;
    let i = at % params.stride;
    if TYPE == 0u {
        w[at] = bitcast<vec4u>(normal4(r, i));
        return;
    }
    let a = normal4(r, 2u * i);
    let b = normal4(r, 2u * i + 1u);
    if TYPE == 1u {
        w[at] = vec4u(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
    } else {
        w[at] = vec4u(pack_bf16(a.xy), pack_bf16(a.zw), pack_bf16(b.xy), pack_bf16(b.zw));
    }
}
