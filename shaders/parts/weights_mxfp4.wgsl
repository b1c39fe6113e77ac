// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// MXFP4: 2^(e − 128)·v with v twice an E2M1 (a sign, two bits of exponent, one of mantissa), in the order of `weights_q4_0`
// (OCP Microscaling Formats 1.0). The head has the exponents e of eight blocks, one byte each.
const W_VEC4: u32 = 8u;
const HEAD_BLOCKS: u32 = 8u;
const FITS_F16: bool = false;

alias Head = vec2<u32>;

fn load_word(row: u32, i: u32) -> vec4<u32> {
    return word(row + i);
}

fn load_bits(row: u32, i: u32) -> vec3<u32> {
    return vec3<u32>();
}

fn load_head(row: u32, i: u32) -> Head {
    return pair(2u * (row + params.n_blocks) + i / 8u);
}

fn scale(head: Head, i: u32) -> vec4f {
    let b = i % 8u;
    let e = (head[b / 4u] >> (8u * (b % 4u))) & 255u;
    // 2^-128 and 2^-127 are subnormal.
    return vec2f(bitcast<f32>(select((e - 1u) << 23u, 0x00200000u << e, e < 2u)), 0.0).xyxy;
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let codes = (word[k / 2u] >> (4u * (k % 2u))) & 0x0f0f0f0fu;
    // Four bytes at once: 0, 1, 2, 3, 4, 6, 8, 12 is the code, and from 4 on 0, 1, 2, 5 more.
    let more = codes & (3u * ((codes >> 2u) & 0x01010101u));
    let v = (codes & 0x07070707u) + more + ((more & (more >> 1u)) << 1u);
    let negative = v & (255u * ((codes >> 3u) & 0x01010101u));
    // The upper bit of each byte keeps the subtraction in its byte.
    return scale.x * vec4f(unpack4xI8((0x80808080u + v - 2u * negative) ^ 0x80808080u));
}
