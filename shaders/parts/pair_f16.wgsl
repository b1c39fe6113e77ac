// Contract: as in `pair_f32`.
alias Kv = u32;

fn kv_pair(v: vec2f) -> Kv {
    return pack2x16float(v);
}
