// Contract: a row of weights starts at 16-byte word `row` (part `words_*`); its word i holds W_VEC4 vec4s, from element
// 4·W_VEC4·i on; vec4 k of a word begins in component 4k / W_VEC4. `load_head(row, s)` gives the head (scales of a
// quantised type) of elements 256s … 256s + 255, `scale(head, i)` the part of it that word i needs, and
// `unpack(word, k, scale)` vec4 k of a word. If FITS_F16, every finite element is at most the largest f16.
// F32
const W_VEC4: u32 = 1u;
const FITS_F16: bool = false;

fn load_head(row: u32, s: u32) -> vec4<u32> {
    return vec4<u32>();
}

fn scale(head: vec4<u32>, i: u32) -> vec2f {
    return vec2f();
}

fn unpack(word: vec4<u32>, k: u32, scale: vec2f) -> vec4f {
    return bitcast<vec4f>(word);
}
