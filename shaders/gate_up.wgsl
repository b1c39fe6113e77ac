// gate_up: y[r, i] = act(w[i]·x̂[r] + b[i]) · (w[n + i]·x̂[r] + b[n + i]) if GATED (Shazeer 2020), else
// act(w[i]·x̂[r] + b[i]); x̂ = x, or its RMS norm if NORM. For few rows, which share one read of w.
// One workgroup: N_ROWS rows of its lanes' quads; a quad is two outputs if GATED, else four.
override BIAS: u32 = 0u;
override ACT: u32 = 0u;
override GATED: u32 = 1u;

struct Params {
    row0: u32,     // first row
    n_rows: u32,   // rows in total
    n_in: u32,     // inputs
    n_blocks: u32, // blocks of 32 inputs; the padding of x and w is zero
    x_stride: u32, // vec4s per row of x
    w_stride: u32, // 16-byte words per row of w
    out0: u32,     // first output
    end: u32,      // beyond the last output
    n_out: u32,    // columns of y
    y_stride: u32, // elements per row of y
    eps: f32,      // of the norm
    offset: f32,   // added to g
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Four>;       // [row0 + n_rows, n_in]
@group(0) @binding(2) var<storage, read> g: array<Four>;       // [n_in], read if NORM
@group(0) @binding(3) var<storage, read> w: array<Word>;       // [n_out, w_stride]; if GATED gate above up, [2·n_out, w_stride]
@group(0) @binding(4) var<storage, read> b: array<f32>;        // [n_out] or [2·n_out], read if BIAS
@group(0) @binding(5) var<storage, read_write> y: array<f32>;  // [row0 + n_rows, n_out]

// The row of x that row r reads; beyond the last one, the last.
fn input_row(r: u32) -> u32 {
    return params.row0 + min(r, params.n_rows - 1u);
}

// Activates one row's sums, which are outputs `outs` of w, and writes them to y from column o on.
fn finish(r: u32, o: u32, outs: vec4u, own: vec4f) {
    if r >= params.n_rows {
        return;
    }
    var s = own;
    if BIAS == 1u {
        s += vec4f(b[outs.x], b[outs.y], b[outs.z], b[outs.w]);
    }
    let at = (params.row0 + r) * params.y_stride + o;
    if GATED == 1u {
        y[at] = glu(s.x, s.z);
        if o + 1u < params.end {
            y[at + 1u] = glu(s.y, s.w);
        }
        return;
    }
    for (var j = 0u; j < 4u; j++) {
        if o + j < params.end {
            y[at + j] = act(s[j]);
        }
    }
}

@compute @workgroup_size(WG)
fn gate_up(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let a_quad = select(4u, 2u, GATED == 1u); // outputs
    let group = id.y + id.z * n.y;
    if params.out0 + quad(group, 0u) * a_quad >= params.end {
        return;
    }
    let o = params.out0 + quad(group, lane) * a_quad;
    let r0 = id.x * N_ROWS;
    var outs = min(vec4u(o) + vec4u(0u, 1u, 2u, 3u), vec4u(params.n_out - 1u));
    if GATED == 1u {
        outs = vec4u(outs.xy, outs.xy + params.n_out);
    }
    multiply(r0, outs * params.w_stride, lane);
    for (var i = 0u; i < LANE_ROWS; i++) {
        let r = lane_row(i, lane);
        if r < N_ROWS && o < params.end {
            finish(r0 + r, o, outs, sums(r));
        }
    }
}
