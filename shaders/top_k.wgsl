// top_k: the chosen element of each row of x and the k largest, with their columns; largest first, on a tie the smaller
// column first. Minus infinity counts, and is written, as the lowest finite number.
// y[r, 0] = (chosen[r], x[r, chosen[r]]), y[r, 1 + i] = the i-th largest.
// One workgroup: one row. One to four passes narrow the row down to a list in workgroup memory (see the part `select`), which
// one more pass writes. A k of up to 128 always fits there if the row has less than 2^19 columns; else each of the k largest
// may take a pass of its own.
override WG: u32 = 64u;

struct Params {
    n_rows: u32,
    n_cols: u32,
    x_stride: u32, // vec4s per row
    k: u32,        // at most n_cols
    y_stride: u32, // pairs per row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;        // [n_rows, n_cols]
@group(0) @binding(2) var<storage, read> chosen: array<u32>;     // [n_rows]
@group(0) @binding(3) var<storage, read_write> y: array<vec2u>;  // [n_rows, 1 + k] (column, bits of the value)

const LOWEST: f32 = -3.4028234e38;

var<private> row: u32; // first vec4 of the row

fn load(i: u32) -> vec4f {
    return max(x[row + i], vec4f(LOWEST));
}

// What a pass does with the keys from `least` to `most`.
struct Pass {
    least: u32,
    most: u32,
    shift: u32, // of the digit, or the bits of a column that share a bin
    last: u32,  // the last column of the keys that are `least`
    task: u32,
}

// Adds up the numbers of the keys with each value of a digit, or of their columns; or lists the keys.
const DIGITS: u32 = 0u;
const COLUMNS: u32 = 1u;
const ENLIST: u32 = 2u;

fn run(work: Pass, lane: u32) {
    for (var i = lane; i < n_left(); i += AT_ONCE * WG) {
        let k = sixteen_keys(i);
        var bits = bits_of(k, max(work.least, KEY_LOWEST), work.most);
        let count = countOneBits(bits);
        for (var j = 0u; j < count; j++) {
            let bit = firstTrailingBit(bits);
            bits &= bits - 1u;
            let key = key_at(k, bit);
            let column = index_at(i, bit);
            if work.task != ENLIST {
                let of_column = BINS - 1u - (column >> work.shift);
                atomicAdd(&bins[select((key >> work.shift) % BINS, of_column, work.task == COLUMNS)], 1u);
            } else if key > work.least || column <= work.last {
                list_add(key, column);
            }
        }
    }
}

// The steps: the digits of the k-th largest key, the columns of the keys that are equal to it, and the list. All but the list
// only while more is left than it holds.
const DIGIT_3: u32 = 2u;
const COLUMN: u32 = 3u;
const LAST: u32 = 4u;

// Reads x, and sets `n_list` if the list has the k largest elements.
fn narrow(lane: u32) {
    // The bits that are known of the k-th largest key; `n_above` keys are above those with these bits. Of the keys that are
    // equal to it, the ones in columns up to `last` are wanted.
    var least = KEY_LOWEST;
    var most = 0xffffffffu;
    var last = 0xffffffffu;
    var n_above = 0u;
    var n_left_over = params.n_cols;
    // A bin of columns has at most 256, if there are less than 2^19.
    let column_bits = max(firstLeadingBit(params.n_cols), 10u) - 10u;
    for (var step = 0u; step <= LAST; step++) {
        let is_list = step == LAST;
        if is_list != (n_left_over <= LIST) {
            continue;
        }
        if is_list {
            list_begin(lane);
            workgroupBarrier();
        } else {
            bins_clear(lane);
        }
        let shift = select(0u, 21u - 11u * step, step < DIGIT_3);
        var work = Pass(least, most, shift, last, DIGITS);
        if step == COLUMN {
            work = Pass(least, most, column_bits, last, COLUMNS);
        } else if is_list {
            work = Pass(least, 0xffffffffu, 0u, last, ENLIST);
        }
        run(work, lane);
        if is_list {
            continue;
        }
        bins_sum(0u, BINS, lane);
        let found = bins_find(0u, BINS, params.k - n_above, lane);
        n_left_over = n_above + found.above + found.inside;
        if step == COLUMN {
            last = ((BINS - found.bin) << column_bits) - 1u;
        } else {
            n_above += found.above;
            least = select(least & ~((1u << (shift + 11u)) - 1u), 0u, step == 0u) | (found.bin << shift);
            most = least | ((1u << shift) - 1u);
        }
    }
    workgroupBarrier();
    n_list = select(0u, n_left_over, n_left_over <= LIST);
}

@compute @workgroup_size(WG)
fn top_k(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    row = r * params.x_stride;
    n_row = params.n_cols;
    if lane == 0u {
        let c = chosen[r];
        let at = min(c, params.n_cols - 1u);
        y[r * params.y_stride] = vec2u(c, bitcast<u32>(x[row + at / 4u][at % 4u]));
    }
    narrow(lane);
    // The last key found, and the column after its own. The next key is smaller, or equal and not before that column.
    var last_key = 0xffffffffu;
    var next_column = 0u;
    for (var next = 0u; next < params.k; next++) {
        var best = 0u;
        var best_column = 0xffffffffu;
        for (var i = lane; i < n_left(); i += AT_ONCE * WG) {
            let k = sixteen_keys(i);
            var bits = bits_of(k, max(best, KEY_LOWEST), last_key);
            let count = countOneBits(bits);
            for (var j = 0u; j < count; j++) {
                let bit = firstTrailingBit(bits);
                bits &= bits - 1u;
                let key = key_at(k, bit);
                let column = index_at(i, bit);
                // The list is in no order.
                let is_after = key < last_key || column >= next_column;
                if is_after && (key > best || (key == best && column < best_column)) {
                    best = key;
                    best_column = column;
                }
            }
        }
        let found = reduce_best(of_key(max(best, KEY_LOWEST)), best_column, lane);
        last_key = key_of(found.value);
        next_column = found.index + 1u;
        if lane == 0u {
            y[r * params.y_stride + 1u + next] = vec2u(found.index, bitcast<u32>(found.value));
        }
    }
}
