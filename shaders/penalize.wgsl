// penalize: applies a sequence's penalties and logit bias to its logits z, in this order:
// token in prompt or output: z := z > 0 ? z / repetition : z · repetition   (Keskar et al. 2019, section 4.1)
// token c times in the output: z := z − presence·[c > 0] − frequency·c      (OpenAI's API reference)
// each entry (token, b) of the bias list: z := z + b
// One workgroup: EACH · WG tokens of one row.
override WG: u32 = 64u;

// Tokens of a lane, whose counts it loads at once.
const EACH: u32 = 8u;

struct Params {
    n_rows: u32,
    n_vocab: u32,
    z_stride: u32,    // elements per row
    bias_stride: u32, // entries per sequence
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;        // (sequence, position)
@group(0) @binding(2) var<storage, read> index: array<u32>;         // [n_rows] row that each row of z belongs to
@group(0) @binding(3) var<storage, read> sampling: array<Sampling>; // [n_seqs]
@group(0) @binding(4) var<storage, read> bias: array<vec2u>;        // [n_seqs, bias_stride] (token, bits of b), no token twice
@group(0) @binding(5) var<storage, read> counts: array<u32>;        // [n_seqs, n_vocab] bit 31: in the prompt; the rest: count
@group(0) @binding(6) var<storage, read_write> z: array<f32>;       // [n_rows, n_vocab]

@compute @workgroup_size(WG)
fn penalize(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    let seq = rows[index[r]].x;
    let s = sampling[seq];
    let base = r * params.z_stride;
    let start = id.z * EACH * WG;
    let end = min(start + EACH * WG, params.n_vocab);
    if s.counts == 1u {
        var seen: array<u32, EACH>;
        for (var i = 0u; i < EACH; i++) {
            let t = start + lane + i * WG;
            seen[i] = select(0u, counts[seq * params.n_vocab + min(t, end - 1u)], t < end);
        }
        for (var i = 0u; i < EACH; i++) {
            if seen[i] != 0u {
                let at = base + start + lane + i * WG;
                var value = z[at];
                value = select(value * s.repetition_penalty, value / s.repetition_penalty, value > 0.0);
                let count = seen[i] & 0x7fffffffu;
                if count > 0u {
                    value -= s.presence_penalty + s.frequency_penalty * f32(count);
                }
                z[at] = value;
            }
        }
    }
    storageBarrier();
    for (var i = lane; i < s.n_bias; i += WG) {
        let entry = bias[seq * params.bias_stride + i];
        if entry.x >= start && entry.x < end {
            z[base + entry.x] += bitcast<f32>(entry.y);
        }
    }
}
