// Contract: as in `weights_f32`.
// F16, by `unpack2x16float`, which needs no f16 arithmetic.
const W_VEC4: u32 = 2u;
const FITS_F16: bool = true;

fn load_head(row: u32, s: u32) -> vec4<u32> {
    return vec4<u32>();
}

fn scale(head: vec4<u32>, i: u32) -> vec2f {
    return vec2f();
}

fn unpack(word: vec4<u32>, k: u32, scale: vec2f) -> vec4f {
    let v = select(word.xy, word.zw, k == 1u);
    return vec4f(unpack2x16float(v.x), unpack2x16float(v.y));
}
