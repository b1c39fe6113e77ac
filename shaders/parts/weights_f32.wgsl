// Contract: how a row of weights is read that starts at 16-byte word `row` (part `words_*`). Its elements come in units of
// W_VEC4 vec4s; unit i begins with element 4·W_VEC4·i.
// - `load_word(row, i)` is the unit's word: if W_VEC4 > 1, vec4 k begins in component 4k / W_VEC4.
// - `load_bits(row, i)` has those bits of the unit's elements that are not in its word, an element's in a byte: two bits of
//   vec4 k in component k % 2 from bit k / 2 * 2 on, one bit in z, bit k.
// - `load_head(row, i)` is the head, the scales of a quantised type. HEAD_BLOCKS blocks of 32 share one.
// - `scale(head, i)` is what `unpack` needs of it, for the first half of the unit (xy) and for the second (zw).
// - `unpack(word, bits, k, scale)` is vec4 k.
// A lane that begins with vec4 4 rotates the word by two components, shifts the bits right by 4 and swaps the halves of the
// scale. If FITS_F16, every finite element is at most the largest f16.
// F32
const W_VEC4: u32 = 1u;
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
    return bitcast<vec4f>(word);
}
