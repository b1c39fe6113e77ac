// A fire on a beach at night, and a fox beside it. Everything is computed for each pixel: noise makes the hills, the
// sea and the fire, distances to simple shapes the fox.

struct Scene {
    size: vec2f,    // pixels
    time: f32,      // seconds
    samples: f32,   // per pixel
    talk: f32,      // 1 while the fox talks
    listen: f32,    // 1 while it listens to the radio
}

@group(0) @binding(0) var<uniform> scene: Scene;

@vertex
fn corners(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
    return vec4f(f32(i & 1u) * 4.0 - 1.0, f32(i >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}

fn hash(p: vec2f) -> f32 {
    let q = fract(p * vec2f(0.7548777, 0.5698403)) + 0.37;
    return fract(q.x * q.y * (q.x + 3.0 * q.y) * 97.31);
}

fn noise(p: vec2f) -> f32 {
    let i = floor(p);
    let f = fract(p);
    let u = f * f * (3.0 - 2.0 * f);
    let low = mix(hash(i), hash(i + vec2f(1.0, 0.0)), u.x);
    let high = mix(hash(i + vec2f(0.0, 1.0)), hash(i + vec2f(1.0, 1.0)), u.x);
    return mix(low, high, u.y);
}

fn octaves(p: vec2f) -> f32 {
    return 0.5 * noise(p) + 0.25 * noise(2.03 * p + 7.1) + 0.125 * noise(4.07 * p + 3.7);
}

const HORIZON = 0.02;

fn sky(p: vec2f) -> vec3f {
    let height = clamp((p.y - HORIZON) * 2.2, 0.0, 1.0);
    var color = mix(vec3f(0.86, 0.45, 0.33), vec3f(0.33, 0.22, 0.42), smoothstep(0.0, 0.35, height));
    color = mix(color, vec3f(0.05, 0.07, 0.19), smoothstep(0.2, 0.95, height));
    let cell = floor(p * 70.0);
    let star = hash(cell);
    if star > 0.965 {
        let at = (cell + vec2f(hash(cell + 3.0), hash(cell + 9.0))) / 70.0;
        let blink = 0.55 + 0.45 * sin(scene.time * (1.0 + 3.0 * star) + 90.0 * star);
        color += smoothstep(0.0035, 0.0, distance(p, at)) * blink * smoothstep(0.25, 0.6, height);
    }
    let moon = distance(p, vec2f(0.16, 0.36));
    color += vec3f(0.95, 0.9, 0.75) * (smoothstep(0.052, 0.048, moon) + 0.16 * exp(-11.0 * moon));
    let cloud = noise(vec2f(p.x * 2.2 + scene.time * 0.03, p.y * 9.0));
    return mix(color, vec3f(0.75, 0.5, 0.5), 0.35 * smoothstep(0.5, 0.9, cloud) * (1.0 - height));
}

fn hills(p: vec2f, color: vec3f) -> vec3f {
    if p.y > HORIZON + 0.13 {
        return color;
    }
    let far = HORIZON + 0.13 * octaves(vec2f(p.x * 1.7 + 4.0, 1.0)) - 0.01;
    let near = HORIZON + 0.1 * octaves(vec2f(p.x * 3.1 - 2.0, 8.0)) - 0.02;
    var hilly = mix(color, vec3f(0.25, 0.18, 0.34), smoothstep(0.002, -0.002, p.y - far));
    hilly = mix(hilly, vec3f(0.14, 0.12, 0.25), smoothstep(0.002, -0.002, p.y - near));
    return hilly;
}

fn sea(p: vec2f) -> vec3f {
    let depth = HORIZON - p.y;
    let wave = octaves(vec2f(p.x * 5.0 / (0.1 + depth), scene.time * 0.8 + 1.6 / (0.03 + depth))) - 0.42;
    let mirrored = vec2f(p.x + wave * depth * 0.5, 2.0 * HORIZON - p.y + wave * 0.16);
    var color = hills(mirrored, sky(mirrored)) * vec3f(0.55, 0.6, 0.75);
    color += vec3f(0.9, 0.8, 0.6) * smoothstep(0.16, 0.36, wave) * exp(-24.0 * pow(p.x - 0.16, 2.0)) * 0.8;
    return color;
}

fn flame(p: vec2f) -> vec3f {
    let q = vec2f(p.x, p.y + 0.035);
    let lick = octaves(vec2f(q.x * 16.0, q.y * 11.0 - scene.time * 3.1));
    let width = 0.055 * (1.0 - smoothstep(-0.02, 0.19, q.y));
    let heat = smoothstep(width, width * 0.2, abs(q.x + (lick - 0.4) * 0.05 * smoothstep(0.0, 0.1, q.y)))
        * smoothstep(0.2, 0.02, q.y + 0.13 * lick) * step(-0.005, q.y);
    return vec3f(1.0, 0.35, 0.07) * heat + vec3f(0.7, 0.6, 0.2) * heat * heat * smoothstep(0.11, 0.0, q.y);
}

fn circle(p: vec2f, at: vec2f, radius: vec2f) -> f32 {
    let q = (p - at) / radius;
    return (length(q) - 1.0) * min(radius.x, radius.y);
}

// Negative inside. The corners go round against the clock.
fn triangle(p: vec2f, a: vec2f, b: vec2f, c: vec2f) -> f32 {
    let ab = dot(p - a, normalize(vec2f(b.y - a.y, a.x - b.x)));
    let bc = dot(p - b, normalize(vec2f(c.y - b.y, b.x - c.x)));
    let ca = dot(p - c, normalize(vec2f(a.y - c.y, c.x - a.x)));
    return max(max(ab, bc), ca);
}

fn paint(color: vec3f, over: vec3f, d: f32) -> vec3f {
    return mix(color, over, smoothstep(0.0015, -0.0015, d));
}

// The fox sits at the origin; `light` is the fire's, from the left.
fn fox(p: vec2f, behind: vec3f, light: f32) -> vec3f {
    if p.x < -0.22 || p.x > 0.26 || p.y < -0.14 || p.y > 0.36 {
        return behind;
    }
    let breath = 0.004 * sin(scene.time * 2.0);
    let sway = 0.02 * sin(scene.time * 1.3);
    let fur = vec3f(0.9, 0.42, 0.13) * (0.55 + 0.5 * light * smoothstep(0.16, -0.16, p.x));
    let dark = vec3f(0.2, 0.11, 0.1);
    let white = vec3f(0.98, 0.92, 0.84) * (0.65 + 0.35 * light);
    var color = behind;
    // Tail, body, legs.
    color = paint(color, fur * 0.85, circle(p, vec2f(0.15 + sway, -0.02), vec2f(0.085, 0.05)));
    color = paint(color, white, circle(p, vec2f(0.205 + sway, -0.005), vec2f(0.035, 0.028)));
    color = paint(color, fur, circle(p, vec2f(0.03, 0.02 + breath), vec2f(0.095, 0.125)));
    color = paint(color, white, circle(p, vec2f(-0.015, 0.03 + breath), vec2f(0.045, 0.085)));
    color = paint(color, dark, circle(p, vec2f(-0.035, -0.095), vec2f(0.032, 0.022)));
    color = paint(color, dark, circle(p, vec2f(0.045, -0.097), vec2f(0.032, 0.022)));
    // Ears, which it raises when it listens; head; cheeks.
    let h = p - vec2f(-0.02, 0.2 + breath + 0.006 * scene.talk * sin(scene.time * 9.0));
    let ear = 0.02 * scene.listen * (0.6 + 0.4 * sin(scene.time * 7.0));
    color = paint(color, dark, triangle(h, vec2f(-0.095, 0.035), vec2f(-0.015, 0.07), vec2f(-0.08, 0.145 + ear)));
    color = paint(color, dark, triangle(h, vec2f(0.015, 0.07), vec2f(0.095, 0.035), vec2f(0.08, 0.145 + ear)));
    color = paint(color, fur, circle(h, vec2f(0.0), vec2f(0.1, 0.085)));
    color = paint(color, white, circle(h, vec2f(-0.055, -0.03), vec2f(0.052, 0.04)));
    color = paint(color, white, circle(h, vec2f(0.055, -0.03), vec2f(0.052, 0.04)));
    color = paint(color, white, circle(h, vec2f(0.0, -0.045), vec2f(0.05, 0.042)));
    // Eyes that blink, nose, mouth.
    let blink = select(0.016, 0.002, fract(scene.time * 0.27) > 0.965);
    color = paint(color, dark, circle(h, vec2f(-0.042, 0.012), vec2f(0.013, blink)));
    color = paint(color, dark, circle(h, vec2f(0.042, 0.012), vec2f(0.013, blink)));
    color = paint(color, vec3f(1.0), circle(h, vec2f(-0.038, 0.018), vec2f(0.004, min(0.004, blink))));
    color = paint(color, vec3f(1.0), circle(h, vec2f(0.046, 0.018), vec2f(0.004, min(0.004, blink))));
    color = paint(color, dark, circle(h, vec2f(0.0, -0.022), vec2f(0.017, 0.012)));
    let open = 0.003 + 0.016 * scene.talk * abs(sin(scene.time * 11.0) * sin(scene.time * 5.3 + 1.0));
    return paint(color, vec3f(0.45, 0.1, 0.1), circle(h, vec2f(0.0, -0.06), vec2f(0.02, open)));
}

// A radio with an aerial, on the sand.
fn radio(p: vec2f, behind: vec3f, light: f32) -> vec3f {
    let q = abs(p) - vec2f(0.055, 0.034);
    var color = behind;
    color = paint(color, vec3f(0.5), abs(p.x - 0.04 - (p.y - 0.03) * 0.35) - 0.002 + step(0.13, p.y) + step(p.y, 0.02));
    color = paint(color, vec3f(0.5, 0.16, 0.14) * (0.6 + 0.5 * light), max(q.x, q.y) - 0.008);
    let beat = 0.002 * scene.listen * sin(scene.time * 40.0);
    color = paint(color, vec3f(0.16, 0.1, 0.1), circle(p, vec2f(-0.025, 0.0), vec2f(0.026 + beat)));
    let lamp = mix(vec3f(0.3, 0.3, 0.2), vec3f(0.6, 1.0, 0.4), scene.listen);
    return paint(color, lamp, circle(p, vec2f(0.035, 0.014), vec2f(0.008)));
}

fn picture(p: vec2f) -> vec3f {
    // The beach in the light of the fire.
    let fire = vec2f(0.13, -0.255);
    let flicker = 0.8 + 0.2 * noise(vec2f(scene.time * 6.0, 0.0));
    let beach = -0.2 - 0.12 * p.x * p.x + 0.015 * noise(vec2f(p.x * 6.0, 2.0));
    var color: vec3f;
    if p.y >= HORIZON {
        color = hills(p, sky(p));
    } else if p.y >= beach {
        color = sea(p);
    } else {
        let grain = 0.85 + 0.3 * octaves(p * vec2f(30.0, 90.0));
        let glow = exp(-7.0 * length((p - fire) * vec2f(1.0, 2.2)));
        color = vec3f(0.2, 0.15, 0.18) * grain + vec3f(0.85, 0.45, 0.18) * grain * glow * flicker;
    }
    let q = p - fire;
    color += vec3f(0.9, 0.4, 0.12) * 0.22 * exp(-9.0 * length(q)) * flicker;
    if p.y > 0.2 {
        return color;
    }
    color = paint(color, vec3f(0.16, 0.09, 0.07), circle(q, vec2f(0.0, -0.04), vec2f(0.085, 0.012)));
    color = paint(color, vec3f(0.23, 0.13, 0.08), circle(q, vec2f(0.02, -0.033), vec2f(0.06, 0.012)));
    if abs(p.x + 0.2) < 0.1 && p.y < -0.1 {
        color = radio(p - vec2f(-0.2, -0.25), color, flicker);
    }
    color = fox(p - vec2f(0.42, -0.2), color, flicker);
    if abs(q.x) < 0.12 && q.y > -0.05 && q.y < 0.2 {
        color += flame(q);
    }
    // Sparks.
    for (var i = 0.0; i < 5.0; i += 1.0) {
        let age = fract(scene.time * 0.23 + i * 0.21);
        let at = fire + vec2f(0.06 * sin(i * 5.0 + age * 7.0), age * 0.42);
        color += vec3f(1.0, 0.6, 0.2) * smoothstep(0.004, 0.001, distance(p, at)) * (1.0 - age);
    }
    return color;
}

@fragment
fn pixel(@builtin(position) at: vec4f) -> @location(0) vec4f {
    var sum = vec3f(0.0);
    for (var i = 0.0; i < scene.samples; i += 1.0) {
        // The golden ratio and its square spread the samples over the pixel.
        let inside = fract(vec2f(i * 0.618034, i * 0.381966) + 0.5) - 0.5;
        let p = vec2f(at.x + inside.x - 0.5 * scene.size.x, 0.5 * scene.size.y - at.y - inside.y) / scene.size.y;
        sum += clamp(picture(p), vec3f(0.0), vec3f(1.0));
    }
    return vec4f(sum / scene.samples, 1.0);
}
