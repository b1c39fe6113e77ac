//! RADV, Mesa's driver for AMD, which compiles for cards that are not there (`RADV_FORCE_FAMILY`). It must compile every
//! variant, and no variant may spill registers or keep arrays in scratch memory, except those that are known to.
//!
//! A driver that crashes takes its process with it, so variants are compiled by processes that the test starts: of
//! itself, with a list.

mod device;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use wginfer::gpu::Variant;

use super::common::not_run;
use super::tools;
use super::translate::{SPIRV_TARGETS, Shader, uses_matrices};
use super::{common, list};
use device::Device;

/// A family of cards: its names in Mesa, of which newer versions know only the last, and the profiles whose variants it
/// runs.
type Family = (&'static str, &'static [&'static str], &'static [&'static str]);

const FAMILIES: [Family; 5] = [
    ("GCN 4", &["polaris10"], &["gcn"]),
    ("GCN 5", &["vega10"], &["gcn"]),
    ("RDNA 1", &["navi10"], &["rdna2", "adopted"]),
    ("RDNA 2", &["navi21"], &["rdna2", "adopted"]),
    ("RDNA 3", &["gfx1100", "navi31"], &["rdna3", "adopted"]),
];

/// Where each variant is known to spill or to need scratch memory: the beginning of its label, and why. The list may only
/// shrink: an entry that no variant needs fails the test of all variants.
const KNOWN: &[(&str, &str)] = &[];

/// Tells a process what to compile.
const LIST_ENV: &str = "WGINFER_RADV_LIST";

/// What the driver says of a variant.
enum Verdict {
    Good,
    /// It compiled, with this cost.
    Spills(String),
    Failed(String),
}

#[test]
fn radv_compiles_without_spills() {
    if let Ok(path) = std::env::var(LIST_ENV) {
        return compile_list(&path);
    }
    let Some(manifest) = manifest() else {
        return not_run(
            "RADV",
            "no manifest of the driver found: `.ci/setup` installs Mesa's Vulkan drivers",
        );
    };
    let Some(gpu) = common::gpu() else { return };
    let dir = tools::scratch("radv");
    let (mut wrong, mut needed) = (Vec::new(), BTreeSet::new());
    for (family, names, profiles) in FAMILIES {
        let mut variants = list::of_profiles(&gpu, profiles);
        let found = names.iter().find_map(|name| Some((*name, start(&manifest, name, &dir, &[]).ok()?)));
        let Some((name, begun)) = found else {
            not_run(
                &format!("RADV for {family}"),
                "the driver does not know the family, or cannot be opened",
            );
            continue;
        };
        if variants.iter().any(uses_matrices) && !begun.contains("matrices") {
            not_run(
                &format!("RADV for {family}, cooperative matrices"),
                "the driver has none before Mesa 23.3",
            );
            variants.retain(|variant| !uses_matrices(variant));
        }
        let chosen = tools::chosen(&variants);
        let verdicts = compile(&manifest, name, &dir, &chosen);
        let mut n_known = 0;
        for (variant, verdict) in chosen.iter().zip(verdicts) {
            let label = variant.label();
            let known = KNOWN.iter().find(|(begin, _)| label.starts_with(begin));
            match (verdict, known) {
                (Verdict::Good, _) => {}
                (Verdict::Spills(_), Some((begin, _))) => {
                    needed.insert(*begin);
                    n_known += 1;
                }
                (Verdict::Spills(cost), None) => wrong.push(format!("{family}: {label}: {cost}")),
                (Verdict::Failed(message), _) => wrong.push(format!("{family}: {label}: {message}")),
            }
        }
        common::say(&format!("RADV for {family}: {} compiled, {n_known} known to spill", chosen.len()));
        assert!(!chosen.is_empty(), "no variants for {family}");
    }
    assert!(
        wrong.is_empty(),
        "RADV: {} variants are wrong, for example\n{}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );
    for (begin, why) in KNOWN.iter().filter(|_| tools::takes_all()) {
        assert!(needed.contains(begin), "`{begin}` ({why}) spills nowhere any more: take it off the list");
    }
}

/// The driver's manifest.
fn manifest() -> Option<PathBuf> {
    let folders = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"].map(Path::new);
    let files = folders.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    files.map(|file| file.path()).find(|path| {
        path.file_name().is_some_and(|name| {
            name.to_string_lossy().starts_with("radeon_icd") && !name.to_string_lossy().contains("i686")
        })
    })
}

/// Runs a process that compiles the variants whose lines `list` has, and returns what it prints: a line with the device's
/// name, then for each variant a line when it begins and a line with its verdict.
fn start(manifest: &Path, family: &str, dir: &Path, list: &[String]) -> Result<String, String> {
    let path = dir.join(format!("{family}.list"));
    std::fs::write(&path, list.join("\n")).map_err(|e| e.to_string())?;
    let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    command.args(["--exact", "radv::radv_compiles_without_spills", "--nocapture", "--test-threads=1"]);
    // Older loaders know the first variable, newer ones the second. Mesa's layer would hide the device.
    command.env("VK_ICD_FILENAMES", manifest).env("VK_DRIVER_FILES", manifest).env("NODEVICE_SELECT", "1");
    command.env("RADV_FORCE_FAMILY", family).env("MESA_SHADER_CACHE_DISABLE", "true").env(LIST_ENV, &path);
    let output = tools::run(&mut command, "").map_err(|e| e.to_string())?;
    match output.contains("device ") {
        true => Ok(output),
        false => Err(output),
    }
}

/// How often a variant is tried that crashes the driver. Mesa 22.3 crashes on some variants now and then, as addresses
/// fall, and compiles them the next time; without random addresses it never does.
const MOST_TRIES: usize = 10;

/// Compiles `variants` for a family. After a crash, another process continues with the same variant, and with the next
/// one if all tries crash.
fn compile(manifest: &Path, family: &str, dir: &Path, variants: &[Variant]) -> Vec<Verdict> {
    let lines: Vec<String> = variants.iter().enumerate().map(|(i, variant)| line(dir, i, variant)).collect();
    let mut verdicts = Vec::new();
    let mut n_tries = 0;
    while verdicts.len() < lines.len() {
        let begun = verdicts.len();
        let output = start(manifest, family, dir, &lines[verdicts.len()..]);
        let output = output.unwrap_or_else(|output| panic!("RADV cannot be opened for {family}: {output}"));
        for line in output.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("good", _) => verdicts.push(Verdict::Good),
                ("spills", cost) => verdicts.push(Verdict::Spills(cost.to_string())),
                ("failed", message) => verdicts.push(Verdict::Failed(message.to_string())),
                _ => {}
            }
        }
        n_tries = if verdicts.len() > begun { 1 } else { n_tries + 1 };
        if verdicts.len() < lines.len() && n_tries == MOST_TRIES {
            verdicts.push(Verdict::Failed(format!("the driver crashed {MOST_TRIES} times")));
            n_tries = 0;
        }
    }
    verdicts
}

/// The line of a variant in a list: entry point, one letter for each binding (u for uniform, s for storage), file.
fn line(dir: &Path, i: usize, variant: &Variant) -> String {
    let shader = Shader::new(variant).unwrap_or_else(|e| panic!("{}: {e}", variant.label()));
    let words = shader.spirv(SPIRV_TARGETS[1]).unwrap_or_else(|e| panic!("{}: {e}", variant.label()));
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let path = dir.join(format!("{i}.spv"));
    std::fs::write(&path, bytes).expect("the folder can be written");
    let is_uniform = |variable: &naga::GlobalVariable| variable.space == naga::AddressSpace::Uniform;
    let letters =
        shader.bindings().iter().map(|(_, v)| if is_uniform(v) { 'u' } else { 's' }).collect::<String>();
    format!("{} {letters} {}", variant.kernel.name, path.display())
}

/// What the process does that the test starts.
fn compile_list(path: &str) {
    let list = std::fs::read_to_string(path).expect("the list can be read");
    let device = Device::open().expect("the driver opens");
    let matrices = if device.has_matrices { ", matrices" } else { "" };
    println!("\ndevice {}{matrices}", device.name);
    for line in list.lines() {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().expect("a line has three words");
        let (entry, letters, path) = (word(), word(), word());
        let uniforms: Vec<bool> = letters.chars().map(|letter| letter == 'u').collect();
        let bytes = std::fs::read(path).expect("the module can be read");
        let code: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        match device.compile(&code, entry, &uniforms) {
            Err(error) => println!("failed {error}"),
            Ok(costs) if costs.is_empty() => println!("good"),
            Ok(costs) => println!("spills {}", costs.join(", ")),
        }
    }
}
