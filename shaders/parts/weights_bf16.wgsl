// Contract: as in `weights_f32`.
// BF16: the upper half of an f32; the first element is in the low half of a 32-bit word.
const W_VEC4: u32 = 2u;
const HEAD_BLOCKS: u32 = 8u;
const FITS_F16: bool = false;

alias Head = u32;

fn load_word(row: u32, i: u32) -> vec4<u32> {
    return word(row + i);
}

fn load_bits(row: u32, i: u32) -> vec3<u32> {
    return vec3<u32>();
}

fn load_head(row: u32, i: u32) -> Head {
    return 0u;
}

fn scale(head: Head, i: u32) -> vec4f {
    return vec4f();
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let v = select(word.xy, word.zw, k == 1u);
    return bitcast<vec4f>(vec4u(v.x << 16u, v.x & 0xffff0000u, v.y << 16u, v.y & 0xffff0000u));
}
