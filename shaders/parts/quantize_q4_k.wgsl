// Contract: as in `quantize_q8_0`.
// Q4_K: each block's scale and minimum are searched so that Σ (|x| + rms)·(scale·q + minimum − x)² is small, then both
// are rounded to 6 bits, and the block to 4 (ggml-quants.c, quantize_row_q4_K_ref and make_qkx2_quants with
// nmax 15, rmin −1, rdelta 0.1, nstep 20).
const BLOCK_WORDS: u32 = 1u;

// Adds in ggml's order: when two scales are almost equally good, rounding decides between them.
fn add4(sum: f32, v: vec4f) -> f32 {
    return (((sum + v.x) + v.y) + v.z) + v.w;
}

fn nearest(value: vec4f) -> vec4f {
    return clamp(round(value), vec4f(), vec4f(15.0));
}

// The scale, and the negated minimum, which is not negative.
fn measure(values: array<vec4f, 8>) -> vec2f {
    var x = values;
    var low = x[0];
    var high = x[0];
    var squares = 0.0;
    for (var i = 0u; i < 8u; i++) {
        low = min(low, x[i]);
        high = max(high, x[i]);
        squares = add4(squares, x[i] * x[i]);
    }
    let lowest = min(0.0, min(min(low.x, low.y), min(low.z, low.w)));
    let highest = max(max(high.x, high.y), max(high.z, high.w));
    if highest == lowest {
        return vec2f(0.0, -lowest);
    }
    let rms = sqrt(squares / 32.0);
    var sum_w = 0.0;
    var sum_x = 0.0;
    var scale = (highest - lowest) / 15.0;
    var minimum = lowest;
    var best = 0.0;
    for (var i = 0u; i < 8u; i++) {
        let weight = rms + abs(x[i]);
        let diff = scale * nearest((x[i] - lowest) * (15.0 / (highest - lowest))) + lowest - x[i];
        best = add4(best, weight * (diff * diff));
        sum_w = add4(sum_w, weight);
        sum_x = add4(sum_x, weight * x[i]);
    }
    // Each turn judges the fit of the turn before it, so that no turn rounds with the same factor twice: compilers would
    // keep those 32 numbers in registers.
    var fit = vec2f(); // scale and minimum
    var is_fit = false;
    var start = 0.0;
    var inverse = 0.0;
    for (var step = 0u; step <= 21u; step++) {
        if is_fit {
            var error = 0.0;
            for (var i = 0u; i < 8u; i++) {
                let weight = rms + abs(x[i]);
                let diff = fit.x * nearest((x[i] - start) * inverse) + fit.y - x[i];
                error = add4(error, weight * (diff * diff));
            }
            if error < best {
                best = error;
                scale = fit.x;
                minimum = fit.y;
            }
        }
        // Starts from the best minimum so far.
        start = minimum;
        inverse = (14.0 + 0.1 * f32(step)) / (highest - start);
        var l = 0.0;
        var l2 = 0.0;
        var xl = 0.0;
        for (var i = 0u; i < 8u; i++) {
            let weight = rms + abs(x[i]);
            let q = nearest((x[i] - start) * inverse);
            l = add4(l, weight * q);
            l2 = add4(l2, weight * q * q);
            xl = add4(xl, weight * q * x[i]);
        }
        let determinant = sum_w * l2 - l * l;
        is_fit = determinant > 0.0;
        if is_fit {
            fit = vec2f(sum_w * xl - sum_x * l, l2 * sum_x - l * xl) / determinant;
            if fit.y > 0.0 {
                fit = vec2f(xl / l2, 0.0);
            }
        }
    }
    return vec2f(scale, -minimum);
}

fn pack_head(measured: array<vec2f, 8>) -> vec4<u32> {
    var m = measured;
    var most = vec2f();
    for (var b = 0u; b < 8u; b++) {
        most = max(most, m[b]);
    }
    let inverse = select(vec2f(), 63.0 / most, most > vec2f());
    var head = vec4<u32>(pack2x16float(most / 63.0), 0u, 0u, 0u);
    for (var b = 0u; b < 8u; b++) {
        let q = vec2u(clamp(round(inverse * m[b]), vec2f(), vec2f(63.0)));
        let shift = 8u * (b % 4u);
        if b < 4u {
            head.y |= q.x << shift;
            head.z |= q.y << shift;
        } else {
            head.w |= ((q.x & 15u) | ((q.y & 15u) << 4u)) << shift;
            head.y |= ((q.x >> 4u) << 6u) << shift;
            head.z |= ((q.y >> 4u) << 6u) << shift;
        }
    }
    return head;
}

fn pack_block(values: array<vec4f, 8>, b: u32, measured: vec2f, head: vec4<u32>) -> array<vec4<u32>, BLOCK_WORDS> {
    var x = values;
    let shift = 8u * (b % 4u);
    let low = head.yz >> vec2u(shift);
    let both = head.w >> shift;
    let late = vec2u(both & 15u, (both >> 4u) & 15u) | ((low >> vec2u(2u)) & vec2u(48u));
    let factors = unpack2x16float(head.x) * vec2f(select(low & vec2u(63u), late, b >= 4u));
    var word: vec4<u32>;
    if factors.x > 0.0 {
        for (var i = 0u; i < 4u; i++) {
            let first = vec4u(nearest((x[2u * i] + factors.y) / factors.x));
            let second = vec4u(nearest((x[2u * i + 1u] + factors.y) / factors.x));
            let q = first | (second << vec4u(4u));
            word[i] = q.x | (q.y << 8u) | (q.z << 16u) | (q.w << 24u);
        }
    }
    return array<vec4<u32>, BLOCK_WORDS>(word);
}
