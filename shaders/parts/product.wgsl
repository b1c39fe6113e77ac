// Contract: how an output of a product is finished. `finished(r, o, sum)` is output o of this range of weights for row r
// of the dispatch: sum + (b[out0 + o] if BIAS) + (y[row0 + r, out0 + o] if ADD); beyond the last row and output, the
// last one's inputs are read. `put(r, o, value)` writes it to y, if the row and the output exist. Kernels finish all
// their outputs before they put the first: a store would hold up the loads behind it.
// Uses the kernel's `params`, `b` and `y`.
override ADD: u32 = 0u;
override BIAS: u32 = 0u;

fn finished(r: u32, o: u32, sum: f32) -> f32 {
    let out = params.out0 + min(o, params.n_out - 1u);
    var value = sum;
    if BIAS == 1u {
        value += b[out];
    }
    if ADD == 1u {
        value += y[(params.row0 + min(r, params.n_rows - 1u)) * params.y_stride + out];
    }
    return value;
}

fn put(r: u32, o: u32, value: f32) {
    if r < params.n_rows && o < params.n_out {
        y[(params.row0 + r) * params.y_stride + params.out0 + o] = value;
    }
}
