//! Token and position embedding.

use super::{Rows, assert_rows, kernel, weights, words_part};
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_blocks: u32,
        w_stride: u32,
        tokens_stride: u32,
        first: u32,
        n_range: u32,
        n_table: u32,
        offset: u32,
        scale: f32,
    }
}

kernel!(EMBED, "embed", Params, [Read, Read, Read, ReadWrite]);

/// Which row of the table a row of the batch gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// That of its token.
    Token,
    /// That of its token, added to `x`.
    AddToken,
    /// That of its position, added to `x`.
    AddPosition,
    /// That of its position plus this offset, added to `x`.
    AddPositionAfter(usize),
    /// This one for all rows, added to `x`.
    AddRow(usize),
}

/// An embedding table, and how a row of the batch is looked up in it.
#[derive(Clone, Debug)]
pub struct Embed {
    /// `[n_table, hidden]`.
    pub table: Tensor,
    /// The index of a row, and whether the result is added.
    pub lookup: Lookup,
    /// Factor on the row.
    pub scale: f32,
}

/// Looks up a row of the table for each row: sets `x` `[rows, hidden]` to it, scaled, or adds that to `x`. `rows`
/// `[_, 2]` holds (sequence, position), `tokens` `[n_seqs, ctx]` ids. A token outside the table gives zeros.
///
/// # Panics
/// If the shapes disagree.
pub fn embed(rec: &mut Recorder, embed: &Embed, rows: &Tensor, tokens: &Tensor, x: &Tensor, n: Rows) {
    let Embed { table, lookup, scale } = embed;
    assert_eq!(x.stride(), table.stride(), "embed: {x:?} and {table:?}");
    assert_rows("embed", x, n.count());
    assert_rows("embed", rows, n.count());
    let (kind, offset) = match *lookup {
        Lookup::Token | Lookup::AddToken => (0, 0),
        Lookup::AddPosition => (1, 0),
        Lookup::AddPositionAfter(offset) => (1, offset),
        Lookup::AddRow(row) => (2, row),
    };
    let variant = Variant::new(&EMBED)
        .part(words_part(rec.caps(EMBED.name)))
        .part(weights(table.dtype()))
        .set("WG", rec.caps(EMBED.name).one_subgroup().unwrap_or(super::PORTABLE_LANES))
        .set("LOOKUP", kind)
        .set("ADD", (*lookup != Lookup::Token).into());
    for range in table.ranges() {
        let params = Params {
            n_rows: n.count() as u32,
            n_blocks: super::n_blocks(table),
            w_stride: super::words(table),
            tokens_stride: tokens.n_cols() as u32,
            first: range.rows.start as u32,
            n_range: range.rows.len() as u32,
            n_table: table.n_rows() as u32,
            offset: offset as u32,
            scale: *scale,
        };
        let groups = rec.gpu().caps().spread(n.count() as u32);
        rec.dispatch(variant, &params, &[rows.view(), tokens.view(), range, x.view()], groups);
    }
}
