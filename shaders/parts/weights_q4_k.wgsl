// Contract: as in `weights_f32`; uses the kernel's `params.n_blocks`, the blocks of 32 in a row.
// Q4_K: d·s·q − m·t. A block a word, its halves in the order of `weights_q4_0`. The head is ggml's: F16 d and m,
// then twelve bytes with the 6-bit s and t of eight blocks (ggml-quants.c, get_scale_min_k4).
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
    let shift = 8u * (b % 4u);
    let low_s = head.y >> shift;
    let low_t = head.z >> shift;
    let both = head.w >> shift;
    // Of the last four blocks the upper two bits are those that the first four leave free.
    let s = select(low_s & 63u, (both & 15u) | ((low_s >> 2u) & 48u), b >= 4u);
    let t = select(low_t & 63u, ((both >> 4u) & 15u) | ((low_t >> 2u) & 48u), b >= 4u);
    let factors = unpack2x16float(head.x);
    let d = factors.x * f32(s);
    let z = factors.y * f32(t);
    return array<vec4f, W_VEC4>(
        q4_halves(v.x, 0u, d, z), q4_halves(v.x, 4u, d, z),
        q4_halves(v.y, 0u, d, z), q4_halves(v.y, 4u, d, z),
        q4_halves(v.z, 0u, d, z), q4_halves(v.z, 4u, d, z),
        q4_halves(v.w, 0u, d, z), q4_halves(v.w, 4u, d, z),
    );
}
