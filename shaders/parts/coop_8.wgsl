// Contract: `TileA`, `TileB` and `TileC` are the left factor, the right factor and the sum of the device's
// cooperative matrices, all `TILE` × `TILE`.
// f16 in, f32 out, 8 × 8: software Vulkan (Mesa 26).

const TILE: u32 = 8u;
alias TileA = coop_mat8x8<f16, A>;
alias TileB = coop_mat8x8<f16, B>;
alias TileC = coop_mat8x8<f32, C>;
