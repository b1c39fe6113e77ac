// pool: y[s, col0 + i] = one row from the n rows r = first … first + n − 1 of sequence s:
//   MODE 0 the first; 1 the last; 2 Σ x[r, i] / n; 3 Σ x[r, i] / √n; 4 max x[r, i];
//   5 Σ w_r·x[r, i] / Σ w_r with w_r = r − first + 1.
// (Reimers & Gurevych 2019; 5: Muennighoff 2022.)
// One invocation: four columns of one sequence, row after row.
override WG: u32 = 64u;
override MODE: u32 = 0u;

struct Params {
    n_seqs: u32,
    n4: u32,       // vec4 of columns
    x_stride: u32, // vec4s per row
    y_stride: u32,
    col0: u32,     // in vec4
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> spans: array<vec2u>;    // [n_seqs] (first row, rows)
@group(0) @binding(2) var<storage, read> x: array<vec4f>;        // [_, 4·n4]
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;  // [n_seqs, y_stride]

@compute @workgroup_size(WG)
fn pool(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let item = id.x + id.y * n.x * WG;
    if item >= params.n_seqs * params.n4 {
        return;
    }
    let s = item / params.n4;
    let i = item % params.n4;
    let first = spans[s].x;
    let n_rows = spans[s].y;
    let at = params.y_stride * s + params.col0 + i;
    if MODE == 0u || MODE == 1u {
        y[at] = x[(first + select(0u, n_rows - 1u, MODE == 1u)) * params.x_stride + i];
        return;
    }
    var value = vec4f();
    // `max` may lose what is no number: this keeps it.
    var odd = vec4f();
    var is_odd = vec4<bool>();
    if MODE == 4u {
        value = x[first * params.x_stride + i];
    }
    for (var r = 0u; r < n_rows; r++) {
        let row = x[(first + r) * params.x_stride + i];
        if MODE == 4u {
            value = max(value, row);
            let is_now = (bitcast<vec4u>(row) & vec4u(0x7f800000u)) == vec4u(0x7f800000u);
            odd = select(odd, row, is_now);
            is_odd |= is_now;
        } else if MODE == 5u {
            value += f32(r + 1u) * row;
        } else {
            value += row;
        }
    }
    let count = f32(n_rows);
    if MODE == 2u {
        value /= count;
    } else if MODE == 3u {
        value /= sqrt(count);
    } else if MODE == 4u {
        value = select(value, odd, is_odd);
    } else if MODE == 5u {
        value /= 0.5 * count * (count + 1.0);
    }
    y[at] = value;
}
