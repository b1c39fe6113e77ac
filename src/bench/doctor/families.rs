//! Families of variants: a kernel with the parts that need something of the device.

use crate::gpu::{Caps, Variant};

/// Beginnings of the names of parts that make a family: how lanes share rows, how they reduce values, on which
/// matrices they multiply. The other parts are types of weights and of caches.
const PARTS: [&str; 3] = ["rows_", "reduce_", "coop_"];

/// The parts that make the family of a variant, empty if it has only one.
pub fn family(variant: &Variant) -> String {
    let parts = variant.parts().map(|part| part.name);
    let parts = parts.filter(|name| PARTS.iter().any(|begin| name.starts_with(begin)));
    parts.collect::<Vec<_>>().join(" ")
}

/// What a device lacks, if anything.
type Lacks = fn(&Caps) -> Option<String>;

/// Families that only some devices can run: kernel, parts, and what a device lacks for it.
pub const SPECIAL: &[(&str, &str, Lacks)] = &[
    ("rms_norm", "reduce_subgroup", no_subgroup),
    ("rms_norm", "reduce_any", certain_or_none),
    ("linear", "rows_few reduce_subgroup", no_subgroup),
    ("linear", "rows_reg", no_eight),
    ("attention_reg", "", no_eight),
    ("attention_row", "", no_eight),
    ("linear_coop", "coop", no_matrices),
    ("attention_coop", "coop", no_matrices),
    ("probe_subgroups", "", nothing_to_probe),
    ("probe_coop", "coop", no_tiles),
];

fn nothing_to_probe(caps: &Caps) -> Option<String> {
    caps.subgroups.is_none().then(|| "no subgroups".into())
}

fn no_subgroup(caps: &Caps) -> Option<String> {
    match (&caps.subgroups, caps.one_subgroup()) {
        (_, Some(_)) => None,
        (None, None) => Some("no subgroups".into()),
        (Some(range), None) => Some(format!("subgroups {range}, none of a certain width")),
    }
}

fn certain_or_none(caps: &Caps) -> Option<String> {
    match caps.one_subgroup() {
        Some(width) => {
            Some(format!("subgroups are certainly {width} wide, and `reduce_subgroup` runs instead"))
        }
        None => (!caps.any_subgroups()).then(|| "no subgroups".into()),
    }
}

/// Kernels for software devices have workgroups of one subgroup of eight.
fn no_eight(caps: &Caps) -> Option<String> {
    let found = || no_subgroup(caps).unwrap_or_else(|| "subgroups of another width".into());
    if !caps.is_one_subgroup(8) {
        return Some(format!("needs subgroups of 8: {}", found()));
    }
    (!caps.cpu).then(|| "only for software devices".into())
}

fn no_matrices(caps: &Caps) -> Option<String> {
    if caps.coop_tile().is_some() {
        return None;
    }
    let rest = || match caps.f32_products {
        true => Some("products keep F32 inputs".into()),
        false => no_subgroup(caps),
    };
    let uncertain = || Some("no certain width of subgroups in kernels on matrices".into());
    no_tiles(caps).or_else(rest).or_else(uncertain)
}

fn no_tiles(caps: &Caps) -> Option<String> {
    if !caps.f16 {
        Some("no f16 arithmetic".into())
    } else if caps.cooperative_matrices.is_empty() {
        Some("no cooperative matrices from f16 to f32".into())
    } else if caps.matrix_tile().is_none() {
        Some(format!("cooperative matrices of {:?}, none of 8×8×8 or 16×16×16", caps.cooperative_matrices))
    } else {
        nothing_to_probe(caps)
    }
}
