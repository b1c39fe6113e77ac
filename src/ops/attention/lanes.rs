//! How the lanes of `attention` share its work: the overrides of `shaders/attention.wgsl`.

use crate::gpu::Variant;

/// Lanes per workgroup: a subgroup of the widest devices, for which barriers are free, and few enough that every device
/// has many workgroups.
pub(super) const LANES: usize = 64;

/// Most queries per workgroup. More would share each load, but need more workgroup memory than 16 KiB.
const MOST_QUERIES: usize = 16;
/// Most words of keys, or of values, that a lane loads before it uses them, and half as many if it has more than
/// `FEW_QUERIES`. With `MAX_SUMS`, as many as RADV keeps in the 132 registers that a lane has on RDNA 3. `MAX_LOADS` in the
/// kernel.
const MAX_LOADS: usize = 8;
/// Most vec4 sums per lane, `MAX_SUMS` in the kernel.
const MAX_SUMS: usize = 8;
/// Most queries per lane, `MAX_QUERIES` in the kernel.
const MAX_QUERIES: usize = 8;
const FEW_QUERIES: usize = 4;
/// Lanes that share a key, if it has words enough: eight words of 16 bytes are a cache line.
const KEY_LANES: usize = 8;
/// Workgroup memory that every device has.
const MEMORY_BYTES: usize = 16 << 10;

/// The division of one workgroup's work: words are what a lane loads at once, and a step takes `quads` times four keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Lanes {
    n_queries: usize,
    quads: usize,
    k_lanes: usize,
    k_queries: usize,
    v_keys: usize,
    v_queries: usize,
    n_shares: usize,
    merged: usize,
}

impl Lanes {
    /// The division for `n_queries` queries of `head_dim` elements in a cache with words of `word` elements, with as many
    /// keys per step as fit. `None` if none fits.
    pub(super) fn new(head_dim: usize, word: usize, n_queries: usize) -> Option<Lanes> {
        (1..=LANES / n_queries).rev().find_map(|quads| Lanes::with_quads(head_dim, word, n_queries, quads))
    }

    fn with_quads(head_dim: usize, word: usize, n_queries: usize, quads: usize) -> Option<Lanes> {
        let (n_words, word_vec4s) = (head_dim / word, word / 4);

        let v_words = n_words.div_ceil(LANES);
        let v_groups = LANES / n_words.div_ceil(v_words);
        let least_blocks = (n_queries * v_words * word_vec4s)
            .div_ceil(MAX_SUMS)
            .max(n_queries.div_ceil(FEW_QUERIES).min(v_groups));
        // As many groups of lanes share the quads as there are, and the others share the queries.
        let v_keys = (v_groups / least_blocks).min(quads);
        if v_keys == 0 || !quads.is_multiple_of(v_keys) {
            return None;
        }
        let v_queries = n_queries.div_ceil(if v_keys == quads { v_groups / quads } else { least_blocks });
        let v_loads = 4 * (quads / v_keys) * v_words;

        let k_words = n_words.div_ceil(KEY_LANES).min(2);
        let k_lanes = n_words.div_ceil(k_words);
        let k_groups = LANES.checked_div(k_lanes).filter(|groups| *groups > 0)?;
        let k_queries = n_queries.div_ceil((k_groups / quads).max(1));
        let k_turns = (quads * n_queries.div_ceil(k_queries)).div_ceil(k_groups);
        let k_loads = 4 * k_turns * k_words;

        let sums_per_query = LANES * v_words * word_vec4s;
        let n_shares = (k_lanes * (n_queries * quads + 1)).max(sums_per_query);
        let queries_bytes = 16 * n_queries * k_words * k_lanes * word_vec4s;
        // Shares, weights and maxima of a step, the places of its quads, and two numbers per query.
        let bytes = queries_bytes + 16 * n_shares + 20 * n_queries * quads + 4 * quads + 8 * n_queries;
        let fits_registers = |loads, queries| {
            let most = if queries > FEW_QUERIES { MAX_LOADS / 2 } else { MAX_LOADS };
            loads <= most && queries <= MAX_QUERIES
        };
        let fits =
            fits_registers(k_loads, k_queries) && fits_registers(v_loads, v_queries) && bytes <= MEMORY_BYTES;
        let merged = (n_shares / sums_per_query).min(v_queries);
        fits.then_some(Lanes { n_queries, quads, k_lanes, k_queries, v_keys, v_queries, n_shares, merged })
    }

    /// Most queries that a workgroup can have, whatever the type of the cache. None if a head is too wide.
    pub(super) fn most_queries(head_dim: usize) -> Option<usize> {
        let words: &[usize] = if head_dim.is_multiple_of(8) { &[4, 8] } else { &[4] };
        (1..=MOST_QUERIES).rev().find(|n| words.iter().all(|word| Lanes::new(head_dim, *word, *n).is_some()))
    }

    /// Sets the overrides.
    pub(super) fn set(&self, variant: Variant) -> Variant {
        [
            ("WG", LANES),
            ("N_Q", self.n_queries),
            ("QUADS", self.quads),
            ("K_LANES", self.k_lanes),
            ("K_QUERIES", self.k_queries),
            ("V_KEYS", self.v_keys),
            ("V_QUERIES", self.v_queries),
            ("N_SHARES", self.n_shares),
            ("MERGED", self.merged),
        ]
        .into_iter()
        .fold(variant, |variant, (name, value)| variant.set(name, value as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_and_group_fits() {
        for head_dim in (4..=256).step_by(4).chain([320, 512]) {
            let words: &[usize] = if head_dim % 8 == 0 { &[4, 8] } else { &[4] };
            let most = Lanes::most_queries(head_dim).expect("the head fits");
            for (word, n) in words.iter().flat_map(|word| (1..=most).map(move |n| (*word, n))) {
                let what = format!("{n} queries of {head_dim} in words of {word}");
                let lanes = Lanes::new(head_dim, word, n).expect(&what);
                assert!(
                    n * lanes.quads <= LANES && lanes.quads.is_multiple_of(lanes.v_keys),
                    "{what}: {lanes:?}"
                );
                let n_words = head_dim / word;
                let v_lanes = n_words.div_ceil(n_words.div_ceil(LANES));
                let v_blocks = n.div_ceil(lanes.v_queries);
                assert!(v_lanes * lanes.v_keys * v_blocks <= LANES, "{what}: {lanes:?}");
                let k_groups = LANES / lanes.k_lanes;
                let k_blocks = n.div_ceil(lanes.k_queries);
                assert!(k_blocks == 1 || lanes.quads * k_blocks <= k_groups, "{what}: {lanes:?}");
            }
        }
        assert_eq!([64, 128, 256].map(Lanes::most_queries), [Some(16), Some(16), Some(8)]);
        assert_eq!(Lanes::most_queries(1 << 12), None);
    }
}
