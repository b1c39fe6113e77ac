// top_k: the chosen element of each row of x and the k largest, with their columns; largest first, on a tie the smaller
// column first. Minus infinity counts, and is written, as the lowest finite number.
// y[r, 0] = (chosen[r], x[r, chosen[r]]), y[r, 1 + i] = the i-th largest.
// One workgroup: one row.
override WG: u32 = 64u;

struct Params {
    n_rows: u32,
    n_cols: u32,
    x_stride: u32, // elements per row
    k: u32,        // at most n_cols
    y_stride: u32, // pairs per row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;          // [n_rows, n_cols]
@group(0) @binding(2) var<storage, read> chosen: array<u32>;     // [n_rows]
@group(0) @binding(3) var<storage, read_write> y: array<vec2u>;  // [n_rows, 1 + k] (column, bits of the value)

const LOWEST: f32 = -3.4028234e38;

@compute @workgroup_size(WG)
fn top_k(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    if lane == 0u {
        let c = chosen[r];
        y[r * params.y_stride] = vec2u(c, bitcast<u32>(x[r * params.x_stride + min(c, params.n_cols - 1u)]));
    }
    // The last value found, and the column after its own. The next value is smaller, or equal and not before that
    // column.
    var last_value = 3.4028234e38;
    var next_column = 0u;
    for (var i = 0u; i < params.k; i++) {
        var value = LOWEST;
        var index = 0xffffffffu;
        for (var c = lane; c < params.n_cols; c += WG) {
            // With minus infinity, a lane without candidates would beat one with a forbidden token.
            let z = max(x[r * params.x_stride + c], LOWEST);
            let after = z < last_value || (z == last_value && c >= next_column);
            if after && (z > value || index == 0xffffffffu) {
                value = z;
                index = c;
            }
        }
        let best = reduce_best(value, index, lane);
        last_value = best.value;
        next_column = best.index + 1u;
        if lane == 0u {
            y[r * params.y_stride + 1u + i] = vec2u(best.index, bitcast<u32>(best.value));
        }
    }
}
