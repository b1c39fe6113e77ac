// Contract: as in `weights_f32`.
// F16, unpacked without the device's f16 arithmetic, so that every device runs it.
const W_VEC4: u32 = 2u;

fn load_head(row: u32, s: u32) -> vec4<u32> {
    return vec4<u32>();
}

fn load_w(row: u32, i: u32, head: vec4<u32>) -> array<vec4f, W_VEC4> {
    let v = w[row + i];
    return array<vec4f, W_VEC4>(
        vec4f(unpack2x16float(v.x), unpack2x16float(v.y)),
        vec4f(unpack2x16float(v.z), unpack2x16float(v.w)),
    );
}
