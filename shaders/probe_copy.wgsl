// probe_copy: y[i] = x[i]: how fast the device moves memory.
// One invocation: every n-th vec4, n the number of invocations, so that neighbours touch neighbours.
override WG: u32 = 256u;

struct Params {
    n: u32, // vec4 in all
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
