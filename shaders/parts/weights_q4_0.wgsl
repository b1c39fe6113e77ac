// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q4_0: d·(q − 8). One block per word; in each of its four components c the low nibbles of the bytes are elements
// 8c … 8c + 3, the high ones 8c + 4 … 8c + 7. The head has the F16 scales of eight blocks.
const W_VEC4: u32 = 8u;
const FITS_F16: bool = false;

fn load_head(row: u32, s: u32) -> vec4<u32> {
    return word(row + params.n_blocks + s);
}

// The factor, and the term to subtract.
fn scale(head: vec4<u32>, i: u32) -> vec2f {
    let b = i % 8u;
    let d = unpack2x16float(head[b / 2u] >> (16u * (b % 2u))).x;
    return vec2f(d, 8.0 * d);
}

fn unpack(word: vec4<u32>, k: u32, scale: vec2f) -> vec4f {
    let nibbles = (word[k / 2u] >> (4u * (k % 2u))) & 0x0f0f0f0fu;
    return vec4f(unpack4xU8(nibbles)) * scale.x - scale.y;
}
