// Contract: as in `append_f32`.
alias Kv = vec2<u32>;
const KV_VEC4: u32 = 1u;

fn append_k(at: u32, values: array<vec4f, KV_VEC4>) {
    k[at] = vec2<u32>(pack2x16float(values[0].xy), pack2x16float(values[0].zw));
}

fn append_v(at: u32, values: array<vec4f, KV_VEC4>) {
    v[at] = vec2<u32>(pack2x16float(values[0].xy), pack2x16float(values[0].zw));
}
