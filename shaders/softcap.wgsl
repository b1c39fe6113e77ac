// softcap: y[r, i] = softcap · tanh(scale · y[r, i] / softcap) if softcap > 0, else scale · y[r, i], in place
// (Gemma Team 2024, "Logit soft-capping").
// One invocation: four elements.
override WG: u32 = 64u;

struct Params {
    n: u32, // vec4s of y, the padding of its rows included: zeros stay zero
    scale: f32,
    softcap: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>; // [n]

@compute @workgroup_size(WG)
fn softcap(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let item = id.x + id.y * n.x * WG;
    if item >= params.n {
        return;
    }
    var value = params.scale * y[item];
    if params.softcap > 0.0 {
        value = params.softcap * tanh(clamp(value / params.softcap, vec4f(-15.0), vec4f(15.0)));
    }
    y[item] = value;
}
