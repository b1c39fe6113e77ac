// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// IQ4_XS: d·(s − 32)·v with one of 16 values v for each code of 4 bits, in the order of `weights_q4_0`. The head is ggml's:
// F16 d, then the upper two and the lower four bits of the s of eight blocks.
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
    let s = ((head.y >> (4u * b)) & 15u) | (((head.x >> (16u + 2u * b)) & 3u) << 4u);
    return vec2f(unpack2x16float(head.x).x * (f32(s) - 32.0), 0.0).xyxy;
}

// The values of four codes, −127 … 113: this polynomial, rounded. A table with an index that is known only at run time would
// be in memory. The polynomial is at most 0.44 from each value.
fn values(codes: u32) -> vec4f {
    let c = vec4f(unpack4xU8(codes));
    return round((((0.001586 * c + 0.03109) * c - 1.372) * c + 24.174) * c - 126.56);
}

fn unpack(word: vec4<u32>, bits: vec3<u32>, k: u32, scale: vec4f) -> vec4f {
    let nibbles = (word[k / 2u] >> (4u * (k % 2u))) & 0x0f0f0f0fu;
    return scale.x * values(nibbles);
}
