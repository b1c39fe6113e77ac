// group: lists the pairs of rows and slots by their experts, in their order, in blocks of at most `size` pairs of one expert.
// Block i is (expert, where its pairs are listed, how many). The blocks of expert e are those from ⌊pairs of the experts
// before / size⌋ + e on, so that no expert must know how many blocks the others have; those in between are empty.
// One workgroup: one expert. A lane goes through neighbouring pairs.
struct Params {
    pair0: u32,     // first pair
    n_pairs: u32,
    n_experts: u32,
    size: u32,      // pairs of a block
    n_blocks: u32,  // ⌊n_pairs / size⌋ + n_experts
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;           // [pair0 + n_pairs]
@group(0) @binding(2) var<storage, read_write> lists: array<u32>;   // [n_blocks, 3], then [n_pairs]

const WG: u32 = 64u;

var<workgroup> before: array<u32, WG>; // pairs of a lane of experts before
var<workgroup> own: array<u32, WG>;    // pairs of a lane of the expert

@compute @workgroup_size(WG)
fn group(
    @builtin(workgroup_id) id: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let expert = id.x;
    let share = (params.n_pairs + WG - 1u) / WG;
    let begin = min(lane * share, params.n_pairs);
    let end = min(begin + share, params.n_pairs);
    var n_before = 0u;
    var n_own = 0u;
    for (var i = begin; i < end; i++) {
        let e = ids[params.pair0 + i];
        n_before += select(0u, 1u, e < expert);
        n_own += select(0u, 1u, e == expert);
    }
    before[lane] = n_before;
    own[lane] = n_own;
    workgroupBarrier();
    var first = 0u;     // pairs of experts before
    var n_all = 0u;     // pairs of this one
    var at = 0u;        // of them those of lanes before
    for (var other = 0u; other < WG; other++) {
        first += before[other];
        n_all += own[other];
        at += select(0u, own[other], other < lane);
    }
    let pairs = 3u * params.n_blocks;
    at += pairs + first;
    for (var i = begin; i < end; i++) {
        if ids[params.pair0 + i] == expert {
            lists[at] = params.pair0 + i;
            at++;
        }
    }
    // Up to the first block of the next expert.
    let size = params.size;
    let block0 = first / size + expert;
    let n_blocks = (first + n_all) / size + expert + 1u - block0;
    for (var i = lane; i < n_blocks; i += WG) {
        let start = min(i * size, n_all);
        let block = 3u * (block0 + i);
        lists[block] = expert;
        lists[block + 1u] = pairs + first + start;
        lists[block + 2u] = min(size, n_all - start);
    }
}
