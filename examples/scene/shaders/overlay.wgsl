// Panels and letters: one rectangle for each instance, in pixels from the window's upper left corner.

struct Window {
    size: vec2f,
}

@group(0) @binding(0) var<uniform> window: Window;
@group(0) @binding(1) var letters: texture_2d<f32>;
@group(0) @binding(2) var linear: sampler;

struct Corner {
    @builtin(position) position: vec4f,
    @location(0) uv: vec2f,
    @location(1) color: vec4f,
    @location(2) from_center: vec2f,
    @location(3) @interpolate(flat) half_size: vec2f,
    @location(4) @interpolate(flat) radius: f32,
}

@vertex
fn corners(
    @builtin(vertex_index) i: u32,
    @location(0) rect: vec4f,   // left, top, width, height
    @location(1) uv: vec4f,     // left, top, right, bottom in the texture
    @location(2) color: vec4f,
    @location(3) radius: f32,   // of a panel's corners; negative for a letter
) -> Corner {
    let side = vec2f(f32(i & 1u), f32(i >> 1u));
    let at = rect.xy + side * rect.zw;
    var out: Corner;
    out.position = vec4f(at.x / window.size.x * 2.0 - 1.0, 1.0 - at.y / window.size.y * 2.0, 0.0, 1.0);
    out.uv = mix(uv.xy, uv.zw, side);
    out.color = color;
    out.half_size = 0.5 * rect.zw;
    out.from_center = (side - 0.5) * rect.zw;
    out.radius = radius;
    return out;
}

@fragment
fn pixel(in: Corner) -> @location(0) vec4f {
    let ink = textureSampleLevel(letters, linear, in.uv, 0.0).r;
    let q = abs(in.from_center) - in.half_size + in.radius;
    let outside = length(max(q, vec2f(0.0))) + min(max(q.x, q.y), 0.0) - in.radius;
    let cover = select(clamp(0.5 - outside, 0.0, 1.0), ink, in.radius < 0.0);
    return vec4f(in.color.rgb, in.color.a * cover);
}
