// probe_copy: y[i] = x[i]. Measures memory bandwidth.
// One invocation: every n-th vec4, with n the number of invocations, so that neighbours access neighbouring words.
override WG: u32 = 256u;

struct Params {
    n: u32, // vec4s in total
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;       // [n]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<u32>>; // [n]

@compute @workgroup_size(WG)
fn probe_copy(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    for (var i = id.x; i < params.n; i += n.x * WG) {
        y[i] = x[i];
    }
}
