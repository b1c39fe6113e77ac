// Contract: `load_w(i)` gives elements 8i … 8i+7 of the global `w: array<vec4<u32>>`.
// F32: two loads of 16 bytes.
struct W8 { a: vec4f, b: vec4f }

fn load_w(i: u32) -> W8 {
    return W8(bitcast<vec4f>(w[2u * i]), bitcast<vec4f>(w[2u * i + 1u]));
}
