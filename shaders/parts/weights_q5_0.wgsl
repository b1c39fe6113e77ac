// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q5_0: d·(q − 16). The low nibbles of q in the order of `weights_q4_0`, then the fifth bits of all blocks. The head has the
// F16 scales of eight blocks.
const W_VEC4: u32 = 8u;
const HEAD_BLOCKS: u32 = 8u;
const FITS_F16: bool = false;

alias Head = vec4<u32>;

fn load_word(row: u32, i: u32) -> vec4<u32> {
    return word(row + i);
}

fn load_bits(row: u32, i: u32) -> vec3<u32> {
    return vec3<u32>(0u, 0u, number(4u * (row + params.n_blocks) + i));
}

fn load_head(row: u32, i: u32) -> Head {
    return word(row + params.n_blocks + (params.n_blocks + 3u) / 4u + i / 8u);
}

// The factor, and the term to subtract.
fn scale(head: Head, i: u32) -> vec4f {
    let b = i % 8u;
    let d = unpack2x16float(head[b / 2u] >> (16u * (b % 2u))).x;
    return vec2f(d, 16.0 * d).xyxy;
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let nibbles = (word[k / 2u] >> (4u * (k % 2u))) & 0x0f0f0f0fu;
    let fifth = ((bits.z >> k) & 0x01010101u) << 4u;
    return vec4f(unpack4xU8(nibbles | fifth)) * scale.x - scale.y;
}
