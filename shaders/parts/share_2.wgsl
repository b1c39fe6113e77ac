// Contract: N_ROWS, the rows that share one read of the weights. A constant and not an `override`, because compilers keep
// arrays in registers only if they know the trip count of the loops over them.
const N_ROWS: u32 = 2u;
