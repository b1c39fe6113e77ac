// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q4_1: d·q + m, the nibbles in the order of `weights_q4_0`. The head has F16 d and m of four blocks.
const W_VEC4: u32 = 8u;
const HEAD_BLOCKS: u32 = 4u;
const FITS_F16: bool = false;

alias Head = vec4<u32>;

fn load_word(row: u32, i: u32) -> vec4<u32> {
    return word(row + i);
}

fn load_bits(row: u32, i: u32) -> vec3<u32> {
    return vec3<u32>();
}

fn load_head(row: u32, i: u32) -> Head {
    return word(row + params.n_blocks + i / 4u);
}

// The factor, and the term to subtract.
fn scale(head: Head, i: u32) -> vec4f {
    return (unpack2x16float(head[i % 4u]) * vec2f(1.0, -1.0)).xyxy;
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let nibbles = (word[k / 2u] >> (4u * (k % 2u))) & 0x0f0f0f0fu;
    return vec4f(unpack4xU8(nibbles)) * scale.x - scale.y;
}
