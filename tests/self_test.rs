//! The self-test at load: what a driver computes wrongly is noticed, replaced, and remembered.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::requests::{folder, load};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{
    EncoderOptions, Engine, EngineError, EngineOptions, Event, Logits, Output, Request, Sampling,
    SpeechRequest, TextEncoder,
};
use wginfer::gpu::{Gpu, GpuOptions, SelfTest, Trust, Variant};
use wginfer::ops::tunable;
use wginfer::wgpu;

/// The log of the running test.
struct Log(Mutex<Vec<String>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("wginfer")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{}: {}", record.level(), record.args());
            LOG.0.lock().expect("no test fails in here").push(line);
        }
    }

    fn flush(&self) {}
}

/// The lines since the last call that contain `word`.
fn heard(word: &str) -> Vec<String> {
    let mut lines = std::mem::take(&mut *LOG.0.lock().expect("no test fails in here"));
    lines.retain(|line| line.contains(word));
    lines
}

/// One test at a time, with an empty log.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    refusals();
    let _ = log::set_logger(&LOG);
    log::set_max_level(log::LevelFilter::Debug);
    heard("");
    guard
}

type Rewrite = fn(&Variant, String) -> String;

fn always() -> GpuOptions {
    GpuOptions { self_test: SelfTest::Always, ..GpuOptions::default() }
}

/// The device with a driver that miscompiles, tested or not.
fn faulty(rewrite: Rewrite, self_test: SelfTest) -> GpuOptions {
    GpuOptions { rewrite: Some(rewrite), self_test, ..GpuOptions::default() }
}

/// A driver that adds the halves of a subgroup only.
fn halves_sums(_: &Variant, source: String) -> String {
    source.replace("subgroupAdd(", "0.5 * subgroupAdd(").replace("subgroupMax(", "0.5 * subgroupMax(")
}

/// A driver that shuffles wrongly in attention.
fn shuffles_attention(variant: &Variant, source: String) -> String {
    match variant.kernel.name {
        "attention_reg" => source.replace("subgroupShuffle(own[i], l)", "own[i]"),
        _ => source,
    }
}

/// A driver that shuffles wrongly in products.
fn swaps_in_products(variant: &Variant, source: String) -> String {
    match variant.kernel.name {
        "linear" | "gate_up" | "qkv" => source.replace("i * W_VEC4 + k)", "0u)"),
        _ => source,
    }
}

/// A driver that shuffles wrongly everywhere.
fn wrong_attention_and_products(variant: &Variant, source: String) -> String {
    swaps_in_products(variant, shuffles_attention(variant, source))
}

/// A driver that compiles nothing of its subgroups right, and no table.
fn all_wrong(variant: &Variant, source: String) -> String {
    match variant.kernel.name {
        "attention_reg" => shuffles_attention(variant, source),
        // The lanes of other subgroups than the portable variant's.
        "embed" if !source_is_portable(variant) => source.replace("* params.scale;", "* params.scale + 1.0;"),
        _ => halves_sums(variant, source),
    }
}

fn source_is_portable(variant: &Variant) -> bool {
    variant.label().contains("WG=64")
}

/// What a driver was asked to compile and refused, since the test began.
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// A compiler that knows no subgroups in attention.
fn refuses_attention(variant: &Variant, source: String) -> String {
    if variant.kernel.name == "attention_reg" { refuse(variant, &source) } else { source }
}

/// A compiler that knows no subgroups.
fn refuses_subgroups(variant: &Variant, source: String) -> String {
    let is_subgroup = |name: &str| ["reduce_subgroup", "reduce_any", "rows_reg"].contains(&name);
    match variant.parts().any(|part| is_subgroup(part.name)) {
        true => refuse(variant, &source),
        false => refuses_attention(variant, source),
    }
}

/// A compiler that knows no softmax over logits, portable or not.
fn refuses_sampling(variant: &Variant, source: String) -> String {
    if variant.kernel.name == "sample" { refuse(variant, &source) } else { source }
}

fn refuse(variant: &Variant, source: &str) -> String {
    REFUSED.fetch_add(1, Ordering::Relaxed);
    let begin = format!("fn {}(", variant.kernel.name);
    source.replace(&begin, &format!("{begin}@builtin(nothing) nothing: u32, "))
}

/// The number of refusals since the last call.
fn refusals() -> usize {
    REFUSED.swap(0, Ordering::Relaxed)
}

/// Twelve greedy tokens after a prompt of more rows than a block of attention has, and than share reads of the weights.
fn request() -> Request {
    let prompt: Vec<u32> = (0..37).map(|i| i * 29 % 380).collect();
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Request { sampling, max_tokens: Some(12), stop_tokens: Some(vec![]), ..Request::new(prompt) }
}

fn greedy(engine: &mut Engine) -> Vec<u32> {
    engine.submit(request()).expect("submit");
    let mut tokens = Vec::new();
    engine.run(|event| tokens.extend(token(&event))).expect("it runs");
    assert_eq!(tokens.len(), 12);
    tokens
}

fn token(event: &Event) -> Option<u32> {
    match event {
        Event::Token { token, .. } => Some(*token),
        _ => None,
    }
}

/// The labels of the variants of a greedy generation.
fn labels(engine: &mut Engine) -> (Vec<u32>, BTreeSet<String>) {
    engine.trace(true);
    let tokens = greedy(engine);
    (tokens, dispatched(&engine.take_trace()))
}

fn dispatched(trace: &str) -> BTreeSet<String> {
    trace.lines().filter_map(|line| Some(line.split_once(" @ ")?.0.to_string())).collect()
}

/// Whether one of the labels is of a kernel whose name begins so, on subgroups.
fn uses_subgroups(labels: &BTreeSet<String>, kernel: &str) -> bool {
    let needs = ["reduce_subgroup", "reduce_any", "rows_reg", "_reg", "attention_row", "_coop"];
    labels.iter().any(|label| label.starts_with(kernel) && needs.iter().any(|part| label.contains(part)))
}

fn wrong(gpu: &Gpu) -> Vec<String> {
    let trust = gpu.trust(tunable());
    let operations: BTreeSet<String> = trust.wrong().iter().map(|wrong| wrong.operation.clone()).collect();
    operations.into_iter().collect()
}

/// Whether the device can run variants that need subgroups of eight, as the faults here want; says so if not.
fn has_subgroups(gpu: &Gpu) -> bool {
    let has = gpu.caps().cpu && gpu.caps().is_one_subgroup(8);
    if !has {
        let test = std::thread::current().name().unwrap_or("a test").to_string();
        common::say(&format!("skipped, `{}` has no subgroups of eight: {test}", gpu.info().name));
    }
    has
}

#[test]
fn a_wrong_kernel_is_noticed_and_the_text_is_right() {
    let _alone = alone();
    let Some(gpu) = common::gpu().filter(has_subgroups) else { return };
    let right = greedy(&mut load(&gpu, "llama", EngineOptions::default()));
    // Without the test, the fault shows.
    let untested = common::open(&faulty(wrong_attention_and_products, SelfTest::Never)).expect("as before");
    assert_ne!(greedy(&mut load(&untested, "llama", EngineOptions::default())), right);
    assert!(wrong(&untested).is_empty());
    heard("");

    let gpu = common::open(&faulty(wrong_attention_and_products, SelfTest::Always)).expect("as before");
    let (text, used) = labels(&mut load(&gpu, "llama", EngineOptions::default()));
    assert_eq!(text, right);
    assert_eq!(wrong(&gpu), ["attention", "product"]);
    // Only the operations that are wrong lose their variants.
    assert!(!uses_subgroups(&used, "attention") && !uses_subgroups(&used, "linear"), "{used:?}");
    assert!(uses_subgroups(&used, "sample"), "{used:?}");
    // Each is named once, whatever is loaded after that.
    let again = greedy(&mut load(&gpu, "llama", EngineOptions::default()));
    let said = heard("WARN: self-test");
    assert_eq!((said.len(), again), (2, right), "{said:?}");
    assert!(said[0].contains("attention_reg") && said[0].contains("times the tolerance"), "{said:?}");
    assert!(said[1].contains("operation `product` runs portable variants"), "{said:?}");
}

#[test]
fn engines_on_a_loaded_model_are_tested_too() {
    let _alone = alone();
    if common::gpu().filter(has_subgroups).is_none() {
        return;
    }
    let gpu = common::open(&faulty(shuffles_attention, SelfTest::Always)).expect("as before");
    let mut first = load(&gpu, "llama", EngineOptions::default());
    assert_eq!(wrong(&gpu), ["attention"]);
    // The pages of another type are read by other variants, of the same operation.
    let options = EngineOptions { kv_dtype: Dtype::F32, ..EngineOptions::default() };
    let mut second = Engine::new(&gpu, first.model(), options).expect("an engine");
    let (text, used) = labels(&mut second);
    assert_eq!(text, greedy(&mut first));
    assert!(!uses_subgroups(&used, "attention"), "{used:?}");
}

/// Every operation that has a trial notices a fault of its own.
#[test]
fn every_trial_can_fail() {
    let _alone = alone();
    if common::gpu().filter(has_subgroups).is_none() {
        return;
    }
    let gpu = common::open(&faulty(all_wrong, SelfTest::Always)).expect("as before");
    let options = EngineOptions {
        prompt_logprobs: 4,
        max_logprobs: 3,
        alignment_heads: Vec::new(),
        ..EngineOptions::default()
    };
    for model in ["qwen3", "gpt2"] {
        load(&gpu, model, options.clone());
    }
    let whisper = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words");
    let files = ModelFiles::open(&whisper).expect("a model");
    let options = EngineOptions { alignment_heads: vec![[0, 0]], ..options };
    Engine::load(&gpu, files, options, &mut |_| {}).expect("an engine");
    let all = [
        "attention",
        "attention_weights",
        "embed",
        "head_norm",
        "layer_norm",
        "product",
        "rms_norm",
        "sample",
        "softmax",
        "speech_rules",
        "token_logprob",
        "top_k",
    ];
    assert_eq!(wrong(&gpu), all);
}

/// So do those of the part for subgroups of any width.
#[test]
fn trials_of_any_width_can_fail() {
    let _alone = alone();
    let options = GpuOptions {
        disable: "software,subgroup-probe".into(),
        subgroup_range: Some([4, 64]),
        ..faulty(halves_sums, SelfTest::Always)
    };
    let Some(gpu) = common::open(&options).filter(|gpu| gpu.caps().any_subgroups()) else { return };
    let options = EngineOptions { prompt_logprobs: 4, max_logprobs: 3, ..EngineOptions::default() };
    for model in ["qwen3", "gpt2"] {
        load(&gpu, model, options.clone());
    }
    let all = ["head_norm", "layer_norm", "rms_norm", "sample", "softmax", "token_logprob", "top_k"];
    assert_eq!(wrong(&gpu), all);
}

/// No trial is missing, and none condemns what is right.
#[test]
fn what_is_right_is_trusted() {
    let _alone = alone();
    let open = |disable: &str| common::open(&GpuOptions { disable: disable.into(), ..always() });
    for disable in ["", "software"] {
        let Some(gpu) = open(disable) else { return };
        let models = [
            ("llama", None, Dtype::F32),
            ("gpt2", Some(Dtype::Q8_0), Dtype::F16),
            ("qwen2", Some(Dtype::Q4_0), Dtype::F16),
            ("qwen3", Some(Dtype::Q4_K), Dtype::F16),
        ];
        for (model, quantize, kv_dtype) in models {
            load(&gpu, model, EngineOptions { quantize, kv_dtype, ..EngineOptions::default() });
        }
        // A cache in blocks wants heads of whole blocks.
        let files = ModelFiles::demo().expect("the demonstration model");
        let options = EngineOptions {
            kv_dtype: Dtype::Q8_0,
            prompt_logprobs: 4,
            max_logprobs: 3,
            ..Default::default()
        };
        match Engine::load(&gpu, files, options, &mut |_| {}) {
            Ok(_) | Err(EngineError::Parameter { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let files = ModelFiles::open(&folder("bert-classifier")).expect("a model");
        TextEncoder::load(&gpu, files, EncoderOptions::default(), &mut |_| {}).expect("an encoder");
        let whisper = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words");
        let files = ModelFiles::open(&whisper).expect("a model");
        let options = EngineOptions { alignment_heads: vec![[0, 0]], ..EngineOptions::default() };
        Engine::load(&gpu, files, options, &mut |_| {}).expect("an engine");
        let trust = gpu.trust(tunable());
        assert_eq!(trust.wrong(), []);
        let n_right = trust.right().count();
        assert!(n_right > 40 || gpu.caps().one_subgroup().is_none(), "{n_right} variants were tried");
        let said = LOG.0.lock().expect("no test fails in here").clone();
        let odd = said.iter().filter(|line| line.starts_with("WARN") || line.contains("nothing tries"));
        assert_eq!(odd.collect::<Vec<_>>(), Vec::<&String>::new());
    }
}

#[test]
fn software_devices_are_tested_only_if_asked() {
    let _alone = alone();
    let Some(gpu) = common::gpu() else { return };
    for (self_test, is_tested) in [
        (SelfTest::Hardware, gpu.info().device_type != wgpu::DeviceType::Cpu),
        (SelfTest::Never, false),
        (SelfTest::Always, true),
    ] {
        let gpu = common::open(&GpuOptions { self_test, ..GpuOptions::default() }).expect("as before");
        load(&gpu, "llama", EngineOptions::default());
        let n_right = gpu.trust(tunable()).right().count();
        assert_eq!(n_right > 0, is_tested && gpu.caps().one_subgroup().is_some(), "{self_test:?}");
    }
}

#[test]
fn an_answer_is_kept_until_the_driver_or_a_shader_changes() {
    let _alone = alone();
    if common::gpu().filter(has_subgroups).is_none() {
        return;
    }
    let dir = tempfile::TempDir::new().expect("a temporary folder");
    let open = |rewrite: Option<Rewrite>, disable: &str| {
        let cache_dir = Some(dir.path().to_path_buf());
        let options = GpuOptions { cache_dir, rewrite, disable: disable.into(), ..always() };
        common::open(&options).expect("as before")
    };
    let gpu = open(Some(shuffles_attention), "");
    load(&gpu, "llama", EngineOptions::default());
    let path = Trust::path(&gpu, tunable()).expect("there is a cache folder");
    let (kept, found) = (std::fs::read_to_string(&path).expect("it was kept"), gpu.trust(tunable()));
    assert_eq!((wrong(&gpu), heard("WARN").len()), (vec!["attention".to_string()], 1));

    // The next run knows without a test, and says nothing more.
    let gpu = open(None, "");
    let (_, used) = labels(&mut load(&gpu, "llama", EngineOptions::default()));
    assert!(!uses_subgroups(&used, "attention") && uses_subgroups(&used, "linear"), "{used:?}");
    assert_eq!(gpu.trust(tunable()), found);
    assert_eq!(heard("self-test"), Vec::<String>::new());
    assert_eq!(std::fs::read_to_string(&path).expect("as before"), kept);

    // Where nothing is tested, nothing is believed.
    let cache_dir = Some(dir.path().to_path_buf());
    let never = GpuOptions { cache_dir, self_test: SelfTest::Never, ..GpuOptions::default() };
    let (_, used) =
        labels(&mut load(&common::open(&never).expect("as before"), "llama", EngineOptions::default()));
    assert!(uses_subgroups(&used, "attention"), "{used:?}");

    // A device with other capabilities has an answer of its own.
    assert_ne!(Trust::path(&open(None, "f16,software"), tunable()), Some(path.clone()));

    let driver = gpu.info().driver_info.clone();
    let shaders = format!("{:016x}", tunable().shaders);
    for (what, is_now) in [(&driver, "another"), (&shaders, "0000000000000000")] {
        heard("");
        assert!(kept.contains(what.as_str()), "{kept}");
        std::fs::write(&path, kept.replace(what.as_str(), is_now)).expect("it can be written");
        let gpu = open(None, "");
        let (_, used) = labels(&mut load(&gpu, "llama", EngineOptions::default()));
        assert!(uses_subgroups(&used, "attention"), "{used:?}");
        assert!(wrong(&gpu).is_empty());
        let said = heard("WARN");
        assert!(said.len() == 1 && said[0].contains("kernels are tested again"), "{said:?}");
        let anew = std::fs::read_to_string(&path).expect("as before");
        assert!(anew.contains(what.as_str()) && anew.contains("attention_reg"), "{anew}");
    }
}

#[test]
fn what_does_not_compile_is_replaced() {
    let _alone = alone();
    let Some(gpu) = common::gpu().filter(has_subgroups) else { return };
    let right = greedy(&mut load(&gpu, "llama", EngineOptions::default()));
    for self_test in [SelfTest::Always, SelfTest::Hardware, SelfTest::Never] {
        heard("");
        let gpu = common::open(&faulty(refuses_attention, self_test)).expect("as before");
        let mut engine = load(&gpu, "llama", EngineOptions::default());
        let (text, used) = labels(&mut engine);
        assert_eq!((text, wrong(&gpu)), (right.clone(), vec!["attention".to_string()]), "{self_test:?}");
        assert!(!uses_subgroups(&used, "attention") && uses_subgroups(&used, "linear"), "{used:?}");
        let said = heard("WARN");
        assert!(said.len() == 1 && said[0].contains("does not compile `attention_reg"), "{said:?}");
        assert!(said[0].contains("nothing") && said[0].contains("operation `attention`"), "{said:?}");
        assert!(said[0].lines().count() == 1 && said[0].len() < 500, "{said:?}");
        // What is known is not tried again, by whatever is loaded after that.
        assert!(refusals() > 0);
        let again = greedy(&mut load(&gpu, "llama", EngineOptions::default()));
        let other =
            greedy(&mut Engine::new(&gpu, engine.model(), EngineOptions::default()).expect("an engine"));
        assert_eq!((again, other, refusals()), (right.clone(), right.clone(), 0), "{self_test:?}");
        assert_eq!(heard("WARN"), Vec::<String>::new());
    }
}

#[test]
fn a_compiler_that_refuses_all_subgroups_is_survived() {
    let _alone = alone();
    if common::gpu().filter(has_subgroups).is_none() {
        return;
    }
    for disable in ["", "software"] {
        let open = |rewrite, disable: &str| {
            common::open(&GpuOptions { rewrite, disable: disable.into(), ..always() }).expect("as before")
        };
        let portable = open(None, &format!("subgroups,{disable}"));
        let right = greedy(&mut load(&portable, "llama", EngineOptions::default()));
        heard("");
        let gpu = open(Some(refuses_subgroups), disable);
        let (text, used) = labels(&mut load(&gpu, "llama", EngineOptions::default()));
        assert!(text == right && !uses_subgroups(&used, ""), "{used:?}");
        assert_eq!(heard("WARN").len(), wrong(&gpu).len());
        let least: &[&str] = match disable {
            "" => &["attention", "product", "sample"],
            _ => &["product", "rms_norm", "sample"],
        };
        assert!(
            least.iter().all(|operation| wrong(&gpu).contains(&operation.to_string())),
            "{:?}",
            wrong(&gpu)
        );
        assert!(gpu.trust(tunable()).wrong().iter().all(|wrong| wrong.refusal.is_some()));
    }
}

#[test]
fn a_refusal_is_kept_where_tests_are() {
    let _alone = alone();
    if common::gpu().filter(has_subgroups).is_none() {
        return;
    }
    for (self_test, is_kept) in [(SelfTest::Always, true), (SelfTest::Never, false)] {
        let dir = tempfile::TempDir::new().expect("a temporary folder");
        let open = || {
            let cache_dir = Some(dir.path().to_path_buf());
            let options = GpuOptions { cache_dir, ..faulty(refuses_attention, self_test) };
            common::open(&options).expect("as before")
        };
        let gpu = open();
        load(&gpu, "llama", EngineOptions::default());
        let path = Trust::path(&gpu, tunable()).expect("there is a cache folder");
        assert_eq!(std::fs::read_to_string(&path).is_ok_and(|kept| kept.contains("refusal")), is_kept);
        assert!(refusals() > 0 && heard("WARN").len() == 1);
        let gpu = open();
        let (_, used) = labels(&mut load(&gpu, "llama", EngineOptions::default()));
        assert!(!uses_subgroups(&used, "attention") && wrong(&gpu) == ["attention"], "{used:?}");
        assert_eq!((refusals() == 0, heard("WARN").is_empty()), (is_kept, is_kept));
    }
}

#[test]
fn a_portable_variant_that_does_not_compile_is_an_error() {
    let _alone = alone();
    if common::gpu().filter(has_subgroups).is_none() {
        return;
    }
    for self_test in [SelfTest::Always, SelfTest::Never] {
        let gpu = common::open(&faulty(refuses_sampling, self_test)).expect("as before");
        let files = ModelFiles::open(&folder("llama")).expect("a model");
        let error =
            Engine::load(&gpu, files, EngineOptions::default(), &mut |_| {}).expect_err("it is refused");
        let text = error.to_string();
        assert!(text.contains("kernel `sample") && text.contains("does not compile"), "{text}");
        assert!(gpu.trust(tunable()) == Trust::default(), "nothing is blamed");
    }
}

/// A host's device.
fn host(options: &GpuOptions) -> (Gpu, wgpu::Queue) {
    let instance = wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
    let (device, queue) =
        pollster::block_on(adapter.request_device(&Gpu::required(&adapter))).expect("a device");
    (Gpu::adopt_with(device, queue.clone(), options).expect("large enough"), queue)
}

/// What became of a request on a host's device.
#[derive(Default)]
struct Guest {
    tokens: Vec<u32>,
    cached_tokens: usize,
    /// The labels of the variants that ran, frame by frame.
    used: Vec<BTreeSet<String>>,
}

impl Guest {
    /// Runs the greedy request, one frame of the host after the other.
    fn run(engine: &mut Engine, queue: &wgpu::Queue) -> Guest {
        engine.submit(request()).expect("submit");
        engine.trace(true);
        let mut guest = Guest::default();
        while !engine.is_idle() {
            queue.submit(engine.advance(Duration::from_millis(2)).expect("it records"));
            engine.gpu().device().poll(wgpu::PollType::wait_indefinitely()).expect("the host waits");
            for event in engine.events().expect("it runs") {
                guest.tokens.extend(token(&event));
                if let Event::Done { usage, .. } = event {
                    guest.cached_tokens = usage.cached_tokens;
                }
            }
            guest.used.push(dispatched(&engine.take_trace()));
        }
        guest
    }

    /// For each frame, whether a kernel whose name begins so ran on subgroups.
    fn on_subgroups(&self, kernel: &str) -> Vec<bool> {
        self.used.iter().map(|used| uses_subgroups(used, kernel)).collect()
    }
}

#[test]
fn a_host_waits_for_nothing() {
    let _alone = alone();
    let Some(own) = common::gpu().filter(has_subgroups) else { return };
    let right = greedy(&mut load(&own, "llama", EngineOptions::default()));
    let faults: [(Rewrite, &str); 3] =
        [(shuffles_attention, "attention"), (swaps_in_products, "product"), (|_, source| source, "")];
    for (rewrite, fault) in faults {
        heard("");
        let (gpu, queue) = host(&faulty(rewrite, SelfTest::Always));
        // No submission of the host's lies between the start of the load and the engine.
        let mut engine = load(&gpu, "llama", EngineOptions::default());
        assert!(gpu.trust(tunable()) == Trust::default() && gpu.counts().submissions == 0);
        let first = Guest::run(&mut engine, &queue);
        assert_eq!(first.tokens, right, "{fault}");
        // Portable variants until the answer is there, then the others, but for what is wrong.
        let sampled = first.on_subgroups("sample");
        assert!(!sampled[0] && sampled.contains(&true), "{sampled:?}");
        for kernel in ["attention", "linear"] {
            let is_wrong = fault == if kernel == "linear" { "product" } else { kernel };
            let runs = first.on_subgroups(kernel);
            assert!(!runs[0] && runs.contains(&true) != is_wrong, "{fault}, {kernel}: {runs:?}");
        }
        assert_eq!(wrong(&gpu), if fault.is_empty() { vec![] } else { vec![fault.to_string()] });
        assert_eq!(heard("WARN: self-test").len(), wrong(&gpu).len());
        assert_eq!(gpu.counts().submissions, 0, "only the host submits");

        // What was computed before the answer is not shared, what was computed after it is.
        let again = [(); 2].map(|()| Guest::run(&mut engine, &queue));
        assert!(again.iter().all(|guest| guest.tokens == right), "{fault}");
        let labels = again.iter().flat_map(|guest| guest.used.iter().flatten());
        assert!(labels.filter(|label| label.starts_with("sample")).all(|label| label.contains("subgroup")));
        assert_eq!(again[0].cached_tokens, 0);
        assert!(again[1].cached_tokens > 0);
    }
}

#[test]
fn a_host_s_driver_may_refuse_to_compile() {
    let _alone = alone();
    let Some(own) = common::gpu().filter(has_subgroups) else { return };
    let right = greedy(&mut load(&own, "llama", EngineOptions::default()));
    let dir = tempfile::TempDir::new().expect("a temporary folder");
    for (self_test, is_first) in [
        (SelfTest::Always, true),
        (SelfTest::Always, false),
        (SelfTest::Hardware, true),
        (SelfTest::Never, true),
    ] {
        heard("");
        let cache_dir = Some(dir.path().to_path_buf());
        let (gpu, queue) = host(&GpuOptions { cache_dir, ..faulty(refuses_attention, self_test) });
        let mut engine = load(&gpu, "llama", EngineOptions::default());
        assert_eq!((wrong(&gpu), refusals() > 0), (vec!["attention".to_string()], is_first), "{self_test:?}");
        assert_eq!(heard("does not compile `attention_reg").len(), usize::from(is_first), "{self_test:?}");
        let runs = [(); 2].map(|()| Guest::run(&mut engine, &queue));
        for guest in &runs {
            assert_eq!(guest.tokens, right, "{self_test:?}");
            assert!(!guest.on_subgroups("attention").contains(&true), "{self_test:?}");
        }
        // The other operations are tested as ever.
        for kernel in ["linear", "sample"] {
            assert!(runs[1].on_subgroups(kernel).contains(&true), "{kernel}, {self_test:?}");
        }
        assert_eq!((refusals(), gpu.counts().submissions), (0, 0), "{self_test:?}");
    }
}

/// The audio encoder's blocks of attention are those of the variants that run.
#[test]
fn clips_are_heard_with_any_variant() {
    let _alone = alone();
    let Some(own) = common::gpu().filter(has_subgroups) else { return };
    let hear = |gpu: &Gpu| {
        let whisper = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words");
        let files = ModelFiles::open(&whisper).expect("a model");
        let options = EngineOptions { logits: true, ..EngineOptions::default() };
        let mut engine = Engine::load(gpu, files, options, &mut |_| {}).expect("an engine");
        let audio = engine.shape().audio.clone().expect("a speech model");
        let n = audio.n_frames * audio.n_mels;
        let features: Vec<f32> = (0..n).map(|i| (i * 31 % 1009) as f32 / 500.0 - 1.0).collect();
        let clip = engine.listen(&features).expect("a clip");
        let speech = Some(SpeechRequest { clip, rules: None, alignment: false });
        let logits = Some(Logits::Last);
        engine.submit(Request { speech, logits, ..Request::new(vec![1, 2, 3]) }).expect("submit");
        let mut found = Vec::new();
        engine
            .run(|event| {
                if let Event::Logits { values, .. } = event {
                    found = values
                }
            })
            .expect("it runs");
        found
    };
    let right = hear(&own);
    let largest = right.iter().fold(0.0f32, |most, z| most.max(z.abs()));
    let far = |self_test| {
        let found = hear(&common::open(&faulty(shuffles_attention, self_test)).expect("as before"));
        found.iter().zip(&right).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
    };
    let (tested, untested) = (far(SelfTest::Always), far(SelfTest::Never));
    assert!(tested < 1e-3 && untested > 1e-2, "{tested}, {untested}");
}

#[test]
fn a_load_in_slices_ends_with_the_answer() {
    let _alone = alone();
    if common::gpu().filter(has_subgroups).is_none() {
        return;
    }
    let (gpu, queue) = host(&faulty(shuffles_attention, SelfTest::Always));
    let files = ModelFiles::open(&folder("llama")).expect("a model");
    let mut loading = Engine::loading(&gpu, files, EngineOptions::default()).expect("it is planned");
    while !loading.is_done() {
        queue.submit(loading.advance(Duration::from_millis(2)).expect("it records"));
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the host waits");
    }
    assert_eq!(wrong(&gpu), ["attention"]);
    let mut engine = loading.finish().expect("an engine");
    let guest = Guest::run(&mut engine, &queue);
    assert!(guest.on_subgroups("linear").contains(&true) && !guest.on_subgroups("attention").contains(&true));
}

#[test]
fn texts_are_encoded_before_and_after_the_answer() {
    let _alone = alone();
    let Some(own) = common::gpu().filter(has_subgroups) else { return };
    let encode = |encoder: &mut TextEncoder, run: &mut dyn FnMut(&mut TextEncoder) -> Vec<f32>| {
        let ids = (1..40).map(|i| i * 7 % 90 + 1).collect();
        encoder.submit(ids, Output::Embedding).expect("submit");
        run(encoder)
    };
    let open = |gpu: &Gpu| {
        let files = ModelFiles::open(&folder("bert-classifier")).expect("a model");
        TextEncoder::load(gpu, files, EncoderOptions::default(), &mut |_| {}).expect("an encoder")
    };
    let right = encode(&mut open(&own), &mut |encoder| {
        let mut values = Vec::new();
        encoder.run(|encoded| values = encoded.values.expect("numbers")).expect("it runs");
        values
    });
    let (gpu, queue) = host(&faulty(shuffles_attention, SelfTest::Always));
    let mut encoder = open(&gpu);
    for _ in 0..3 {
        let found = encode(&mut encoder, &mut |encoder| loop {
            queue.submit(encoder.advance(Duration::from_millis(2)).expect("it records"));
            gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the host waits");
            if let Some(encoded) = encoder.events().expect("it runs").pop() {
                break encoded.values.expect("numbers");
            }
        });
        let far = found.iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-4, "{far}");
    }
    for _ in 0..100 {
        queue.submit(encoder.advance(Duration::ZERO).expect("it records"));
        gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("the host waits");
    }
    assert_eq!(wrong(&gpu), ["attention"]);
}

/// A batch's blocks of attention are those of the variants that run.
#[test]
fn texts_are_encoded_where_attention_does_not_compile() {
    let _alone = alone();
    let Some(own) = common::gpu().filter(has_subgroups) else { return };
    let encode = |gpu: &Gpu| {
        let files = ModelFiles::open(&folder("bert-classifier")).expect("a model");
        let mut encoder =
            TextEncoder::load(gpu, files, EncoderOptions::default(), &mut |_| {}).expect("an encoder");
        encoder.submit((1..40).map(|i| i * 7 % 90 + 1).collect(), Output::Embedding).expect("submit");
        let mut values = Vec::new();
        encoder.run(|encoded| values = encoded.values.expect("numbers")).expect("it runs");
        values
    };
    let right = encode(&own);
    for self_test in [SelfTest::Always, SelfTest::Never] {
        let gpu = common::open(&faulty(refuses_attention, self_test)).expect("as before");
        let far = encode(&gpu).iter().zip(&right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-4 && wrong(&gpu) == ["attention"], "{far}, {self_test:?}");
    }
}

#[test]
fn the_test_s_memory_is_added_up_too() {
    let _alone = alone();
    let with_memory = |n: u64| common::open(&GpuOptions { free_bytes: Some(n), ..always() });
    let Some(gpu) = with_memory(1) else { return };
    let open = || ModelFiles::open(&folder("llama")).expect("a model");
    let options = EngineOptions { ctx: Some(256), max_seqs: 3, ..EngineOptions::default() };
    let load = |gpu: &Gpu| Engine::load(gpu, open(), options.clone(), &mut |_| {});
    let before = gpu.counts();
    let Err(EngineError::Memory { need, .. }) = load(&gpu) else { panic!("one byte is not enough") };
    assert_eq!(gpu.counts(), before, "nothing was allocated");
    let large = with_memory(need.total_bytes()).expect("a device");
    let mut engine = load(&large).expect("it is enough");
    let counts = large.counts();
    assert!(counts.peak_bytes <= need.total_bytes(), "{counts:?} of {need:?}");
    // It is given back when the first step has used the answer.
    greedy(&mut engine);
    assert!(large.counts().live_bytes < counts.live_bytes || gpu.caps().one_subgroup().is_none());
}
