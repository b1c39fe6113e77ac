// count_prompt: counts what a sequence has before its next draw, for the penalties: bit 31 of a token's count marks that
// it is in the prompt, the rest is how often it was generated.
// One invocation: one token.
override WG: u32 = 64u;

struct Params {
    seq: u32,
    n_prompt: u32,
    n_tokens: u32,      // prompt, then what was generated
    tokens_stride: u32, // tokens a sequence
    counts_stride: u32, // counts a sequence
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;                  // [n_seqs, tokens_stride]
@group(0) @binding(2) var<storage, read_write> counts: array<atomic<u32>>;    // [n_seqs, counts_stride]

@compute @workgroup_size(WG)
fn count_prompt(
    @builtin(global_invocation_id) id: vec3u,
    @builtin(num_workgroups) n: vec3u,
) {
    let i = id.x + id.y * n.x * WG;
    if i >= params.n_tokens {
        return;
    }
    let token = tokens[params.seq * params.tokens_stride + i];
    if token < params.counts_stride {
        let at = params.seq * params.counts_stride + token;
        if i < params.n_prompt {
            atomicOr(&counts[at], 0x80000000u);
        } else {
            atomicAdd(&counts[at], 1u);
        }
    }
}
