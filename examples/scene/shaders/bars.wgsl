// A bar for each label: its probability among the labels, out of the buffer in which the engine left the probabilities
// of all tokens. They never pass through the host.

struct Bars {
    rect: vec4f,     // left, top, width, height of all bars, in pixels
    window: vec2f,   // pixels
    row: u32,        // first value of the row
    n_labels: u32,
    tokens: vec4u,   // of the labels
}

@group(0) @binding(0) var<uniform> bars: Bars;
@group(0) @binding(1) var<storage, read> kept: array<f32>;

struct Corner {
    @builtin(position) position: vec4f,
    @location(0) color: vec4f,
}

const COLORS = array(
    vec3f(1.0, 0.8, 0.3), vec3f(0.35, 0.6, 1.0), vec3f(0.7, 0.45, 0.95), vec3f(1.0, 0.35, 0.3),
);

@vertex
fn corners(@builtin(vertex_index) i: u32, @builtin(instance_index) bar: u32) -> Corner {
    var sum = 0.0;
    for (var label = 0u; label < bars.n_labels; label += 1u) {
        sum += kept[bars.row + bars.tokens[label]];
    }
    let probability = select(0.0, kept[bars.row + bars.tokens[bar]] / sum, sum > 0.0);
    let step = bars.rect.w / f32(bars.n_labels);
    let side = vec2f(f32(i & 1u), f32(i >> 1u));
    // A bar of no probability can still be seen.
    let size = vec2f(max(2.0, bars.rect.z * probability), 0.62 * step);
    let at = bars.rect.xy + vec2f(0.0, (f32(bar) + 0.19) * step) + side * size;
    var colors = COLORS;
    var out: Corner;
    out.position = vec4f(at.x / bars.window.x * 2.0 - 1.0, 1.0 - at.y / bars.window.y * 2.0, 0.0, 1.0);
    out.color = vec4f(colors[bar], 1.0);
    return out;
}

@fragment
fn pixel(in: Corner) -> @location(0) vec4f {
    return in.color;
}
