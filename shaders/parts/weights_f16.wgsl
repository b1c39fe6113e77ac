// Contract: `load_w(i)` gives elements 8i … 8i+7 of the global `w: array<vec4<u32>>`.
// F16, unpacked without the device's f16 arithmetic, so that every device runs it.
struct W8 { a: vec4f, b: vec4f }

fn load_w(i: u32) -> W8 {
    let v = w[i];
    return W8(
        vec4f(unpack2x16float(v.x), unpack2x16float(v.y)),
        vec4f(unpack2x16float(v.z), unpack2x16float(v.w)),
    );
}
