// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q8_0: d·q. Sixteen signed bytes a word, in order; the head has the F16 scales of eight blocks.
const W_VEC4: u32 = 4u;

fn load_head(row: u32, s: u32) -> vec4<u32> {
    return w[row + 2u * params.n_blocks + s];
}

fn q8_bytes(v: u32, d: f32) -> vec4f {
    return d * vec4f(vec4<i32>(vec4u(v) << vec4u(24u, 16u, 8u, 0u)) >> vec4u(24u));
}

fn load_w(row: u32, i: u32, head: vec4<u32>) -> array<vec4f, W_VEC4> {
    let v = w[row + i];
    let b = i / 2u % 8u; // two words a block
    let d = unpack2x16float(head[b / 2u] >> (16u * (b % 2u))).x;
    return array<vec4f, W_VEC4>(q8_bytes(v.x, d), q8_bytes(v.y, d), q8_bytes(v.z, d), q8_bytes(v.w, d));
}
