// gate: y[r, i] = act(x[r, i]) · x[r, n_cols + i] if GATED, else act(x[r, i])
// act: SILU x·σ(x); GELU_TANH ½x(1 + tanh(√(2/π)(x + 0.044715x³))); GELU ½x(1 + erf(x/√2))
// (Hendrycks & Gimpel 2016; Shazeer 2020 for the gate).
// One invocation: one element.
override WG: u32 = 64u;
override ACT: u32 = 0u; // 0 SILU, 1 GELU_TANH, 2 GELU
override GATED: u32 = 1u;

struct Params {
    n_rows: u32,
    n_cols: u32,   // columns of y
    x_stride: u32, // elements a row
    y_stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;        // [n_rows, n_cols], [n_rows, 2·n_cols] if GATED
@group(0) @binding(2) var<storage, read_write> y: array<f32>;  // [n_rows, n_cols]

// Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - poly * exp(-x * x));
}

fn act(x: f32) -> f32 {
    if ACT == 0u {
        return x / (1.0 + exp(-x));
    }
    if ACT == 1u {
        // Beyond ±15 tanh is ±1 in f32, and some drivers overflow on the way there.
        let inner = 0.7978845608 * (x + 0.044715 * x * x * x);
        return 0.5 * x * (1.0 + tanh(clamp(inner, -15.0, 15.0)));
    }
    return 0.5 * x * (1.0 + erf(x * 0.7071067812));
}

@compute @workgroup_size(WG)
fn gate(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let item = id.x + id.y * n.x * WG;
    if item >= params.n_rows * params.n_cols {
        return;
    }
    let r = item / params.n_cols;
    let i = item % params.n_cols;
    var value = act(x[r * params.x_stride + i]);
    if GATED == 1u {
        value *= x[r * params.x_stride + params.n_cols + i];
    }
    y[r * params.y_stride + i] = value;
}
