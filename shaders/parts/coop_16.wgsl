// Contract: `TileA`, `TileB` and `TileC` are the left factor, the right factor and the sum of the device's
// cooperative matrices, all `TILE` × `TILE`.
// f16 in, f32 out, 16 × 16: graphics cards with matrix units.

const TILE: u32 = 16u;
alias TileA = coop_mat16x16<f16, A>;
alias TileB = coop_mat16x16<f16, B>;
alias TileC = coop_mat16x16<f32, C>;
