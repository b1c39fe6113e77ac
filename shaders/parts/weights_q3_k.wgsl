// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q3_K: d·(s − 32)·(q − 4) with a 6-bit s for each half of a block. First the lower two bits of all q, then the third, then
// twelve bytes with sixteen s for each eight blocks as ggml packs them (ggml-quants.c, dequantize_row_q3_K), then an F16 d
// for each eight.
const W_VEC4: u32 = 8u;
const HEAD_BLOCKS: u32 = 8u;
const FITS_F16: bool = false;

struct Head {
    scales: vec3<u32>,
    d: f32,
}

fn load_word(row: u32, i: u32) -> vec4<u32> {
    return vec4<u32>();
}

fn load_bits(row: u32, i: u32) -> vec3<u32> {
    return vec3<u32>(pair(2u * row + i), number(4u * (row + (params.n_blocks + 1u) / 2u) + i));
}

fn load_head(row: u32, i: u32) -> Head {
    let s = i / 8u;
    let heads = row + (params.n_blocks + 1u) / 2u + (params.n_blocks + 3u) / 4u;
    let factors = heads + (3u * ((params.n_blocks + 7u) / 8u) + 3u) / 4u;
    let at = 4u * heads + 3u * s;
    let scales = vec3<u32>(number(at), number(at + 1u), number(at + 2u));
    return Head(scales, unpack2x16float(number(4u * factors + s / 2u) >> (16u * (s % 2u))).x);
}

// The factor, and the term to subtract, of each half.
fn scale(head: Head, i: u32) -> vec4f {
    let b = i % 8u;
    let odd = 16u * (b % 2u);
    let low = (select(head.scales.x, head.scales.y, b / 2u % 2u == 1u) >> (odd + 4u * (b / 4u))) & 0x0f0fu;
    let high = ((head.scales.z >> (odd + b / 2u * 2u)) & 0x0303u) << 4u;
    let s = head.d * (vec2f(unpack4xU8(low | high).xy) - 32.0);
    return vec4f(s.x, 4.0 * s.x, s.y, 4.0 * s.y);
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let low = (bits[k % 2u] >> (k / 2u * 2u)) & 0x03030303u;
    let third = ((bits.z >> k) & 0x01010101u) << 2u;
    let s = select(scale.xy, scale.zw, k >= 4u);
    return vec4f(unpack4xU8(low | third)) * s.x - s.y;
}
