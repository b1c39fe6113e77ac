// Contract: `act(x)`, chosen by the kernel's `ACT`: 0 SILU x·σ(x); 1 GELU_TANH ½x(1 + tanh(√(2/π)(x + 0.044715x³)));
// 2 GELU ½x(1 + erf(x/√2)) (Hendrycks & Gimpel 2016); 3 RELU max(x, 0); 4 TANH tanh(x). `glu(gate, up)` is act(gate) · up;
// with 5 CLAMPED g·σ(1.702·g)·(u + 1), where g = min(gate, 7), and u is up within ±7 (gpt-oss; transformers'
// `GptOssExperts`).

// Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - poly * exp(-x * x));
}

// Infinite, or no number. `max` and `clamp` would make a number of the latter, and hide that weights are damaged; a
// comparison of floats may be optimised away.
fn is_odd(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u;
}

fn act(x: f32) -> f32 {
    if ACT == 0u {
        return x / (1.0 + exp(-x));
    }
    if ACT == 1u {
        // Beyond ±15 tanh is ±1 in f32, and some drivers overflow.
        let inner = 0.7978845608 * (x + 0.044715 * x * x * x);
        return 0.5 * x * (1.0 + tanh(clamp(inner, -15.0, 15.0)));
    }
    if ACT == 3u {
        return select(max(x, 0.0), x, is_odd(x));
    }
    if ACT == 4u {
        return select(tanh(clamp(x, -15.0, 15.0)), x, is_odd(x));
    }
    return 0.5 * x * (1.0 + erf(x * 0.7071067812));
}

fn glu(gate: f32, up: f32) -> f32 {
    if ACT == 5u {
        let g = select(min(gate, 7.0), gate, is_odd(gate));
        let u = select(clamp(up, -7.0, 7.0), up, is_odd(up));
        return g / (1.0 + exp(-1.702 * g)) * (u + 1.0);
    }
    return act(gate) * up;
}
