// Contract: `lane_of` prepares the other functions and returns the lane, the local invocation index that it gets. Each other
// function folds one value per lane over the workgroup of WG lanes (a power of two from 8 to 512) and gives the result to
// all lanes. All lanes must call it.
// A tree in workgroup memory, eight values a step: runs on every device. The order of a sum depends only on WG. Products keep to this part
// where no width of subgroups is certain: they have a pipeline for each number of rows, a compiler may choose another
// width for each, and the bits of a row must be the same in all. (Shuffles within the least width would be as free of the
// chosen one, but only if lanes lie in subgroups in their order, which WGSL does not promise.)
fn lane_of(local: u32) -> u32 {
    return local;
}

var<workgroup> reduce_scratch: array<vec4f, WG>;
// Apart from the scratch, which the next call may then overwrite while slow lanes still read this one's result.
var<workgroup> reduce_result: array<vec4f, 8>;

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
    reduce_scratch[lane] = v;
    workgroupBarrier();
    if WG > 64u {
        if lane < WG / 8u {
            var sum = reduce_scratch[lane];
            for (var i = 1u; i < 8u; i++) {
                sum += reduce_scratch[lane + i * (WG / 8u)];
            }
            reduce_scratch[lane] = sum;
        }
        workgroupBarrier();
    }
    // Values left after the first step, which only workgroups of more than 64 lanes have.
    let left = select(WG, WG / 8u, WG > 64u);
    if lane < 8u {
        var sum = reduce_scratch[lane];
        for (var i = 8u; i < left; i += 8u) {
            sum += reduce_scratch[lane + i];
        }
        reduce_result[lane] = sum;
    }
    workgroupBarrier();
    var sum = reduce_result[0];
    for (var i = 1u; i < 8u; i++) {
        sum += reduce_result[i];
    }
    return sum;
}

fn reduce_sum(v: f32, lane: u32) -> f32 {
    return reduce_sum4(vec4f(v, 0.0, 0.0, 0.0), lane).x;
}

fn better(a: vec4f, b: vec4f) -> vec4f {
    let b_first = b.y < a.y || (b.y == a.y && b.z < a.z);
    return select(a, b, b.x > a.x || (b.x == a.x && b_first));
}

// The largest value; on a tie, the smallest index.
fn reduce_best(value: f32, index: u32, lane: u32) -> Best {
    // Halves of the index, which are exact as floats.
    reduce_scratch[lane] = vec4f(value, f32(index >> 16u), f32(index & 0xffffu), 0.0);
    workgroupBarrier();
    if WG > 64u {
        if lane < WG / 8u {
            var best = reduce_scratch[lane];
            for (var i = 1u; i < 8u; i++) {
                best = better(best, reduce_scratch[lane + i * (WG / 8u)]);
            }
            reduce_scratch[lane] = best;
        }
        workgroupBarrier();
    }
    let left = select(WG, WG / 8u, WG > 64u);
    if lane < 8u {
        var best = reduce_scratch[lane];
        for (var i = 8u; i < left; i += 8u) {
            best = better(best, reduce_scratch[lane + i]);
        }
        reduce_result[lane] = best;
    }
    workgroupBarrier();
    var best = reduce_result[0];
    for (var i = 1u; i < 8u; i++) {
        best = better(best, reduce_result[i]);
    }
    return Best(best.x, (u32(best.y) << 16u) | u32(best.z));
}
