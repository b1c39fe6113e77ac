//! Every variant of every kernel in the languages of all backends, compiled by those compilers that need no device:
//! naga's translation and `spirv-val`, Microsoft's FXC and DXC, AMD's in RADV.
//!
//! `.ci/compilers` installs the compilers. A check whose compiler is missing is not run, and says so. With
//! `WGINFER_ALL_VARIANTS=1`, slow compilers get all variants instead of a sample.

#[path = "../common/mod.rs"]
mod common;
mod list;
mod microsoft;
#[cfg(target_os = "linux")]
mod radv;
mod tools;
mod translate;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use naga::back::hlsl::ShaderModel;
use wginfer::gpu::Variant;

use tools::{assert_none, failures};
use translate::{MSL_VERSIONS, SPIRV_TARGETS, Shader, Spirv, uses_matrices};

/// The variants of all profiles. `None` if there is no device to plan on, and that is allowed.
fn all_variants() -> Option<&'static [Variant]> {
    static ALL: OnceLock<Option<Vec<Variant>>> = OnceLock::new();
    ALL.get_or_init(|| common::gpu().map(|gpu| list::of_profiles(&gpu, &[]))).as_deref()
}

#[test]
fn every_variant_translates() {
    let Some(variants) = all_variants() else { return };
    let failed = failures(variants, |variant| {
        let label = variant.label();
        translate(variant).err().map(|(language, message)| format!("{label} to {language}: {message}"))
    });
    assert_none("MSL, HLSL and SPIR-V", variants.len(), &failed);
}

/// Translates a variant to every language. The error names the language.
fn translate(variant: &Variant) -> Result<(), (String, String)> {
    let shader = Shader::new(variant).map_err(|e| ("naga".to_string(), e))?;
    for version in MSL_VERSIONS {
        shader.msl(version).map_err(|e| (format!("MSL {version:?}"), e))?;
    }
    for model in [ShaderModel::V5_1, ShaderModel::V6_0, ShaderModel::V6_6] {
        // wgpu has no cooperative matrices on DX12.
        if !uses_matrices(variant) {
            shader.hlsl(model).map_err(|e| (format!("HLSL {model:?}"), e))?;
        }
    }
    for target in SPIRV_TARGETS {
        shader.spirv(target).map_err(|e| (format!("{target:?}"), e))?;
    }
    Ok(())
}

#[test]
fn spirv_is_valid() {
    let Some(validator) = tools::program(&["spirv-val"]) else {
        return common::not_run("SPIR-V", "`.ci/compilers` installs spirv-val");
    };
    let Some(variants) = all_variants() else { return };
    let [older, newer] = SPIRV_TARGETS;
    let sample = tools::chosen(variants);
    let mut modules: Vec<_> = variants.iter().map(|variant| (variant, newer)).collect();
    modules.extend(sample.iter().map(|variant| (variant, older)));
    let with_matrices =
        modules.iter().find(|(variant, _)| uses_matrices(variant)).expect("some have matrices");
    if let Err(message) = validate(&validator, with_matrices.0, with_matrices.1)
        && message.contains("Invalid capability operand: 6022")
    {
        common::not_run("SPIR-V with cooperative matrices", "this spirv-val is older than they are");
        modules.retain(|(variant, _)| !uses_matrices(variant));
    }
    let failed = failures(&modules, |(variant, target)| {
        let label = variant.label();
        validate(&validator, variant, *target).err().map(|message| format!("{label}, {target:?}: {message}"))
    });
    assert_none("spirv-val", modules.len(), &failed);
}

/// Asks spirv-val about a variant's module.
fn validate(validator: &Path, variant: &Variant, target: Spirv) -> Result<(), String> {
    let words = Shader::new(variant).and_then(|shader| shader.spirv(target))?;
    let environment = if target.version >= (1, 6) { "vulkan1.3" } else { "vulkan1.1" };
    let mut command = Command::new(validator);
    command.args(["--target-env", environment, "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(&bytes).map_err(|e| e.to_string())?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
