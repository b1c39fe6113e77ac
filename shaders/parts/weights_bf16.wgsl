// Contract: `load_w(i)` gives elements 8i … 8i+7 of the global `w: array<vec4<u32>>`.
// BF16: the upper half of an f32, low element in the low half of the word.
struct W8 { a: vec4f, b: vec4f }

fn load_w(i: u32) -> W8 {
    let v = w[i];
    let low = bitcast<vec4f>(v << vec4u(16u));
    let high = bitcast<vec4f>(v & vec4u(0xffff0000u));
    return W8(vec4f(low.x, high.x, low.y, high.y), vec4f(low.z, high.z, low.w, high.w));
}
