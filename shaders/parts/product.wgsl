// Contract: `put(r, o, sum)` writes an output of a product, if row r of the dispatch and output o of this range of
// weights exist: y[row0 + r, out0 + o] = sum + (b[out0 + o] if BIAS) + (y[row0 + r, out0 + o] if ADD).
// Uses the kernel's `params`, `b` and `y`.
override ADD: u32 = 0u;
override BIAS: u32 = 0u;

fn put(r: u32, o: u32, sum: f32) {
    if r >= params.n_rows || o >= params.n_out {
        return;
    }
    let out = params.out0 + o;
    let at = (params.row0 + r) * params.y_stride + out;
    var value = sum;
    if BIAS == 1u {
        value += b[out];
    }
    if ADD == 1u {
        value += y[at];
    }
    y[at] = value;
}
