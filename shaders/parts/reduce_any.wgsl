// Contract: as reduce_workgroup, but without sums of vec4s.
// The workgroup is any number of subgroups of any width: a subgroup folds its values, then each lane folds the results of
// all subgroups, in their order. So the order of a sum depends on the width that the compiler chose for the pipeline: only
// for kernels whose rows all go through one pipeline, however many there are.
struct Lanes {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) place: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) n_subgroups: u32,
}

// Two halves, which calls use in turn: while slow lanes still read one, the next call writes the other. A subgroup has at
// least four lanes (WebGPU's least).
var<workgroup> reduce_scratch: array<vec2u, WG / 2u>;
var<private> reduce_at: u32;
var<private> reduce_lanes: Lanes;

fn lane_of(lanes: Lanes) -> u32 {
    reduce_lanes = lanes;
    return lanes.index;
}

struct Best { value: f32, index: u32 }

var<workgroup> reduce_word: vec2u;

// The value of lane 0.
fn reduce_first(v: vec2u, lane: u32) -> vec2u {
    if lane == 0u {
        reduce_word = v;
    }
    return workgroupUniformLoad(&reduce_word);
}

// Shows the subgroup's result to all lanes, and returns where the results of all subgroups begin.
fn reduce_show(result: vec2u) -> u32 {
    reduce_at = WG / 4u - reduce_at;
    if reduce_lanes.place == 0u {
        reduce_scratch[reduce_at + reduce_lanes.subgroup] = result;
    }
    workgroupBarrier();
    return reduce_at;
}

fn reduce_sum(v: f32, lane: u32) -> f32 {
    let at = reduce_show(vec2u(bitcast<u32>(subgroupAdd(v)), 0u));
    var sum = 0.0;
    for (var i = 0u; i < reduce_lanes.n_subgroups; i++) {
        sum += bitcast<f32>(reduce_scratch[at + i].x);
    }
    return sum;
}

// The largest value; on a tie, the smallest index.
fn reduce_best(value: f32, index: u32, lane: u32) -> Best {
    let most = subgroupMax(value);
    let first = subgroupMin(select(0xffffffffu, index, value == most));
    let at = reduce_show(vec2u(bitcast<u32>(most), first));
    var best = Best(most, first);
    for (var i = 0u; i < reduce_lanes.n_subgroups; i++) {
        let other = reduce_scratch[at + i];
        let other_value = bitcast<f32>(other.x);
        if other_value > best.value || (other_value == best.value && other.y < best.index) {
            best = Best(other_value, other.y);
        }
    }
    return best;
}
