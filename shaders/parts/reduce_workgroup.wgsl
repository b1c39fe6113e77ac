// Contract: `lane_of` prepares the other functions and returns the lane: the local invocation index that it gets. Each other
// function folds one value per lane over the workgroup of WG lanes (a power of two, at most 512) and gives the result to
// all lanes. All lanes must call it.
// A tree in workgroup memory: runs on every device. The order of a sum depends only on WG. Products keep to this part where
// no width of subgroups is certain: they have a pipeline for each number of rows, a compiler may choose another width for
// each, and the bits of a row must be the same in all. (Shuffles within the least width would do that too, but only if lanes
// lie in subgroups in their order, which WGSL does not promise.)
fn lane_of(local: u32) -> u32 {
    return local;
}

var<workgroup> reduce_scratch: array<vec4f, WG>;

struct Best { value: f32, index: u32 }

var<workgroup> reduce_word: vec2u;

// The value of lane 0.
fn reduce_first(v: vec2u, lane: u32) -> vec2u {
    if lane == 0u {
        reduce_word = v;
    }
    return workgroupUniformLoad(&reduce_word);
}

fn reduce_sum4(v: vec4f, lane: u32) -> vec4f {
    workgroupBarrier(); // other lanes may still read the last call's result
    reduce_scratch[lane] = v;
    workgroupBarrier();
    for (var s = WG / 2u; s > 0u; s /= 2u) {
        if lane < s {
            reduce_scratch[lane] += reduce_scratch[lane + s];
        }
        workgroupBarrier();
    }
    return reduce_scratch[0];
}

fn reduce_sum(v: f32, lane: u32) -> f32 {
    return reduce_sum4(vec4f(v, 0.0, 0.0, 0.0), lane).x;
}

// The largest value; on a tie, the smallest index.
fn reduce_best(value: f32, index: u32, lane: u32) -> Best {
    workgroupBarrier();
    reduce_scratch[lane] = vec4f(value, f32(index >> 16u), f32(index & 0xffffu), 0.0);
    workgroupBarrier();
    for (var s = WG / 2u; s > 0u; s /= 2u) {
        if lane < s {
            let a = reduce_scratch[lane];
            let b = reduce_scratch[lane + s];
            let b_first = b.y < a.y || (b.y == a.y && b.z < a.z);
            reduce_scratch[lane] = select(a, b, b.x > a.x || (b.x == a.x && b_first));
        }
        workgroupBarrier();
    }
    let best = reduce_scratch[0];
    return Best(best.x, (u32(best.y) << 16u) | u32(best.z));
}
