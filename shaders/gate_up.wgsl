// gate_up: y[r, i] = act(w[i]·x̂[r] + b[i]) · (w[n + i]·x̂[r] + b[n + i]) if GATED, else act(w[i]·x̂[r] + b[i]), for
// rows that share the reading of w; x̂ = x, or its RMS norm if NORM (Shazeer 2020 for the gate).
// One workgroup: N_ROWS rows of the quads that its lanes have: two outputs, or four where there is no gate.
override BIAS: u32 = 0u;
override ACT: u32 = 0u;
override GATED: u32 = 1u;

struct Params {
    row0: u32,     // first row
    n_rows: u32,   // rows in all
    n_in: u32,     // inputs
    n_blocks: u32, // blocks of 32 inputs; the padding of x and w is zero
    x_stride: u32, // vec4 a row of x
    w_stride: u32, // 16-byte words a row of w
    n_out: u32,    // columns of y
    y_stride: u32, // elements a row of y
    eps: f32,      // of the norm
    offset: f32,   // added to g
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;      // [row0 + n_rows, n_in]
@group(0) @binding(2) var<storage, read> g: array<vec4f>;      // [n_in], read if NORM
@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;  // [n_out, w_stride], gate above up [2·n_out, w_stride]
@group(0) @binding(4) var<storage, read> b: array<f32>;        // [n_out] or [2·n_out], read if BIAS
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // [row0 + n_rows, n_out]

fn biased(sum: f32, o: u32) -> f32 {
    if BIAS == 1u {
        return sum + b[o];
    }
    return sum;
}

@compute @workgroup_size(WG)
fn gate_up(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let a_quad = select(4u, 2u, GATED == 1u); // outputs
    let group = id.x + id.y * n.x;
    if quad(group, 0u) * a_quad >= params.n_out {
        return;
    }
    let o = quad(group, lane) * a_quad;
    let r0 = id.z * N_ROWS;
    var outs = min(vec4u(o) + vec4u(0u, 1u, 2u, 3u), vec4u(params.n_out - 1u));
    if GATED == 1u {
        outs = vec4u(outs.xy, outs.xy + params.n_out);
    }
    multiply(r0, outs * params.w_stride, lane);
    for (var r = 0u; r < N_ROWS; r++) {
        if finishes(r, lane) && r0 + r < params.n_rows {
            for (var j = 0u; j < a_quad; j++) {
                if o + j < params.n_out {
                    var value = act(biased(acc[r][j], outs[j]));
                    if GATED == 1u {
                        value *= biased(acc[r][j + 2u], outs[j + 2u]);
                    }
                    y[(params.row0 + r0 + r) * params.y_stride + o + j] = value;
                }
            }
        }
    }
}
