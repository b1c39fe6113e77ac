//! `wginfer doctor`: every kernel variant that this device can run, against the reference.

use std::io::Write;

use serde::Serialize;
use wginfer::bench::{self, DoctorOptions, DoctorReport, DoctorRow, Verdict};
use wginfer::gpu::{Gpu, GpuOptions};

use super::args::{GpuArg, ModelArg};
use super::failure::Failure;
use super::measure::{command_line, number, with_steps};
use super::table::{Format, Table};
use super::{format, json, measure};

const EXAMPLES: &str = "Examples:
  wginfer doctor > doctor.txt          # to attach to a bug report
  wginfer doctor -m ~/models/SmolLM2-360M-Instruct
  wginfer doctor linear Q4_K           # only the cases that contain these words
  wginfer doctor --json | jq '.variants[] | select(.verdict == \"wrong\")'

Every variant runs on small odd shapes, and with -m on the model's own. Its results are
compared with a reference in f64. Variants that this device does not choose are checked too.
The exit code is 1 if one that it chooses is wrong or does not compile.";

/// Check every kernel variant that this device can run, and describe the device for a bug report
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only cases whose operation, way, shape, type and rows together contain all of these words
    filter: Vec<String>,

    /// Write an object
    #[arg(long)]
    json: bool,

    // Only a model that is named: the demonstration model has nothing that the odd shapes lack.
    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    gpu: GpuArg,
}

/// The object of `--json`.
#[derive(Serialize)]
struct Output<'a> {
    /// Whether everything that this device chooses is right.
    is_right: bool,
    #[serde(flatten)]
    report: &'a DoctorReport,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let is_named = args.model.model.as_ref().is_some_and(|name| !name.is_empty());
    let models = if is_named { vec![measure::shape(args.model.open_any()?, None)] } else { Vec::new() };
    // Without a cache folder: no pipeline of an earlier run, no tuning.
    let gpu = Gpu::open(&GpuOptions { select: args.gpu.name(), ..GpuOptions::default() })?;
    let options = DoctorOptions {
        models,
        filter: Some(args.filter.join(" ")).filter(|words| !words.is_empty()),
        perturbation: 0.0,
    };
    let report = with_steps(|progress| bench::doctor(&gpu, &options, command_line(), progress))?;
    if args.json {
        json::write(&Output { is_right: report.faults().is_empty(), report: &report }, out)?;
    } else {
        device(&report, out)?;
        writeln!(out)?;
        table(&report).write(Format::Table, out)?;
        details(&report, out)?;
    }
    out.flush()?;
    verdict(&report)
}

/// An error if the device would run something that is wrong.
fn verdict(report: &DoctorReport) -> Result<(), Failure> {
    let faults = report.faults();
    let Some(first) = faults.first() else { return Ok(()) };
    let n = faults.len();
    let message = format!(
        "{n} {} that this device runs {} not right, first: {}",
        if n == 1 { "variant" } else { "variants" },
        if n == 1 { "is" } else { "are" },
        first.variant
    );
    let hint = "attach this report to an issue; `WGINFER_DISABLE=subgroups,cooperative-matrices` runs other variants";
    Err(Failure::failed(message).with_hint(hint))
}

fn device(report: &DoctorReport, out: &mut dyn Write) -> Result<(), Failure> {
    let (meta, device) = (&report.meta, &report.device);
    let mut row = |name: &str, value: String| writeln!(out, "{name:<21} {}", format::escaped(&value));
    let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
    row("program", format!("{} {}, wgpu {}", meta.program, meta.version, meta.wgpu_version))?;
    row("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))?;
    let [vendor, id] = device.ids;
    row("adapter", format!("{} ({}, {}, {vendor:04x}:{id:04x})", meta.adapter, device.kind, meta.backend))?;
    row("driver", if meta.driver.is_empty() { "unknown".into() } else { meta.driver.clone() })?;
    row("subgroups", subgroups(report))?;
    row("f16 arithmetic", yes(device.f16))?;
    row("64-bit integers", yes(device.int64))?;
    let tiles: Vec<String> =
        device.cooperative_matrices.iter().map(|(m, n, k)| format!("{m}×{n}×{k}")).collect();
    row("cooperative matrices", if tiles.is_empty() { "no".into() } else { tiles.join(", ") })?;
    row("timestamps", yes(device.timestamps))?;
    let [binding, buffer] = device.max_bytes.map(format::bytes);
    let [memory, size, buffers, groups] = device.max_workgroup;
    row(
        "limits",
        format!("binding {binding}, buffer {buffer}, workgroup memory {}", format::bytes(memory.into())),
    )?;
    row("", format!("{size} invocations per workgroup, {buffers} storage buffers, {groups} workgroups"))?;
    if !device.disabled.is_empty() {
        row("WGINFER_DISABLE", device.disabled.clone())?;
    }
    if device.quirks.is_empty() {
        row("quirks", "none known".into())?;
    }
    for [what, avoided, link] in &device.quirks {
        row("quirk", format!("{what}; not used: {avoided} ({link})"))?;
    }
    for lost in &device.lost {
        row("lost", lost.clone())?;
    }
    Ok(())
}

/// The range of widths, and what the probes found.
fn subgroups(report: &DoctorReport) -> String {
    let device = &report.device;
    let Some([min, max]) = device.subgroups else { return "no".into() };
    if min == max {
        return format!("of {min}");
    }
    let probed = device.probed_widths.iter().map(|(workgroup, matrices, width)| {
        format!("{width} in workgroups of {workgroup}{}", if *matrices { " on matrices" } else { "" })
    });
    let probed: Vec<String> = probed.collect();
    let found = if probed.is_empty() { "no width is certain".into() } else { probed.join(", ") };
    format!("of {min} to {max}: {found}")
}

/// One row for each kernel and family: a screen, not one row for each variant.
fn table(report: &DoctorReport) -> Table {
    let mut table = Table::new(&["kernel", "variant", "chosen", " variants", " cases", " error", "result"]);
    let same = |a: &DoctorRow, b: &DoctorRow| (&a.kernel, &a.family) == (&b.kernel, &b.family);
    for rows in report.variants.chunk_by(same) {
        let worst = rows.iter().map(|row| row.verdict).max().unwrap_or(Verdict::Ok);
        let n_cases: usize = rows.iter().map(|row| row.n_cases).sum();
        let error = rows.iter().filter_map(|row| row.error).reduce(f64::max);
        let n = |verdict: Verdict| rows.iter().filter(|row| row.verdict == verdict).count();
        let result = match worst {
            Verdict::Ok => "ok".into(),
            Verdict::NotSupported => format!("not supported: {}", rows[0].message),
            worst => format!("{} {}", n(worst), worst.as_str().to_uppercase()),
        };
        let is_run = worst != Verdict::NotSupported;
        let count = |n: usize| if is_run { n.to_string() } else { "–".into() };
        table.push(vec![
            rows[0].kernel.clone(),
            rows[0].family.clone(),
            if rows.iter().any(|row| row.is_chosen) { "yes" } else { "" }.into(),
            count(rows.len()),
            count(n_cases),
            error.map_or("–".into(), number),
            result,
        ]);
    }
    table
}

/// Each variant that is wrong or does not compile, with where or why.
fn details(report: &DoctorReport, out: &mut dyn Write) -> Result<(), Failure> {
    let is_bad = |row: &&DoctorRow| matches!(row.verdict, Verdict::Wrong | Verdict::DoesNotCompile);
    for row in report.variants.iter().filter(is_bad) {
        let chosen = if row.is_chosen { ", chosen" } else { "" };
        writeln!(out, "\n{} ({}{chosen})", row.variant, row.verdict.as_str())?;
        for line in row.message.lines() {
            writeln!(out, "  {}", format::escaped(line))?;
        }
    }
    let n_ok = report.variants.iter().filter(|row| row.verdict == Verdict::Ok).count();
    let n_bad = report.variants.iter().filter(is_bad).count();
    writeln!(
        out,
        "\n{n_ok} {} ok, {n_bad} not. Errors are in units of the tolerance: above 1 is wrong.",
        if n_ok == 1 { "variant" } else { "variants" }
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report with one variant.
    fn report(verdict: &str, is_chosen: bool) -> DoctorReport {
        let report = serde_json::json!({
            "meta": {
                "program": "wginfer", "version": "0", "wgpu_version": "0", "date": "", "command": "",
                "adapter": "a card", "driver": "a driver 1.2", "backend": "vulkan",
            },
            "device": {
                "kind": "discrete", "ids": [0x1002, 1], "subgroups": [32, 64],
                "probed_widths": [[32, false, 32], [256, true, 64]], "certain_width": 32, "f16": true, "int64": false,
                "cooperative_matrices": [[16, 16, 16]], "timestamps": true, "max_bytes": [1, 2],
                "max_workgroup": [1, 2, 3, 4], "disabled": "", "quirks": [["it hangs", "f16", "https://a"]],
                "lost": ["no wings: it walks"],
            },
            "variants": [{
                "kernel": "softmax", "family": "reduce_subgroup", "variant": "softmax+reduce_subgroup WG=32",
                "is_chosen": is_chosen, "dtypes": ["F32"], "n_cases": 3, "verdict": verdict, "error": 7.5,
                "message": "1 instead of 2 in `softmax`\nand more",
            }],
        });
        serde_json::from_value(report).expect("a report")
    }

    fn text(report: &DoctorReport) -> String {
        let mut out = Vec::new();
        device(report, &mut out).expect("memory can be written");
        table(report).write(Format::Table, &mut out).expect("memory can be written");
        details(report, &mut out).expect("memory can be written");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn only_chosen_variants_fail_the_command() {
        for (name, fails) in [("wrong", true), ("does-not-compile", true), ("ok", false)] {
            assert_eq!(verdict(&report(name, true)).is_err(), fails, "{name}");
            assert!(verdict(&report(name, false)).is_ok(), "{name}, not chosen");
        }
        let failure = verdict(&report("wrong", true)).expect_err("it fails");
        assert!(failure.message().contains("softmax+reduce_subgroup WG=32"), "{failure:?}");
        assert_eq!(failure.exit_code(), std::process::ExitCode::from(1));
    }

    #[test]
    fn a_report_says_what_a_bug_report_needs() {
        let wrong = text(&report("wrong", true));
        for part in [
            "a card (discrete, vulkan, 1002:0001)",
            "a driver 1.2",
            "of 32 to 64: 32 in workgroups of 32, 64 in workgroups of 256 on matrices",
            "it hangs; not used: f16 (https://a)",
            "no wings: it walks",
            "1 WRONG",
            "softmax+reduce_subgroup WG=32 (wrong, chosen)\n  1 instead of 2 in `softmax`\n  and more",
            "0 variants ok, 1 not",
        ] {
            assert!(wrong.contains(part), "no `{part}` in\n{wrong}");
        }
        assert!(text(&report("not-supported", false)).contains("not supported: 1 instead"), "the reason");
    }
}
