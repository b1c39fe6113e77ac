// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q4_0: d·(q − 8). A block a word; in each of its four components the low halves of the bytes are elements
// 8c … 8c + 3, the high ones 8c + 4 … 8c + 7. The head has the F16 scales of eight blocks.
const W_VEC4: u32 = 8u;

fn load_head(row: u32, s: u32) -> vec4<u32> {
    return w[row + params.n_blocks + s];
}

// The halves of a word's bytes from bit `shift` on, times d, less z.
fn q4_halves(v: u32, shift: u32, d: f32, z: f32) -> vec4f {
    let q = (vec4u(v) >> (vec4u(0u, 8u, 16u, 24u) + vec4u(shift))) & vec4u(15u);
    return vec4f(vec4<i32>(q)) * d - z;
}

fn load_w(row: u32, i: u32, head: vec4<u32>) -> array<vec4f, W_VEC4> {
    let v = w[row + i];
    let b = i % 8u;
    let d = unpack2x16float(head[b / 2u] >> (16u * (b % 2u))).x;
    let z = 8.0 * d;
    return array<vec4f, W_VEC4>(
        q4_halves(v.x, 0u, d, z), q4_halves(v.x, 4u, d, z),
        q4_halves(v.y, 0u, d, z), q4_halves(v.y, 4u, d, z),
        q4_halves(v.z, 0u, d, z), q4_halves(v.z, 4u, d, z),
        q4_halves(v.w, 0u, d, z), q4_halves(v.w, 4u, d, z),
    );
}
