//! Trials of operations on rows: the embedding and norms.

use super::super::{
    Embed, HeadNorm, LayerNorm, Lookup, RmsNorm, Rows, embed as lookup, head_norm as heads,
    layer_norm as layer, rms_norm as rms,
};
use super::{Launch, Setup, Tolerance, is_set, odd_width, weights_dtype};
use crate::gpu::{GpuError, Variant};

/// Columns: odd, and more than any workgroup of a norm has lanes.
const N_COLS: usize = 203;
const EPS: f32 = 1e-5;

pub(super) fn embed(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let dtype = weights_dtype(variant);
    let (n_table, n_rows, ctx) = (23, 5, 7);
    let lookup_kind = match (variant.value("LOOKUP"), is_set(variant, "ADD")) {
        (Some(0), false) => Lookup::Token,
        (Some(0), true) => Lookup::AddToken,
        (Some(1), _) => Lookup::AddPositionAfter(2),
        _ => Lookup::AddRow(3),
    };
    // One id is outside the table.
    let ids: Vec<u32> = (0..2 * ctx as u32).map(|i| i * 5 % 24).collect();
    let tokens = setup.table([2, ctx], &ids)?;
    let rows = setup.table([n_rows, 2], &[1, 0, 0, 3, 1, 6, 0, 2, 1, 1])?;
    let table = setup.weights([n_table, odd_width(dtype)], dtype)?;
    let x = setup.results([n_rows, table.n_cols()])?;
    setup.tolerance = Tolerance::new(2, 1.0);
    let n = Rows { n_decode: 2, n_prompt: n_rows - 2 };
    let embed = Embed { table, lookup: lookup_kind, scale: 1.5 };
    Ok(Box::new(move |rec| lookup::embed(rec, &embed, &rows, &tokens, &x, n)))
}

pub(super) fn rms_norm(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let (x, y) = (setup.activations([6, N_COLS])?, setup.results([4, N_COLS])?);
    let norm = RmsNorm { w: setup.norm(N_COLS)?, eps: EPS, offset: 0.5 };
    let index = setup.table([1, 4], &[5, 0, 2, 3])?;
    let (gathers, adds) = (is_set(variant, "GATHER"), is_set(variant, "ADD"));
    setup.tolerance = Tolerance::new(N_COLS, 1.0);
    Ok(Box::new(move |rec| rms::rms_norm(rec, &x, &norm, gathers.then_some(&index), adds, &y, 1..4)))
}

pub(super) fn layer_norm(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let (x, y) = (setup.activations([6, N_COLS])?, setup.results([4, N_COLS])?);
    let norm = LayerNorm { w: setup.norm(N_COLS)?, b: setup.activations([1, N_COLS])?, eps: EPS };
    let index = setup.table([1, 4], &[5, 0, 2, 3])?;
    let gathers = is_set(variant, "GATHER");
    setup.tolerance = Tolerance::new(N_COLS, 1.0);
    Ok(Box::new(move |rec| layer::layer_norm(rec, &x, &norm, gathers.then_some(&index), &y, 4)))
}

pub(super) fn head_norm(setup: &mut Setup<'_>, _: &Variant) -> Result<Launch, GpuError> {
    let (n_rows, n_heads, n_kv_heads, head_dim) = (3, 3, 2, 76);
    let qkv = setup.results([n_rows, (n_heads + 2 * n_kv_heads) * head_dim])?;
    let norm = HeadNorm { q: setup.norm(head_dim)?, k: setup.norm(head_dim)?, eps: EPS, offset: 0.5 };
    setup.tolerance = Tolerance::new(head_dim, 1.0);
    Ok(Box::new(move |rec| heads::head_norm(rec, &norm, [n_heads, n_kv_heads, head_dim], &qkv, n_rows)))
}
