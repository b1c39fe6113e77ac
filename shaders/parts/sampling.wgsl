// Contract: `Sampling` is the record of one sequence that the host writes when it admits the sequence.
struct Sampling {
    seed_low: u32,
    seed_high: u32,
    temperature: f32,        // 0: the most probable token
    top_k: u32,              // 0: off
    top_p: f32,              // 1: off
    min_p: f32,              // 0: off
    repetition_penalty: f32, // 1: off
    presence_penalty: f32,   // 0: off
    frequency_penalty: f32,  // 0: off
    n_bias: u32,             // entries of the bias list
    counts: u32,             // 1: tokens are counted for the penalties
    pad: u32,
}
