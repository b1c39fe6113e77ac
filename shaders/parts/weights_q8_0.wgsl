// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q8_0: d·q. Sixteen signed bytes per word, in order; the head has the F16 scales of eight blocks.
const W_VEC4: u32 = 4u;
const HEAD_BLOCKS: u32 = 8u;
const FITS_F16: bool = false;

alias Head = vec4<u32>;

fn load_word(row: u32, i: u32) -> vec4<u32> {
    return word(row + i);
}

fn load_bits(row: u32, i: u32) -> vec3<u32> {
    return vec3<u32>();
}

fn load_head(row: u32, i: u32) -> Head {
    return word(row + 2u * params.n_blocks + i / 16u);
}

fn scale(head: Head, i: u32) -> vec4f {
    let b = i / 2u % 8u; // two words per block
    return vec2f(unpack2x16float(head[b / 2u] >> (16u * (b % 2u))).x, 0.0).xyxy;
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    return scale.x * vec4f(unpack4xI8(word[k]));
}
