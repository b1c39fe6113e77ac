//! Each kernel's declaration in Rust says what its WGSL says.
//!
//! naga parses every kernel with every choice of the parts it needs; what it finds is held against
//! `wginfer::ops::KERNELS`: entry points, bindings, and name, type and offset of each member of the structs that the
//! host writes.

use std::collections::BTreeSet;
use std::path::Path;

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, Handle, ScalarKind, StorageAccess, Type, TypeInner};
use wginfer::gpu::{Access, Field, Fields, Kernel, Part};
use wginfer::ops::{KERNELS, PARTS};

/// Words by which a kernel shows that it needs a part of a family, in the order of `PARTS`.
const FAMILY_WORDS: [&[&str]; 19] = [
    &["Word>"],
    &["Four>"],
    &["unpack(", "multiply("],
    &["load_k("],
    &["k_word("],
    &["append_k("],
    &["kv_pair("],
    &["pack_head("],
    &["multiply("],
    &["multiply("],
    &["multiply("],
    &["lane_of("],
    &["Sampling"],
    &["bins_find("],
    &["reduce_exp("],
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
    // Only a part for 64-bit words may use them.
    if name.contains("_64") {
        capabilities |= Capabilities::SHADER_INT64;
    }
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

    let mut bound: Vec<_> =
        module.global_variables.iter().filter_map(|(_, v)| v.binding.as_ref().map(|b| (b, v))).collect();
    bound.sort_by_key(|(b, _)| b.binding);
    assert_eq!(bound.len(), kernel.bindings.len() + 1, "{name}: bindings");
    for (i, (binding, variable)) in bound.iter().enumerate() {
        assert_eq!((binding.group, binding.binding), (0, i as u32), "{name}: place of binding {i}");
        if i == 0 {
            assert_eq!(variable.space, AddressSpace::Uniform, "{name}: binding 0 is the parameters");
            assert_eq!(variable.name.as_deref(), Some("params"), "{name}: binding 0");
            assert_eq!(
                differences(module, variable.ty, kernel.params),
                Vec::<String>::new(),
                "{name}: `Params`"
            );
            continue;
        }
        let access = match kernel.bindings[i - 1] {
            Access::Read | Access::Records(_) => StorageAccess::LOAD,
            Access::ReadWrite => StorageAccess::LOAD | StorageAccess::STORE,
        };
        assert_eq!(variable.space, AddressSpace::Storage { access }, "{name}: binding {i}");
        let TypeInner::Array { base, .. } = module.types[variable.ty].inner else {
            panic!("{name}: binding {i} is not an array");
        };
        match kernel.bindings[i - 1] {
            Access::Records(fields) => {
                assert_eq!(differences(module, base, fields), Vec::<String>::new(), "{name}: binding {i}");
            }
            Access::Read | Access::ReadWrite => {
                let is_struct = matches!(module.types[base].inner, TypeInner::Struct { .. });
                assert!(!is_struct, "{name}: binding {i} holds structs, which `Access::Records` declares");
            }
        }
    }
    for (_, constant) in module.overrides.iter() {
        assert!(constant.init.is_some(), "{name}: override {:?} has no default", constant.name);
    }
}

/// What the struct `ty` has otherwise than `declared`: its size, its number of members, or a member's name, type or
/// offset.
fn differences(module: &naga::Module, ty: Handle<Type>, declared: &Fields) -> Vec<String> {
    let TypeInner::Struct { members, span } = &module.types[ty].inner else {
        return vec!["the WGSL has no struct".to_string()];
    };
    let found = members.iter().map(|member| {
        let name = member.name.clone().unwrap_or_default();
        (name, wgsl_name(&module.types[member.ty].inner), member.offset as usize)
    });
    let found: Vec<_> = found.collect();
    let mut wrong = Vec::new();
    if *span as usize != declared.size_bytes {
        wrong.push(format!("{span} bytes in WGSL, {} in Rust", declared.size_bytes));
    }
    if found.len() != declared.fields.len() {
        wrong.push(format!("{} members in WGSL, {} in Rust", found.len(), declared.fields.len()));
    }
    for ((name, wgsl, offset), field) in found.iter().zip(declared.fields) {
        if (name.as_str(), wgsl.as_str(), *offset) != (field.name, field.wgsl, field.offset) {
            let Field { name: field, wgsl: ty, offset: at } = field;
            wrong.push(format!("`{name}: {wgsl}` at {offset} in WGSL, `{field}: {ty}` at {at} in Rust"));
        }
    }
    wrong
}

/// The name in WGSL of a type that the host can write.
fn wgsl_name(inner: &TypeInner) -> String {
    let scalar = |scalar: naga::Scalar| match (scalar.kind, scalar.width) {
        (ScalarKind::Uint, 4) => "u32".to_string(),
        (ScalarKind::Float, 4) => "f32".to_string(),
        other => format!("{other:?}"),
    };
    match inner {
        TypeInner::Scalar(of) => scalar(*of),
        TypeInner::Vector { size, scalar: of } => format!("vec{}<{}>", *size as u8, scalar(*of)),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_wrong_declaration_is_found() {
    let mut n_swapped = 0;
    for kernel in KERNELS {
        let (name, source) = assemblies(kernel).pop().expect("a kernel has at least one assembly");
        let module = parse(&name, &source);
        let holds = |binding: usize| {
            let (_, variable) = module
                .global_variables
                .iter()
                .find(|(_, v)| v.binding.as_ref().is_some_and(|b| b.binding as usize == binding))
                .expect("each binding is declared");
            match module.types[variable.ty].inner {
                TypeInner::Array { base, .. } => base,
                _ => variable.ty,
            }
        };
        let records = kernel.bindings.iter().enumerate().filter_map(|(i, access)| match access {
            Access::Records(fields) => Some((i + 1, *fields)),
            Access::Read | Access::ReadWrite => None,
        });
        for (binding, declared) in records.chain([(0, kernel.params)]) {
            let differ = |size_bytes: usize, fields: &[Field]| {
                let fields = Fields { size_bytes, fields: Vec::leak(fields.to_vec()) };
                !differences(&module, holds(binding), &fields).is_empty()
            };
            let Fields { size_bytes, fields } = *declared;
            assert!(!differ(size_bytes, fields), "{name}: binding {binding} as it is declared");
            assert!(differ(size_bytes + 4, fields), "{name}: binding {binding}, larger");
            assert!(differ(size_bytes, &fields[1..]), "{name}: binding {binding} without its first field");
            for i in 0..fields.len() {
                let change = |change: fn(&mut Field)| {
                    let mut fields = fields.to_vec();
                    change(&mut fields[i]);
                    fields
                };
                assert!(differ(size_bytes, &change(|f| f.offset += 4)), "{name}: `{}` moved", fields[i].name);
                assert!(
                    differ(size_bytes, &change(|f| f.wgsl = "i32")),
                    "{name}: `{}` as i32",
                    fields[i].name
                );
                // Two of one type change places: sizes, types and offsets stay.
                for j in (i + 1..fields.len()).filter(|&j| fields[j].wgsl == fields[i].wgsl) {
                    let mut swapped = fields.to_vec();
                    (swapped[i].name, swapped[j].name) = (fields[j].name, fields[i].name);
                    let [a, b] = [fields[i].name, fields[j].name];
                    assert!(differ(size_bytes, &swapped), "{name}: `{a}` and `{b}` change places");
                    n_swapped += 1;
                }
            }
        }
    }
    assert!(n_swapped > 100, "{n_swapped} pairs were swapped");
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
