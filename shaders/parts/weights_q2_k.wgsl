// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q2_K: d·s·q − m·t with 4-bit s and t for each half of a block. First all q, then sixteen bytes for each eight blocks, s in
// the low nibble and t in the high one, then F16 d and m for each eight.
const W_VEC4: u32 = 8u;
const HEAD_BLOCKS: u32 = 8u;
const FITS_F16: bool = false;

struct Head {
    scales: vec4<u32>,
    d: u32,
}

fn load_word(row: u32, i: u32) -> vec4<u32> {
    return vec4<u32>();
}

fn load_bits(row: u32, i: u32) -> vec3<u32> {
    return vec3<u32>(pair(2u * row + i), 0u);
}

fn load_head(row: u32, i: u32) -> Head {
    let scales = row + (params.n_blocks + 1u) / 2u;
    let factors = scales + (params.n_blocks + 7u) / 8u;
    return Head(word(scales + i / 8u), number(4u * factors + i / 8u));
}

// The factor, and the term to subtract, of each half.
fn scale(head: Head, i: u32) -> vec4f {
    let b = i % 8u;
    let both = head.scales[b / 2u] >> (16u * (b % 2u));
    let d = unpack2x16float(head.d);
    let s = d.x * vec2f(unpack4xU8(both & 0x0f0fu).xy);
    let t = d.y * vec2f(unpack4xU8((both >> 4u) & 0x0f0fu).xy);
    return vec4f(s.x, t.x, s.y, t.y);
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let q = (bits[k % 2u] >> (k / 2u * 2u)) & 0x03030303u;
    let s = select(scale.xy, scale.zw, k >= 4u);
    return vec4f(unpack4xU8(q)) * s.x - s.y;
}
