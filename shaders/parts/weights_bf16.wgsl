// Contract: as in `weights_f32`.
// BF16: the upper half of an f32, low element in the low half of the word.
const W_VEC4: u32 = 2u;

fn load_head(row: u32, s: u32) -> vec4<u32> {
    return vec4<u32>();
}

fn load_w(row: u32, i: u32, head: vec4<u32>) -> array<vec4f, W_VEC4> {
    let v = w[row + i];
    let low = bitcast<vec4f>(v << vec4u(16u));
    let high = bitcast<vec4f>(v & vec4u(0xffff0000u));
    return array<vec4f, W_VEC4>(
        vec4f(low.x, high.x, low.y, high.y),
        vec4f(low.z, high.z, low.w, high.w),
    );
}
