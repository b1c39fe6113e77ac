// Contract: the rows of a product, and how an output is finished. `take(group, size)` is the first row of the group of
// `size` rows that a workgroup works on, counted as in the other functions, and how many rows there are; none if there is
// nothing to do. `input_row(r)` is the row of x that row r reads, `weight_row(o)` the row of w of output o.
// `finished(r, o, sum)` is output o of this range of weights for row r: sum + (b[out0 + o] if BIAS) + (y[row, out0 + o] if
// ADD); beyond the last row and output, the last one's inputs are read. `put(r, o, value)` writes it to y, if the row and
// the output exist. Kernels finish all their outputs before they put the first: a store would hold up the loads behind it.
// If ROUTED, the rows are pairs of a row and a slot, pair p of row p / n_slots of x, and a group is of one expert, whose
// weights it takes: row p of y is the pair's. If DIRECT a group is one pair, whose expert is routes[p]; if LISTED, it is
// a block of `group`: routes[3·group] is its expert, the next numbers are where its pairs are listed, and how many.
// Uses the kernel's `params`, `b`, `routes` and `y`.
override ADD: u32 = 0u;
override BIAS: u32 = 0u;
override ROUTED: u32 = 0u;
const DIRECT: u32 = 1u;
const LISTED: u32 = 2u;

struct Taken { r0: u32, n_rows: u32 }

// Only if ROUTED.
var<private> own_rows: u32;    // pairs of the block
var<private> own_first: u32;   // the pair, or where the block's pairs are listed
var<private> own_expert: u32;  // counted from the first of this range of w

fn take(group: u32, size: u32) -> Taken {
    if ROUTED == 0u {
        return Taken(group * size, params.n_rows);
    }
    var expert: u32;
    var first = params.row0 + group;
    var n = 1u;
    if ROUTED == DIRECT {
        expert = routes[first];
    } else {
        expert = routes[3u * group];
        first = routes[3u * group + 1u];
        n = routes[3u * group + 2u];
    }
    own_rows = n;
    own_first = first;
    own_expert = expert - params.expert0;
    // Another range has the weights of the other experts.
    return Taken(0u, select(0u, n, expert - params.expert0 < params.n_experts));
}

fn row_count() -> u32 {
    if ROUTED == 0u {
        return params.n_rows;
    }
    return own_rows;
}

fn output_row(r: u32) -> u32 {
    if ROUTED == 0u {
        return params.row0 + min(r, params.n_rows - 1u);
    }
    if ROUTED == DIRECT {
        return own_first;
    }
    return routes[own_first + min(r, own_rows - 1u)];
}

fn input_row(r: u32) -> u32 {
    let row = output_row(r);
    if ROUTED == 0u {
        return row;
    }
    return row / params.n_slots;
}

fn weight_row(o: u32) -> u32 {
    let row = min(o, params.n_out - 1u);
    if ROUTED == 0u {
        return params.w0 + row;
    }
    return own_expert * params.n_out + row;
}

fn finished(r: u32, o: u32, sum: f32) -> f32 {
    let out = params.out0 + min(o, params.n_out - 1u);
    var value = sum;
    if BIAS == 1u {
        var at = out;
        if ROUTED > 0u {
            at += (params.expert0 + own_expert) * params.b_stride;
        }
        value += b[at];
    }
    if ADD == 1u {
        value += y[output_row(r) * params.y_stride + out];
    }
    return value;
}

fn put(r: u32, o: u32, value: f32) {
    if r < row_count() && o < params.n_out {
        y[output_row(r) * params.y_stride + params.out0 + o] = value;
    }
}
