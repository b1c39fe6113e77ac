//! `bench::doctor`: what it checks, and that it sees what is wrong.

mod common;
#[path = "backends/list.rs"]
mod list;

use std::collections::BTreeSet;

use wginfer::bench::{self, BenchError, DoctorOptions, DoctorReport, Verdict};
use wginfer::gpu::{self, Gpu, GpuOptions, Variant};
use wginfer::ops::KERNELS;

fn doctor(gpu: &Gpu, filter: &str, perturbation: f64) -> DoctorReport {
    let options = DoctorOptions { filter: Some(filter.into()), perturbation, ..DoctorOptions::default() };
    let mut n = 0;
    let report = bench::doctor(gpu, &options, "a test".into(), &mut |progress| {
        assert_eq!(progress.n_done, n);
        assert!(n < progress.n_total && !progress.next.is_empty());
        n += 1;
    });
    report.expect("a report")
}

/// The families of a kernel, with their verdicts.
fn families(report: &DoctorReport, kernel: &str) -> BTreeSet<(String, Verdict)> {
    let rows = report.variants.iter().filter(|row| row.kernel == kernel);
    rows.map(|row| (row.family.clone(), row.verdict)).collect()
}

#[test]
fn every_variant_is_checked_on_odd_shapes() {
    let Some(gpu) = common::gpu() else { return };
    let caps = gpu.caps();
    let report = doctor(&gpu, "odd llama F16 13 rows", 0.0);
    assert!(report.faults().is_empty(), "{:#?}", report.faults());
    for row in &report.variants {
        let is_checked = row.verdict == Verdict::Ok && row.n_cases > 0 && row.error.is_some_and(|e| e <= 1.0);
        let is_explained = row.verdict == Verdict::NotSupported && !row.message.is_empty() && !row.is_chosen;
        assert!(is_checked || is_explained, "{row:?}");
    }
    // What the device chooses, and what it would run without subgroups.
    let verdict = |is: bool| if is { Verdict::Ok } else { Verdict::NotSupported };
    let linear = families(&report, "linear");
    let [subgroup, workgroup] = ["rows_few reduce_subgroup", "rows_few reduce_workgroup"].map(str::to_string);
    assert!(linear.contains(&(subgroup, verdict(caps.one_subgroup().is_some()))), "{linear:?}");
    assert!(linear.contains(&(workgroup, Verdict::Ok)), "{linear:?}");
    let eight = caps.is_one_subgroup(8);
    assert!(linear.contains(&("rows_reg".into(), verdict(eight))), "{linear:?}");
    assert_eq!(
        families(&report, "linear_coop").iter().any(|(_, v)| *v == Verdict::Ok),
        caps.coop_tile().is_some()
    );
    assert!(report.variants.iter().any(|row| row.is_chosen && row.kernel == "linear"));
    assert!(report.variants.iter().any(|row| !row.is_chosen && row.verdict == Verdict::Ok));
}

#[test]
fn a_wrong_kernel_is_seen_and_located() {
    let Some(gpu) = common::gpu() else { return };
    // One output of each case is moved by three tolerances.
    let report = doctor(&gpu, "odd llama rms_norm 3 rows", 3.0);
    assert!(!report.faults().is_empty());
    for row in report.variants.iter().filter(|row| row.verdict != Verdict::NotSupported) {
        assert!(row.verdict == Verdict::Wrong && row.error.is_some_and(|e| e > 1.0), "{row:?}");
        assert!(row.message.contains("instead of") && row.message.contains("`rms_norm odd llama"), "{row:?}");
    }
    let options = DoctorOptions { perturbation: f64::NAN, ..DoctorOptions::default() };
    let error = bench::doctor(&gpu, &options, String::new(), &mut |_| {}).expect_err("refused");
    assert!(matches!(error, BenchError::Parameter { .. }), "{error}");
    let options = DoctorOptions { filter: Some("no such kernel".into()), ..DoctorOptions::default() };
    let error = bench::doctor(&gpu, &options, String::new(), &mut |_| {}).expect_err("refused").to_string();
    assert!(error.contains("`no such kernel`") && error.contains("`rms_norm`"), "{error}");
}

/// What a driver that cannot add over subgroups, and refuses gates, would make of the kernels.
fn driver(variant: &Variant, source: String) -> String {
    match variant.kernel.name {
        "gate" => source.replace("fn gate(", "fn gate(@builtin(nothing) "),
        _ => source.replace("return subgroupAdd(v);", "return v;"),
    }
}

#[test]
fn a_driver_that_miscompiles_is_seen() {
    let options = GpuOptions { rewrite: Some(driver), ..GpuOptions::default() };
    let Some(gpu) = common::open(&options) else { return };
    if gpu.caps().one_subgroup().is_none() {
        common::say(&format!("skipped, `{}` has no subgroups of a certain width", gpu.info().name));
        return;
    }
    let report = doctor(&gpu, "odd gpt2", 0.0);
    let verdicts = |kernel| families(&report, kernel).into_iter().collect::<Vec<_>>();
    let [subgroup, workgroup] = ["reduce_subgroup", "reduce_workgroup"].map(str::to_string);
    assert_eq!(verdicts("layer_norm"), [(subgroup, Verdict::Wrong), (workgroup, Verdict::Ok)]);
    assert_eq!(verdicts("gate"), [(String::new(), Verdict::DoesNotCompile)]);
    let faults: BTreeSet<&str> = report.faults().iter().map(|row| row.kernel.as_str()).collect();
    assert_eq!(faults, BTreeSet::from(["gate", "layer_norm"]));
    let gate = report.variants.iter().find(|row| row.kernel == "gate").expect("a row");
    assert!(gate.message.contains("nothing") && gate.n_cases == 0, "the compiler's words: {gate:?}");
}

/// The kernels that no forward pass runs, on this device.
fn helpers(gpu: &Gpu) -> Vec<&'static str> {
    let mut kernels = vec!["fill_normal", "quantize", "count_prompt", "probe_copy", "probe_fma"];
    if gpu.caps().subgroups.is_some() {
        kernels.push("probe_subgroups");
    }
    kernels
}

#[test]
fn every_kernel_has_a_case() {
    // Its own device, whose counters no other test moves.
    let Some(gpu) = common::open(&GpuOptions::default()) else { return };
    let before = gpu.counts();
    let mut missing: BTreeSet<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
    // Software devices with matrices, and a card with matrices whose drivers choose the width of subgroups.
    for profile in gpu::profiles().into_iter().filter(|p| ["lavapipe-26", "rdna3"].contains(&p.name)) {
        let variants =
            bench::doctor_variants(&gpu, &DoctorOptions::default(), &profile.caps).expect("a list");
        variants.iter().for_each(|variant| {
            missing.remove(variant.kernel.name);
        });
    }
    assert_eq!(missing, BTreeSet::new(), "the doctor has no case of these kernels");
    // Each type is quantised from each type of file.
    let caps = gpu.caps();
    let options = DoctorOptions { filter: Some("quantize".into()), ..DoctorOptions::default() };
    let variants = bench::doctor_variants(&gpu, &options, caps).expect("a list");
    assert_eq!(variants.len(), 9, "{variants:?}");
    assert_eq!(gpu.counts(), before, "nothing is allocated");
}

#[test]
fn kernels_beside_the_forward_pass_are_checked() {
    let Some(gpu) = common::gpu() else { return };
    for kernel in helpers(&gpu) {
        let report = doctor(&gpu, &format!("{kernel} odd llama"), 0.0);
        let rows = || report.variants.iter().filter(|row| row.kernel == kernel);
        assert!(rows().count() > 0 && rows().all(|row| row.verdict == Verdict::Ok), "{:#?}", report.variants);
        // One output of each case is moved by three tolerances.
        let moved = doctor(&gpu, &format!("{kernel} odd llama 1 rows"), 3.0);
        let mut rows = moved.variants.iter().filter(|row| row.kernel == kernel);
        assert!(rows.all(|row| row.verdict == Verdict::Wrong), "{:#?}", moved.variants);
    }
}

/// A driver that rounds quants down, leaves padding as it was, counts twice, copies too little, adds before it multiplies
/// and misjudges its subgroups.
fn careless(variant: &Variant, source: String) -> String {
    let (from, to) = match variant.kernel.name {
        "quantize" if variant.parts().any(|part| part.name == "quantize_q8_0") => {
            ("abs(scaled) + 0.5", "abs(scaled)")
        }
        "quantize" if variant.parts().any(|part| part.name == "quantize_q4_0") => {
            ("inverse + 8.5", "inverse + 8.0")
        }
        "quantize" => ("clamp(round(value)", "clamp(floor(value)"),
        "fill_normal" => ("params.mean + params.scale * z, there", "params.mean + params.scale * z, true"),
        "count_prompt" => ("[at], 1u", "[at], 2u"),
        "probe_copy" => ("y[i] = x[i]", "y[i] = x[0]"),
        "probe_fma" => ("fma(v0, a, b)", "(v0 + b) * a"),
        "probe_subgroups" => ("select(0u, width,", "select(0u, 2u * width,"),
        _ => return source,
    };
    assert!(source.contains(from), "`{from}` is in `{}` no more", variant.kernel.name);
    source.replace(from, to)
}

#[test]
fn wrong_kernels_beside_the_forward_pass_are_seen() {
    let options = GpuOptions { rewrite: Some(careless), ..GpuOptions::default() };
    let Some(gpu) = common::open(&options) else { return };
    for kernel in helpers(&gpu) {
        // The probe's cases do not depend on rows.
        let n_rows = if kernel == "probe_subgroups" { 1 } else { 3 };
        let report = doctor(&gpu, &format!("{kernel} odd llama {n_rows} rows"), 0.0);
        let rows: Vec<_> = report.variants.iter().filter(|row| row.kernel == kernel).collect();
        assert!(!rows.is_empty() && rows.iter().all(|row| row.verdict == Verdict::Wrong), "{rows:#?}");
        assert!(report.faults().iter().all(|row| row.kernel == kernel), "{:#?}", report.faults());
    }
}

#[test]
fn the_report_describes_the_device_and_is_json() {
    let Some(gpu) = common::gpu() else { return };
    let report = doctor(&gpu, "odd gpt2 layer_norm", 0.0);
    let (caps, device) = (gpu.caps(), &report.device);
    assert_eq!((report.meta.adapter.as_str(), device.f16), (gpu.info().name.as_str(), caps.f16));
    assert_eq!(device.subgroups, caps.subgroups.as_ref().map(|s| [s.min, s.max]));
    assert_eq!(device.lost.len(), caps.lost().len());
    let text = serde_json::to_string(&report).expect("JSON");
    assert_eq!(serde_json::from_str::<DoctorReport>(&text).expect("it can be read"), report);
    // Without subgroups, what needs them is not supported, and the device says what it lost.
    let Some(portable) = common::portable() else { return };
    let report = doctor(&portable, "odd llama rms_norm 3 rows", 0.0);
    assert!(report.device.lost.iter().any(|lost| lost.contains("no subgroups")), "{:?}", report.device.lost);
    let rows: Vec<_> = report.variants.iter().filter(|r| r.verdict == Verdict::NotSupported).collect();
    assert!(
        rows.iter().any(|r| r.family.contains("reduce_subgroup") && r.message == "no subgroups"),
        "{rows:?}"
    );
}

/// Overrides that are sizes. The others switch what a kernel computes.
const SIZES: [&str; 18] = [
    "WG",
    "SG",
    "N_SG",
    "SG_ROWS",
    "SG_OUTS",
    "GROUP",
    "HEADS",
    "N_Q",
    "N_D4",
    "N_SPLITS",
    "SHARES",
    "QUADS",
    "K_LANES",
    "K_QUERIES",
    "V_KEYS",
    "V_QUERIES",
    "N_SHARES",
    "MERGED",
];

/// What the doctor must check of a variant: its kernel with each part, and with all switches. Sizes, and what types
/// of weights have to do with switches, are left out.
fn features(variant: &Variant) -> [String; 2] {
    let name = variant.kernel.name;
    let parts = |without: &str| -> String {
        let parts = variant.parts().map(|part| part.name).filter(|name| !name.starts_with(without));
        parts.map(|name| format!("+{name}")).collect()
    };
    let overrides = variant.overrides().filter(|(name, _)| !SIZES.contains(name));
    let switches: String = overrides.map(|(name, value)| format!(" {name}={value}")).collect();
    [format!("{name}{}", parts("pair_")), format!("{name}{}{switches}", parts("weights_"))]
}

#[test]
fn every_variant_of_a_model_has_a_case() {
    let Some(gpu) = common::gpu() else { return };
    for profile in gpu::profiles() {
        let checked = bench::doctor_variants(&gpu, &DoctorOptions::default(), &profile.caps).expect("a list");
        let checked: BTreeSet<String> = checked.iter().flat_map(features).collect();
        let used = list::of_profiles(&gpu, &[profile.name]);
        let used: BTreeSet<String> = used.iter().flat_map(features).collect();
        let missing: Vec<_> = used.difference(&checked).collect();
        assert!(used.len() > 100, "{}: {}", profile.name, used.len());
        assert!(missing.is_empty(), "{}: the doctor has no case of {missing:#?}", profile.name);
    }
}
