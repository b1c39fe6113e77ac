// probe_fma: y[i] = f(f(… x[i])), n_steps times f(v) = v · a + b. Measures the rate of fused multiply-adds.
// One invocation: 4 vec4s, so 16 independent chains, eight steps per iteration.
override WG: u32 = 64u;

struct Params {
    n: u32,       // vec4s in total, a multiple of 4
    n_steps: u32, // a multiple of 8
    a: f32,
    b: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;       // [n]
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>; // [n]

@compute @workgroup_size(WG)
fn probe_fma(@builtin(global_invocation_id) id: vec3u) {
    let quarter = params.n / 4u;
    if id.x >= quarter {
        return;
    }
    let a = vec4f(params.a);
    let b = vec4f(params.b);
    var v0 = x[id.x];
    var v1 = x[id.x + quarter];
    var v2 = x[id.x + 2u * quarter];
    var v3 = x[id.x + 3u * quarter];
    let n_turns = params.n_steps / 8u;
    for (var i = 0u; i < n_turns; i++) {
        for (var j = 0u; j < 8u; j++) {
            v0 = fma(v0, a, b);
            v1 = fma(v1, a, b);
            v2 = fma(v2, a, b);
            v3 = fma(v3, a, b);
        }
    }
    y[id.x] = v0;
    y[id.x + quarter] = v1;
    y[id.x + 2u * quarter] = v2;
    y[id.x + 3u * quarter] = v3;
}
