// token_logprob: y[r] = z_t − log Σ_j e^z_j with z = z[r0 + r, :] and t the token after the row's position in its
// sequence: the log-probability of the prompt's next token.
// One workgroup: one row.
override WG: u32 = 64u;

struct Params {
    r0: u32, // first row of z and index
    n_rows: u32,
    n_vocab: u32,
    z_stride: u32,      // vec4s per row
    tokens_stride: u32, // tokens per sequence
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<vec2u>;    // (sequence, position)
@group(0) @binding(2) var<storage, read> index: array<u32>;     // [r0 + n_rows] row that each row of z belongs to
@group(0) @binding(3) var<storage, read> tokens: array<u32>;    // [n_seqs, tokens_stride]
@group(0) @binding(4) var<storage, read> z: array<vec4f>;       // [r0 + n_rows, n_vocab]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;   // [n_rows]

var<private> row: u32; // first vec4 of the row

fn load(i: u32) -> vec4f {
    return z[row + i];
}

@compute @workgroup_size(WG)
fn token_logprob(
    @builtin(workgroup_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = lane_of(local);
    let r = id.x + id.y * n.x;
    if r >= params.n_rows {
        return;
    }
    row = (params.r0 + r) * params.z_stride;
    let sum = reduce_exp(params.n_vocab, vec2f(1.0, LOWEST), lane);
    if lane == 0u {
        let at = rows[index[params.r0 + r]];
        let token = tokens[at.x * params.tokens_stride + at.y + 1u];
        y[r] = load(token / 4u)[token % 4u] - sum.top - log(sum.sum);
    }
}
