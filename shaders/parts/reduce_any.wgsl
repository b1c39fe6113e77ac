// Contract: as reduce_workgroup, but without sums of vec4s.
// The workgroup is any number of subgroups of any width: a subgroup folds its values, then each lane folds the results of
// all subgroups, in their order. So the order of a sum depends on the width that the compiler chose for the pipeline: only
// for kernels whose rows all go through one pipeline, however many there are.

// Two halves, which calls use in turn: while slow lanes still read one, the next call writes the other. A subgroup has at
// least four lanes (WebGPU's least).
var<workgroup> reduce_scratch: array<vec2u, WG / 2u>;
var<private> reduce_half: u32;

// Which lanes are the first of their subgroup, one bit each: this numbers the subgroups. The built-in values for that would
// have to be arguments of the kernels, on all devices (naga 30 writes no HLSL for them in a struct), and nothing promises
// that lanes lie in subgroups in their order. Enough for 512 lanes.
var<workgroup> reduce_firsts: array<atomic<u32>, 16>;
var<private> reduce_is_first: bool;
var<private> reduce_subgroup: u32; // number of the lane's subgroup
var<private> reduce_count: u32;    // subgroups of the workgroup

fn lane_of(local: u32) -> u32 {
    if local < 16u {
        atomicStore(&reduce_firsts[local], 0u);
    }
    workgroupBarrier();
    let first = subgroupBroadcastFirst(local);
    reduce_is_first = local == first;
    if reduce_is_first {
        atomicOr(&reduce_firsts[first / 32u], 1u << (first % 32u));
    }
    workgroupBarrier();
    for (var i = 0u; i < (WG + 31u) / 32u; i++) {
        let firsts = atomicLoad(&reduce_firsts[i]);
        let below = select(0u, (1u << (first % 32u)) - 1u, i == first / 32u);
        let before = select(below, 0xffffffffu, i < first / 32u);
        reduce_subgroup += countOneBits(firsts & before);
        reduce_count += countOneBits(firsts);
    }
    return local;
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
    reduce_half = WG / 4u - reduce_half;
    if reduce_is_first {
        reduce_scratch[reduce_half + reduce_subgroup] = result;
    }
    workgroupBarrier();
    return reduce_half;
}

fn reduce_sum(v: f32, lane: u32) -> f32 {
    let at = reduce_show(vec2u(bitcast<u32>(subgroupAdd(v)), 0u));
    var sum = 0.0;
    for (var i = 0u; i < reduce_count; i++) {
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
    for (var i = 0u; i < reduce_count; i++) {
        let other = reduce_scratch[at + i];
        let other_value = bitcast<f32>(other.x);
        if other_value > best.value || (other_value == best.value && other.y < best.index) {
            best = Best(other_value, other.y);
        }
    }
    return best;
}
