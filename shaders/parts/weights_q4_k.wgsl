// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q4_K: d·s·q − m·t. One block per word, its nibbles in the order of `weights_q4_0`. The head is ggml's: F16 d and m,
// then twelve bytes with the 6-bit s and t of eight blocks (ggml-quants.c, get_scale_min_k4).
const W_VEC4: u32 = 8u;
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
    return word(row + params.n_blocks + i / 8u);
}

// The factor, and the term to subtract.
fn scale(head: Head, i: u32) -> vec4f {
    let b = i % 8u;
    let low = head.yz >> vec2u(8u * (b % 4u));
    let both = head.w >> (8u * (b % 4u));
    // The upper two bits of the last four blocks stand in the bits that the first four leave free.
    let late = vec2u(both & 15u, (both >> 4u) & 15u) | ((low >> vec2u(2u)) & vec2u(48u));
    return (unpack2x16float(head.x) * vec2f(select(low & vec2u(63u), late, b >= 4u))).xyxy;
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let nibbles = (word[k / 2u] >> (4u * (k % 2u))) & 0x0f0f0f0fu;
    return vec4f(unpack4xU8(nibbles)) * scale.x - scale.y;
}
