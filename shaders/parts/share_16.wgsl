// Contract: N_ROWS, the rows that share one reading of the weights. A constant in a part and no `override`, because
// arrays of that length stay in registers only where a loop over them is seen to be as long.
const N_ROWS: u32 = 16u;
