//! Each kernel's declaration in Rust says what its WGSL says.
//!
//! naga parses every kernel with every choice of the parts it needs; what it finds is held against
//! `wginfer::ops::KERNELS`.

use std::collections::BTreeSet;
use std::path::Path;

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess, TypeInner};
use wginfer::gpu::{Access, Kernel, Part};
use wginfer::ops::{KERNELS, PARTS};

/// Words by which a kernel shows that it needs a part of a family, in the order of `PARTS`.
const FAMILY_WORDS: [&[&str]; 13] = [
    &["unpack(", "multiply("],
    &["load_k("],
    &["append_k("],
    &["kv_pair("],
    &["pack_head("],
    &["multiply("],
    &["multiply("],
    &["reduce_", "multiply("],
    &["Sampling"],
    &["put("],
    &["act("],
    &["TileC"],
    &["visible("],
];

/// Every way to put `kernel` together with the parts that it needs.
fn assemblies(kernel: &Kernel) -> Vec<(String, String)> {
    assert_eq!(PARTS.len(), FAMILY_WORDS.len(), "a new family of parts needs its word here");
    let mut all = vec![(kernel.name.to_string(), kernel.source.to_string())];
    for (family, words) in PARTS.iter().zip(FAMILY_WORDS) {
        if words.iter().any(|word| kernel.source.contains(word)) {
            let with = |(name, source): &(String, String), part: &Part| {
                let enables: String = part.enables.iter().map(|word| format!("enable {word}; ")).collect();
                (format!("{name}+{}", part.name), format!("{enables}{source}\n{}", part.source))
            };
            all = all.iter().flat_map(|one| family.iter().map(move |part| with(one, part))).collect();
        }
    }
    all
}

fn parse(name: &str, source: &str) -> naga::Module {
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|e| panic!("{name} does not parse:\n{}", e.emit_to_string(source)));
    // Unpacking halves into f32 is what every backend but OpenGL can do.
    let mut capabilities = Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    // Only what a part enables may use more.
    if source.starts_with("enable ") {
        capabilities |= Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
    }
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{name} is not valid:\n{}", e.emit_to_string(source)));
    module
}

#[test]
fn every_kernel_is_what_its_declaration_says() {
    for kernel in KERNELS {
        for (name, source) in assemblies(kernel) {
            check(&name, kernel, &parse(&name, &source));
        }
    }
}

fn check(name: &str, kernel: &Kernel, module: &naga::Module) {
    let entries: Vec<&str> = module.entry_points.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(entries, [kernel.name], "{name}: entry points");

    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("a valid module has a layout");
    let mut bound: Vec<_> =
        module.global_variables.iter().filter_map(|(_, v)| v.binding.as_ref().map(|b| (b, v))).collect();
    bound.sort_by_key(|(b, _)| b.binding);
    assert_eq!(bound.len(), kernel.bindings.len() + 1, "{name}: bindings");
    for (i, (binding, variable)) in bound.iter().enumerate() {
        assert_eq!((binding.group, binding.binding), (0, i as u32), "{name}: place of binding {i}");
        if i == 0 {
            assert_eq!(variable.space, AddressSpace::Uniform, "{name}: binding 0 is the parameters");
            assert_eq!(variable.name.as_deref(), Some("params"), "{name}: binding 0");
            let size = layouter[variable.ty].size as usize;
            assert_eq!(size, kernel.params_bytes, "{name}: bytes of `Params`");
            continue;
        }
        let access = match kernel.bindings[i - 1] {
            Access::Read => StorageAccess::LOAD,
            Access::ReadWrite => StorageAccess::LOAD | StorageAccess::STORE,
        };
        assert_eq!(variable.space, AddressSpace::Storage { access }, "{name}: binding {i}");
        let is_array = matches!(module.types[variable.ty].inner, TypeInner::Array { .. });
        assert!(is_array, "{name}: binding {i} is not an array");
    }
    for (_, constant) in module.overrides.iter() {
        assert!(constant.init.is_some(), "{name}: override {:?} has no default", constant.name);
    }
}

#[test]
fn every_shader_file_is_plain_wgsl_of_a_declared_kernel_or_part() {
    let shaders = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let names_in = |dir: &Path| -> BTreeSet<String> {
        let files = std::fs::read_dir(dir).expect("shaders/ is there");
        let paths = files.map(|entry| entry.expect("it can be listed").path());
        paths
            .filter(|p| p.extension().is_some_and(|e| e == "wgsl"))
            .map(|p| p.file_stem().expect("a file").to_string_lossy().into_owned())
            .collect()
    };
    let kernels: BTreeSet<String> = KERNELS.iter().map(|k| k.name.to_string()).collect();
    let parts: BTreeSet<String> = PARTS.iter().copied().flatten().map(|p| p.name.to_string()).collect();
    assert_eq!(names_in(&shaders), kernels, "files in shaders/ and KERNELS");
    assert_eq!(names_in(&shaders.join("parts")), parts, "files in shaders/parts/ and PARTS");

    let sources = KERNELS.iter().map(|k| (k.name, k.source));
    let parts = PARTS.iter().copied().flatten().map(|p| (p.name, p.source));
    for (name, source) in sources.chain(parts) {
        for (i, line) in source.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for foreign in ["#", "{{", "}}"] {
                assert!(!line.contains(foreign), "{name}.wgsl:{}: `{foreign}` is not WGSL", i + 1);
            }
            let words = ["enable ", "requires ", "diagnostic("];
            assert!(
                !words.iter().any(|w| code.trim_start().starts_with(w)),
                "{name}.wgsl:{}: directives are the assembler's",
                i + 1
            );
        }
    }
    for kernel in KERNELS {
        let title = format!("// {}: ", kernel.name);
        assert!(kernel.source.starts_with(&title), "{}.wgsl opens with its name", kernel.name);
    }
}
