// Contract: finds thresholds over a row of floats by the digits of their keys, from the highest digit on: a pass over the
// row adds up, in `bins`, the numbers or the masses of the keys with each digit, and `bins_find` finds the digit at which
// the sum from the highest on reaches a goal. Sums are of integers, so they do not depend on the order of the lanes.
// Once few elements are left, a pass can list them in workgroup memory, and the next passes read them there.
// Uses the kernel's WG, and `load(i)`, which gives the i-th vec4 of the row. `n_row` must be set first.

// Values of a digit: 11 bits.
const BINS: u32 = 2048u;
// Most elements of the list: what 16 KiB leave beside the bins and the scratch of reductions.
const LIST: u32 = 384u;
// The key of minus infinity, which stands for what is beyond the row's end, and that of the lowest finite number.
const KEY_NONE: u32 = 0x00800000u;
const KEY_LOWEST: u32 = 0x00800001u;
// A lane loads four vec4s at once, WG vec4s apart, so that it waits once for all.
const AT_ONCE: u32 = 4u;

var<private> n_row: u32;  // elements of the row
var<private> n_list: u32; // elements of the list, or 0: `keys` reads the row

var<workgroup> bins: array<atomic<u32>, BINS>;
var<workgroup> bin_sums: array<u32, 128>;
var<workgroup> bin_sums_16: array<u32, 8>;
var<workgroup> bin_found: vec4u;
var<workgroup> list_key: array<u32, LIST>;
var<workgroup> list_index: array<u32, LIST>;
var<workgroup> list_length: atomic<u32>;

// The integer of a float, in the same order; −0 equals 0.
fn key4(f: vec4f) -> vec4u {
    let bits = bitcast<vec4u>(f);
    return select(bits | vec4u(0x80000000u), vec4u() - bits, bits >= vec4u(0x80000000u));
}

fn key_of(f: f32) -> u32 {
    return key4(vec4f(f)).x;
}

fn of_key(key: u32) -> f32 {
    return bitcast<f32>(select(0u - key, key & 0x7fffffffu, key >= 0x80000000u));
}

// The number of vec4s of what is left.
fn n_left() -> u32 {
    return (select(n_row, n_list, n_list > 0u) + 3u) / 4u;
}

// The i-th four keys of what is left.
fn keys(i: u32) -> vec4u {
    let at = vec4u(4u * i) + vec4u(0u, 1u, 2u, 3u);
    if n_list > 0u {
        let near = min(at, vec4u(n_list - 1u));
        let key = vec4u(list_key[near.x], list_key[near.y], list_key[near.z], list_key[near.w]);
        return select(vec4u(KEY_NONE), key, at < vec4u(n_list));
    }
    return select(vec4u(KEY_NONE), key4(load(min(i, (n_row - 1u) / 4u))), at < vec4u(n_row));
}

fn sixteen_keys(i: u32) -> array<vec4u, AT_ONCE> {
    return array(keys(i), keys(i + WG), keys(i + 2u * WG), keys(i + 3u * WG));
}

fn four_bits(k: vec4u, least: u32, most: u32) -> u32 {
    let bits = select(vec4u(), vec4u(1u, 2u, 4u, 8u), k >= vec4u(least) & k <= vec4u(most));
    return bits.x | bits.y | bits.z | bits.w;
}

// A bit for each of sixteen keys: whether it is one of least … most. Few are, in most passes, and a loop over them is short
// code.
fn bits_of(k: array<vec4u, AT_ONCE>, least: u32, most: u32) -> u32 {
    return four_bits(k[0], least, most) | four_bits(k[1], least, most) << 4u
        | four_bits(k[2], least, most) << 8u | four_bits(k[3], least, most) << 12u;
}

// The key of a bit. (An index that is computed would put the array in memory.)
fn key_at(k: array<vec4u, AT_ONCE>, bit: u32) -> u32 {
    let odd = vec4<bool>((bit & 4u) != 0u);
    let four = select(select(k[0], k[1], odd), select(k[2], k[3], odd), vec4<bool>(bit >= 8u));
    let two = select(four.xz, four.yw, vec2<bool>((bit & 1u) != 0u));
    return select(two.x, two.y, (bit & 2u) != 0u);
}

// The place in the row of the key of a bit of the sixteen from the i-th vec4 on.
fn index_at(i: u32, bit: u32) -> u32 {
    let at = 4u * (i + bit / 4u * WG) + bit % 4u;
    if n_list > 0u {
        return list_index[min(at, n_list - 1u)];
    }
    return at;
}

fn bins_clear(lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < BINS; i += WG) {
        atomicStore(&bins[i], 0u);
    }
    workgroupBarrier();
}

// The sum of bins first … first + n − 1; `bins_find` finds among these. n is a multiple of 256.
fn bins_sum(first: u32, n: u32, lane: u32) -> u32 {
    workgroupBarrier();
    for (var i = lane; i < n / 16u; i += WG) {
        var sum = 0u;
        for (var j = 0u; j < 16u; j++) {
            sum += atomicLoad(&bins[first + 16u * i + j]);
        }
        bin_sums[i] = sum;
    }
    workgroupBarrier();
    for (var i = lane; i < n / 256u; i += WG) {
        var sum = 0u;
        for (var j = 0u; j < 16u; j++) {
            sum += bin_sums[16u * i + j];
        }
        bin_sums_16[i] = sum;
    }
    workgroupBarrier();
    if lane == 0u {
        var sum = 0u;
        for (var i = 0u; i < n / 256u; i++) {
            sum += bin_sums_16[i];
        }
        bin_found.x = sum;
    }
    return workgroupUniformLoad(&bin_found).x;
}

struct Found {
    bin: u32,    // the highest bin from which on the sum is at least the goal; the lowest, if none is
    above: u32,  // sum of the bins above
    inside: u32, // of the bin
}

fn bins_find(first: u32, n: u32, goal: u32, lane: u32) -> Found {
    if lane == 0u {
        // Each step goes down the sums that make one of the last step's.
        var above = 0u;
        var at = n / 256u - 1u;
        for (var i = at; i > 0u; i--) {
            let sum = bin_sums_16[i];
            if at == i && above + sum < goal {
                above += sum;
                at = i - 1u;
            }
        }
        let end_16 = 16u * at + 15u;
        at = end_16;
        for (var i = 0u; i < 15u; i++) {
            let sum = bin_sums[end_16 - i];
            if at == end_16 - i && above + sum < goal {
                above += sum;
                at -= 1u;
            }
        }
        let end = 16u * at + 15u;
        at = end;
        for (var i = 0u; i < 15u; i++) {
            let sum = atomicLoad(&bins[first + end - i]);
            if at == end - i && above + sum < goal {
                above += sum;
                at -= 1u;
            }
        }
        bin_found = vec4u(at, above, atomicLoad(&bins[first + at]), 0u);
    }
    let found = workgroupUniformLoad(&bin_found);
    return Found(found.x, found.y, found.z);
}

// Begins a list. After a barrier `list_add` adds elements, in any order; after another `n_list` is set to their number.
fn list_begin(lane: u32) {
    if lane == 0u {
        atomicStore(&list_length, 0u);
    }
}

fn list_add(key: u32, index: u32) {
    let free = min(atomicAdd(&list_length, 1u), LIST - 1u);
    list_key[free] = key;
    list_index[free] = index;
}
