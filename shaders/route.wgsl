// route: the K experts of each row with the largest logits, largest first, on a tie the lower number first; and their
// weights: softmax over all logits, or σ(logit) if SIGMOID; divided by their sum if NORMALISED (Shazeer et al. 2017, Jiang
// et al. 2024: a softmax over the chosen ones).
// One workgroup: one row. A lane counts the experts that come before each of its own: the number is the expert's slot.
override SIGMOID: u32 = 0u;
override NORMALISED: u32 = 1u;

struct Params {
    n_rows: u32,
    n_experts: u32, // at most 512
    k: u32,         // slots: at most 64, and at most n_experts
    x_stride: u32,  // elements per row of x
    y_stride: u32,  // elements per row of weights
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;              // [n_rows, n_experts] logits
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;      // [n_rows, k]
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;  // [n_rows, k]

const WG: u32 = 64u;

var<workgroup> keys: array<u32, 512>;
var<workgroup> chosen: array<u32, 64>;

// Grows with v. What is no number has a place, too.
fn key_of(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    return bits ^ select(0x80000000u, 0xffffffffu, bits >> 31u == 1u);
}

fn logit(e: u32) -> f32 {
    let key = keys[e];
    return bitcast<f32>(key ^ select(0xffffffffu, 0x80000000u, key >> 31u == 1u));
}

// The weight before it is normalised; `top` is the largest logit.
fn raw(e: u32, top: f32) -> f32 {
    if SIGMOID == 1u {
        return 1.0 / (1.0 + exp(-logit(e)));
    }
    return exp(logit(e) - top);
}

@compute @workgroup_size(WG)
fn route(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    let n_experts = params.n_experts;
    for (var e = lane; e < n_experts; e += WG) {
        keys[e] = key_of(x[r * params.x_stride + e]);
    }
    workgroupBarrier();
    for (var e = lane; e < n_experts; e += WG) {
        let key = keys[e];
        var slot = 0u;
        for (var other = 0u; other < n_experts; other++) {
            let before = keys[other] > key || (keys[other] == key && other < e);
            slot += select(0u, 1u, before);
        }
        if slot < params.k {
            chosen[slot] = e;
            ids[r * params.k + slot] = e;
        }
    }
    workgroupBarrier();
    if lane >= params.k {
        return;
    }
    let top = logit(chosen[0]);
    var sum = 0.0;
    if NORMALISED == 1u {
        for (var slot = 0u; slot < params.k; slot++) {
            sum += raw(chosen[slot], top);
        }
    } else if SIGMOID == 1u {
        sum = 1.0;
    } else {
        for (var e = 0u; e < n_experts; e++) {
            sum += raw(e, top);
        }
    }
    weights[r * params.y_stride + lane] = raw(chosen[lane], top) / sum;
}
