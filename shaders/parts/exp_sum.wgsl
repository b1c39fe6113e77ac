// Contract: `reduce_exp` gives all lanes the largest of a row's first n elements, and Σ e^(scale · (x − top)) over those that
// are at least `floor`, with keep = (scale, floor). Reads the row once: the sum is relative to the largest element so far
// (Milakov & Gimelshein 2018). Uses `load(i)`, which gives the i-th vec4 of the row, and WG.
struct ExpSum { top: f32, sum: f32 }

const LOWEST: f32 = -3.4028234e38;

fn reduce_exp(n: u32, keep: vec2f, lane: u32) -> ExpSum {
    let n4 = (n + 3u) / 4u;
    var top = LOWEST;
    var sum = 0.0;
    for (var i = lane; i < n4; i += 4u * WG) {
        // Four loads at once, so that a lane waits once for all.
        let a = load(i);
        let b = load(min(i + WG, n4 - 1u));
        let c = load(min(i + 2u * WG, n4 - 1u));
        let d = load(min(i + 3u * WG, n4 - 1u));
        var values = array(a, b, c, d);
        for (var u = 0u; u < 4u; u++) {
            let left = vec4u(4u * (i + u * WG)) + vec4u(0u, 1u, 2u, 3u) < vec4u(n);
            let value = select(vec4f(LOWEST), values[u], left);
            let larger = max(max(value.x, value.y), max(value.z, value.w));
            if larger > top {
                sum *= exp((top - larger) * keep.x);
                top = larger;
            }
            let kept = left & (value >= vec4f(keep.y));
            sum += dot(select(vec4f(), exp((value - top) * keep.x), kept), vec4f(1.0));
        }
    }
    let most = reduce_best(top, lane, lane).value;
    return ExpSum(most, reduce_sum(sum * exp((top - most) * keep.x), lane));
}
