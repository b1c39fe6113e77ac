// Contract: as reduce_workgroup.
// The workgroup is exactly one subgroup: no barrier, no workgroup memory.
fn lane_of(local: u32) -> u32 {
    return local;
}

struct Best { value: f32, index: u32 }

// The value of lane 0.
fn reduce_first(v: vec2u, lane: u32) -> vec2u {
    return subgroupBroadcastFirst(v);
}

fn reduce_sum4(v: vec4f, lane: u32) -> vec4f {
    return subgroupAdd(v);
}

fn reduce_sum(v: f32, lane: u32) -> f32 {
    return subgroupAdd(v);
}

// The largest value; on a tie, the smallest index.
fn reduce_best(value: f32, index: u32, lane: u32) -> Best {
    let best = subgroupMax(value);
    return Best(best, subgroupMin(select(0xffffffffu, index, value == best)));
}
