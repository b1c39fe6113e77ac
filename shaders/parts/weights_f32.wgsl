// Contract: a row of weights starts at 16-byte word `row` of the global `w: array<vec4<u32>>`.
// `load_w(row, i, head)` gives its elements 4·W_VEC4·i …, W_VEC4 vec4 of them; `load_head(row, s)` gives what
// quantised types keep for elements 256s … 256s + 255, and `head` is the one of these elements.
// F32: a group of two words.
const W_VEC4: u32 = 2u;

fn load_head(row: u32, s: u32) -> vec4<u32> {
    return vec4<u32>();
}

fn load_w(row: u32, i: u32, head: vec4<u32>) -> array<vec4f, W_VEC4> {
    let at = row + 2u * i;
    return array<vec4f, W_VEC4>(bitcast<vec4f>(w[at]), bitcast<vec4f>(w[at + 1u]));
}
