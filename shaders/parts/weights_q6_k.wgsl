// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q6_K: d·s·(q − 32) with a signed byte s for each half of a block. The low nibbles of q in the order of `weights_q4_0`, then
// the upper two bits, then sixteen s for each eight blocks, then an F16 d for each eight.
const W_VEC4: u32 = 8u;
const HEAD_BLOCKS: u32 = 8u;
const FITS_F16: bool = false;

struct Head {
    scales: vec4<u32>,
    d: f32,
}

fn load_word(row: u32, i: u32) -> vec4<u32> {
    return word(row + i);
}

fn load_bits(row: u32, i: u32) -> vec3<u32> {
    return vec3<u32>(pair(2u * (row + params.n_blocks) + i), 0u);
}

fn load_head(row: u32, i: u32) -> Head {
    let s = i / 8u;
    let scales = row + params.n_blocks + (params.n_blocks + 1u) / 2u;
    let factors = scales + (params.n_blocks + 7u) / 8u;
    return Head(word(scales + s), unpack2x16float(number(4u * factors + s / 2u) >> (16u * (s % 2u))).x);
}

// The factor, and the term to subtract, of each half.
fn scale(head: Head, i: u32) -> vec4f {
    let b = i % 8u;
    let s = head.d * vec2f(unpack4xI8(head.scales[b / 2u] >> (16u * (b % 2u))).xy);
    return vec4f(s.x, 32.0 * s.x, s.y, 32.0 * s.y);
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let nibbles = (word[k / 2u] >> (4u * (k % 2u))) & 0x0f0f0f0fu;
    let upper = ((bits[k % 2u] >> (k / 2u * 2u)) & 0x03030303u) << 4u;
    let s = select(scale.xy, scale.zw, k >= 4u);
    return vec4f(unpack4xU8(nibbles | upper)) * s.x - s.y;
}
