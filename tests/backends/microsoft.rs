//! FXC and DXC, which compile the HLSL of the DX12 backend, by way of `.ci/compile_hlsl.c`.

use std::path::Path;
use std::process::Command;

use naga::back::hlsl::ShaderModel;
use wginfer::gpu::Variant;

use super::all_variants;
use super::common::not_run;
use super::tools::{self, assert_none, failures};
use super::translate::{Shader, needs_model_6, uses_matrices};

/// A variant's text in a file.
struct Source {
    label: String,
    /// The line of the compiler's list.
    line: String,
}

/// The HLSL of a variant, and its entry point.
fn hlsl(variant: &Variant, model: ShaderModel) -> (String, String) {
    let text = Shader::new(variant).and_then(|shader| shader.hlsl(model));
    text.unwrap_or_else(|e| panic!("{}: {e}", variant.label()))
}

/// Writes the HLSL of each variant to a file in `dir`.
fn write(variants: &[Variant], model: ShaderModel, dir: &Path) -> Vec<Source> {
    let source = |(i, variant): (usize, &Variant)| {
        // A short name in the current folder: Wine and Linux agree on it.
        let file = format!("{i}.hlsl");
        let (text, entry) = hlsl(variant, model);
        std::fs::write(dir.join(&file), text).expect("the folder can be written");
        Source { label: variant.label(), line: format!("{entry} {file}") }
    };
    variants.iter().enumerate().map(source).collect()
}

/// The variants that DX12 may get: wgpu has no cooperative matrices there.
fn dx12_variants() -> Option<Vec<Variant>> {
    let variants = all_variants()?;
    Some(variants.iter().filter(|variant| !uses_matrices(variant)).copied().collect())
}

/// Compiles the files in `dir`, in portions, each by a process of its own that `command` makes.
fn compile(what: &str, sources: &[Source], command: impl Fn() -> Command + Sync) {
    let portions: Vec<&[Source]> = sources.chunks(25).collect();
    let failed = failures(&portions, |portion| {
        let lines: Vec<&str> = portion.iter().map(|source| source.line.as_str()).collect();
        let output = tools::run(&mut command(), &(lines.join("\n") + "\n")).unwrap_or_default();
        let mut wrong: Vec<String> = Vec::new();
        let mut n_verdicts = 0;
        for line in output.lines().map(str::trim_end) {
            match line.split_once(' ') {
                Some(("ok", _)) => n_verdicts += 1,
                Some(("failed", _)) => {
                    wrong.push(portion.get(n_verdicts).map_or(String::new(), |source| source.label.clone()));
                    n_verdicts += 1;
                }
                _ => wrong.iter_mut().next_back().into_iter().for_each(|last| *last += &format!("\n{line}")),
            }
        }
        // A compiler that crashed has not said anything of a shader.
        if let Some(source) = portion.get(n_verdicts) {
            wrong.push(format!("{}\n\tthe compiler ended", source.label));
        }
        wrong
    });
    assert_none(what, sources.len(), &failed);
}

#[test]
fn fxc_compiles_what_needs_no_later_model() {
    let dir = tools::folder().join("fxc");
    let wine = tools::program(&["wine", "wine64"]);
    let Some(wine) = wine.filter(|_| dir.join("compile_hlsl.exe").exists()) else {
        return not_run("FXC", "`.ci/compilers` installs Wine and the compiler");
    };
    let Some(mut variants) = dx12_variants() else { return };
    variants.retain(|variant| !needs_model_6(&hlsl(variant, ShaderModel::V5_1).0));
    let files = tools::scratch("fxc");
    let sources = write(&tools::chosen(&variants), ShaderModel::V5_1, &files);
    let command = || {
        let mut command = Command::new(&wine);
        let wine_folder = tools::folder().join("wine");
        command.env("WINEPREFIX", wine_folder).env("WINEDEBUG", "-all").env_remove("DISPLAY");
        command.arg(dir.join("compile_hlsl.exe")).arg(windows(&dir.join("d3dcompiler_47.dll")));
        command.arg("cs_5_1").current_dir(&files);
        command
    };
    compile("FXC, shader model 5.1", &sources, command);
}

/// A path as Wine sees it.
fn windows(path: &Path) -> String {
    format!("Z:{}", path.display().to_string().replace('/', "\\"))
}

#[test]
fn dxc_compiles_what_dx12_may_get() {
    let dir = tools::folder().join("dxc");
    let (program, library) = (dir.join("compile_hlsl"), dir.join("libdxcompiler.so"));
    if !program.exists() || !library.exists() {
        return not_run("DXC", "`.ci/compilers` installs the compiler");
    }
    let Some(variants) = dx12_variants() else { return };
    let chosen = tools::chosen(&variants);
    // The least model with wave operations and 64-bit integers, and the one of devices that have f16.
    for (model, target) in [(ShaderModel::V6_0, "cs_6_0"), (ShaderModel::V6_6, "cs_6_6")] {
        let files = tools::scratch(&format!("dxc-{target}"));
        let sources = write(&chosen, model, &files);
        let command = || {
            let mut command = Command::new(&program);
            command.arg(&library).arg(target).current_dir(&files);
            command
        };
        compile(&format!("DXC, {target}"), &sources, command);
    }
}
