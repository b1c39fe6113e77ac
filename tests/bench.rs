//! The benchmarks: they detect wrong results, their rows are plausible, and runs can be compared.

mod common;

use std::time::Duration;

use wginfer::bench::{
    self, BenchError, KernelOptions, KernelReport, KernelRow, Limits, Meta, ModelOptions, ModelReport,
    ModelRow, ModelSummary, Report, Shape,
};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, GpuOptions};

/// A small model with grouped heads, norms of heads, a gate, and a head of its own.
const QWEN3: &str = r#"{"model_type": "qwen3", "hidden_size": 72, "intermediate_size": 104, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 203,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "rope_theta": 10000.0}"#;

/// The same with experts.
const QWEN3_MOE: &str = r#"{"model_type": "qwen3_moe", "hidden_size": 72, "intermediate_size": 104,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 203,
    "max_position_embeddings": 512, "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 44,
    "norm_topk_prob": true}"#;

/// Layer norms, no gate.
const GPT2: &str = r#"{"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 256,
    "vocab_size": 131, "layer_norm_epsilon": 1e-5}"#;

/// With an audio encoder.
const WHISPER: &str = r#"{"model_type": "whisper", "vocab_size": 213, "num_mel_bins": 20, "d_model": 48,
    "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 100, "decoder_layers": 2,
    "decoder_attention_heads": 3, "decoder_ffn_dim": 100, "max_source_positions": 70, "max_target_positions": 90}"#;

fn shape(config: &str) -> Shape {
    let file = tempfile::Builder::new().suffix(".json").tempfile().expect("a file");
    std::fs::write(file.path(), config).expect("it can be written");
    Shape::open(&file.path().to_string_lossy()).expect("a shape")
}

fn options(config: &str) -> KernelOptions {
    KernelOptions {
        n_rows: vec![1, 3, 40],
        budget: Duration::from_millis(2),
        rotate_bytes: 1 << 20,
        longest_run: Duration::from_secs(60),
        ..KernelOptions::quick(vec![shape(config)])
    }
}

fn run(gpu: &Gpu, options: &KernelOptions) -> KernelReport {
    let mut n = 0;
    let report = bench::kernels(gpu, options, "a test".into(), &mut |progress| {
        assert_eq!(progress.n_done, n);
        assert!(progress.n_done < progress.n_total && !progress.next.is_empty());
        n += 1;
    });
    let report = report.expect("a report");
    assert_eq!(n, report.rows.len() + report.skipped.len());
    report
}

#[test]
fn every_operation_is_measured_and_right() {
    let Some(gpu) = common::gpu() else { return };
    let all = KernelOptions { dtypes: bench::WEIGHTS.to_vec(), ..options(QWEN3) };
    let [moe, gpt2, whisper] = [QWEN3_MOE, GPT2, WHISPER].map(|config| run(&gpu, &options(config)));
    let reports = [run(&gpu, &all), moe, gpt2, whisper];
    for report in &reports {
        assert!(report.skipped.is_empty(), "{:?}", report.skipped);
        let limits = report.limits;
        assert!(limits.copy_gbps > 0.0 && limits.fma_gflops > 0.0, "{limits:?}");
        report.rows.iter().for_each(|row| check(row, &limits));
        let mut keys: Vec<String> = report.rows.iter().map(KernelRow::key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), report.rows.len(), "no two rows have one name");
    }
    for name in bench::operations() {
        let rows = || reports.iter().flat_map(|report| &report.rows).filter(|row| row.kernel == name);
        // Each operation is listed, with the variant that a model runs.
        assert!(rows().any(|row| row.is_default), "{name}");
    }
    let of = |kernel: &str, dtype: Dtype| {
        let rows = reports[0].rows.iter();
        rows.filter(|row| row.kernel == kernel && row.dtype == dtype.name()).count()
    };
    for dtype in bench::WEIGHTS {
        assert_eq!(of("linear", *dtype), of("linear", Dtype::F16), "{dtype}");
    }
    assert_eq!(of("attention", Dtype::F32), of("attention", Dtype::F16));
}

#[test]
fn without_timestamps_the_host_measures() {
    let options = GpuOptions { disable: "timestamps".into(), ..GpuOptions::default() };
    let Some(gpu) = common::open(&options) else { return };
    let report = run(&gpu, &KernelOptions { filter: Some("norm".into()), ..self::options(QWEN3) });
    assert_eq!(report.limits.clock, bench::Clock::Host);
    assert!(!report.rows.is_empty());
    report.rows.iter().for_each(|row| check(row, &report.limits));
}

fn check(row: &KernelRow, limits: &Limits) {
    assert!(row.is_right, "{row:?}");
    assert!(row.error.is_some_and(|e| (0.0..=1.0).contains(&e)), "{row:?}");
    assert!(row.us > 0.0 && row.us_low <= row.us && row.us <= row.us_high && row.n_samples >= 2, "{row:?}");
    assert!(row.gbps > 0.0 && row.gflops >= 0.0 && row.percent > 0.0, "{row:?}");
    let by_memory = row.gbps / limits.copy_gbps * 100.0;
    let by_arithmetic = row.gflops / limits.fma_gflops * 100.0;
    let (nearer, limit) =
        if by_memory >= by_arithmetic { (by_memory, "memory") } else { (by_arithmetic, "arithmetic") };
    assert!((row.percent / nearer - 1.0).abs() < 1e-6 && row.limit == limit, "{row:?}, {limits:?}");
}

#[test]
fn a_wrong_kernel_is_reported_as_wrong() {
    let Some(gpu) = common::gpu() else { return };
    for config in [QWEN3, QWEN3_MOE, GPT2, WHISPER] {
        // One output of each case is moved by three tolerances.
        let report = run(&gpu, &KernelOptions { perturbation: 3.0, n_rows: vec![3, 40], ..options(config) });
        for row in &report.rows {
            assert!(!row.is_right && row.error > Some(1.0), "{row:?}");
        }
        let nan = KernelOptions { perturbation: f64::NAN, ..options(config) };
        assert!(matches!(
            bench::kernels(&gpu, &nan, String::new(), &mut |_| {}),
            Err(BenchError::Parameter { .. })
        ));
    }
}

#[test]
fn filters_and_parameters() {
    let Some(gpu) = common::gpu() else { return };
    let filtered = |words: &str| KernelOptions { filter: Some(words.into()), ..options(QWEN3) };
    let report = run(&gpu, &filtered("LINEAR down 3 rows"));
    assert!(!report.rows.is_empty());
    assert!(
        report.rows.iter().all(|r| r.kernel == "linear" && r.shape.contains("down")),
        "{:?}",
        report.rows
    );
    let error = |options: &KernelOptions| {
        bench::kernels(&gpu, options, String::new(), &mut |_| {}).expect_err("refused").to_string()
    };
    let unknown = error(&filtered("convolution"));
    assert!(unknown.contains("`convolution`") && unknown.contains("`rope_append`"), "{unknown}");
    assert!(error(&KernelOptions { n_rows: vec![1, 0], ..options(QWEN3) }).contains("`rows` is 0"));
    assert!(error(&KernelOptions { budget: Duration::ZERO, ..options(QWEN3) }).contains("`time-ms` is 0"));
    assert!(error(&KernelOptions { dtypes: vec![Dtype::U32], ..options(QWEN3) }).contains("`type` is U32"));
}

#[test]
fn what_takes_too_long_is_left_out() {
    let Some(gpu) = common::gpu() else { return };
    let options = KernelOptions {
        longest_run: Duration::from_nanos(1),
        filter: Some("linear".into()),
        ..options(QWEN3)
    };
    let report = run(&gpu, &options);
    assert!(report.rows.is_empty() && !report.skipped.is_empty());
    assert!(report.skipped.iter().all(|s| s.contains("a run takes about")), "{:?}", report.skipped);
}

#[test]
fn shapes_that_are_none() {
    let error = Shape::open("llama-4").expect_err("no such model");
    assert!(error.to_string().contains("`llama-4`") && error.to_string().contains("`gpt2`"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("config.json")));
    let file = tempfile::NamedTempFile::new().expect("a file");
    for (config, what) in [
        ("{", "EOF"),
        (r#"{"model_type": "rnn"}"#, "`rnn`"),
        (
            r#"{"model_type": "llama", "hidden_size": 9223372036854775808}"#,
            "`hidden_size` is `9223372036854775808`",
        ),
        (
            r#"{"model_type": "llama", "num_hidden_layers": 1000000000}"#,
            "`num_hidden_layers` is `1000000000`",
        ),
        ("{\"model_type\": \"llama\",\n\"intermediate_size\": 0}", "line 2: `intermediate_size` is `0`"),
    ] {
        std::fs::write(file.path(), config).expect("it can be written");
        let error = Shape::open(&file.path().to_string_lossy()).expect_err("no model").to_string();
        assert!(error.contains(what) && error.contains(&*file.path().to_string_lossy()), "{error}");
    }
}

// --- models ---

fn measure(config: &'static str, dtype: Dtype, options: &ModelOptions) -> Result<ModelReport, BenchError> {
    let open = || ModelFiles::random("tiny", config, dtype);
    let mut steps = Vec::new();
    let report = bench::model(&GpuOptions::default(), &open, options, "a test".into(), &mut |s| {
        steps.push(s.to_string())
    });
    assert!(report.is_err() || steps.len() > 3, "{steps:?}");
    report
}

#[test]
fn a_model_with_random_weights_is_measured() {
    if common::gpu().is_none() {
        return;
    }
    let options = ModelOptions {
        prompts: vec![40],
        answers: vec![5],
        both: vec![(9, 3)],
        depths: vec![0, 33],
        batches: vec![1, 3],
        n_repetitions: 2,
        max_rows: 32,
        quantize: None,
        kv_dtype: Dtype::F16,
    };
    for (config, dtype) in [(QWEN3, Dtype::BF16), (GPT2, Dtype::F32), (QWEN3, Dtype::F16)] {
        let report = measure(config, dtype, &options).expect("a report");
        let labels: Vec<String> = report.rows.iter().map(ModelRow::label).collect();
        let expected: Vec<String> = ["pp40", "tg5", "pp9+tg3"]
            .iter()
            .flat_map(|test| ["", " @ d33", " × 3", " @ d33 × 3"].map(|rest| format!("{test}{rest}")))
            .collect();
        assert_eq!(labels, expected);
        for row in &report.rows {
            assert!(row.tokens_per_second > 0.0 && row.sigma >= 0.0 && row.percent > 0.0, "{row:?}");
            assert!(row.time_to_first_token_ms > 0.0 && row.n_repetitions == 2, "{row:?}");
            assert_eq!(row.time_per_output_token_ms.is_some(), row.test.contains("tg"), "{row:?}");
            if let Some([p50, p95, p99]) = row.time_per_output_token_ms {
                assert!(0.0 < p50 && p50 <= p95 && p95 <= p99, "{row:?}");
            }
        }
        let m = &report.model;
        assert!(m.is_random && m.dtype == dtype.name() && m.kv_dtype == "F16", "{m:?}");
        assert!(m.compile_cold_ms > 0.0 && m.compile_warm_ms > 0.0 && m.load_ms > 0.0, "{m:?}");
        assert!(m.weights_bytes >= 2 * m.n_params && m.peak_device_bytes > m.weights_bytes, "{m:?}");
        assert_eq!(m.peak_host_bytes.is_some(), cfg!(target_os = "linux"));
    }
    let quantised =
        ModelOptions { quantize: Some(Dtype::Q4_0), depths: vec![0], batches: vec![1], ..options.clone() };
    let [quantised, f16] = [quantised.clone(), ModelOptions { quantize: None, ..quantised }]
        .map(|options| measure(QWEN3, Dtype::F16, &options).expect("a report").model);
    assert!(quantised.dtype == "Q4_0" && quantised.weights_bytes < f16.weights_bytes, "{quantised:?}");
    for (wrong, what) in [
        (ModelOptions { n_repetitions: 0, ..options.clone() }, "`repetitions` is 0"),
        (ModelOptions { batches: vec![0], ..options.clone() }, "`batch` is 0"),
        (ModelOptions { prompts: vec![], answers: vec![], both: vec![], ..options.clone() }, "`tests` is 0"),
        (ModelOptions { both: vec![(4, 0)], ..options.clone() }, "`pg` is 4,0"),
        (ModelOptions { prompts: vec![300], ..options.clone() }, "positions are learned"),
    ] {
        let error = measure(GPT2, Dtype::F16, &wrong).expect_err("refused").to_string();
        assert!(error.contains(what), "{error}");
    }
    for dtype in [Dtype::U32, Dtype::Q8_0] {
        assert!(ModelFiles::random("tiny", GPT2, dtype).is_err(), "{dtype}");
    }
}

/// The same logits for the same shape, other values for every tensor, and all finite.
#[test]
fn random_weights_make_a_model_that_works() {
    use wginfer::engine::{Engine, EngineOptions, Event, Logits, Request, SpeechRequest};
    let Some(gpu) = common::gpu() else { return };
    let logits = |config: &str, dtype| {
        let checkpoint = ModelFiles::random("tiny", config, dtype).expect("a shape");
        let options = EngineOptions { logits: true, max_seqs: 2, ..EngineOptions::default() };
        let mut engine = Engine::load(&gpu, checkpoint, options, &mut |_| {}).expect("it loads");
        let speech = engine.shape().audio.clone().map(|audio| {
            let features: Vec<f32> = (0..audio.n_frames * audio.n_mels).map(|i| (i as f32).sin()).collect();
            let clip = engine.listen(&features).expect("a clip");
            SpeechRequest { clip, rules: None, alignment: false }
        });
        let request = Request { logits: Some(Logits::Last), speech, ..Request::new(vec![1, 2, 3]) };
        engine.submit(request).expect("queued");
        let mut found = Vec::new();
        let keep = |event| match event {
            Event::Logits { values, .. } => found = values,
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        };
        engine.run(keep).expect("it runs");
        found
    };
    for config in [QWEN3, GPT2, WHISPER] {
        let one = logits(config, Dtype::F16);
        common::assert_same_bits(config, &one, &logits(config, Dtype::F16));
        let n = one.len() as f32;
        let rms = (one.iter().map(|z| z * z).sum::<f32>() / n).sqrt();
        assert!((0.2..5.0).contains(&rms), "{config}: logits of size {rms}");
    }
}

// --- reports ---

fn meta() -> Meta {
    Meta {
        program: "wginfer".into(),
        version: "0.1.0".into(),
        wgpu_version: "30.0.1".into(),
        date: "2026-01-02T03:04:05Z".into(),
        command: "wginfer bench".into(),
        adapter: "card".into(),
        driver: "driver 1".into(),
        backend: "vulkan".into(),
    }
}

fn limits() -> Limits {
    Limits { copy_gbps: 100.0, fma_gflops: 1000.0, clock: bench::Clock::Device }
}

fn kernel_report(us: &[(&str, f64, f64)]) -> Report {
    let row = |(shape, us, spread): &(&str, f64, f64)| KernelRow {
        kernel: "linear".into(),
        variant: "linear_few".into(),
        is_default: true,
        shape: shape.to_string(),
        dtype: "F16".into(),
        n_rows: 1,
        us: *us,
        us_low: us - spread,
        us_high: us + spread,
        n_samples: 9,
        gflops: 1.0,
        gbps: 1.0,
        percent: 1.0,
        limit: "memory".into(),
        error: None,
        is_right: *shape != "wrong",
    };
    Report::Kernels(KernelReport {
        meta: meta(),
        limits: limits(),
        rows: us.iter().map(row).collect(),
        skipped: vec!["something".into()],
    })
}

fn model_report(tokens_per_second: f64, sigma: f64) -> Report {
    Report::Model(ModelReport {
        meta: meta(),
        limits: limits(),
        model: ModelSummary {
            name: "tiny".into(),
            architecture: "llama".into(),
            dtype: "F16".into(),
            kv_dtype: "F16".into(),
            is_random: true,
            n_params: 5,
            weights_bytes: 10,
            load_ms: 1.0,
            compile_cold_ms: 2.0,
            compile_warm_ms: 1.5,
            peak_device_bytes: 20,
            peak_host_bytes: None,
            times_include: "sampling".into(),
        },
        rows: vec![ModelRow {
            test: "tg128".into(),
            depth: 0,
            batch: 1,
            tokens_per_second,
            sigma,
            n_repetitions: 5,
            percent: 50.0,
            limit: "memory".into(),
            time_to_first_token_ms: 3.0,
            time_per_output_token_ms: Some([1.0, 2.0, 3.0]),
        }],
    })
}

#[test]
fn reports_survive_json() {
    for report in [kernel_report(&[("a", 1.5, 0.25), ("wrong", 2.0, 0.0)]), model_report(10.0, 1.0)] {
        let json = serde_json::to_string(&report).expect("JSON");
        assert_eq!(Report::from_json("a file", &json).expect("the same"), report);
    }
    let error = Report::from_json("a file", r#"{"kind": "weather"}"#).expect_err("no report");
    assert!(error.to_string().contains("`a file`") && error.hint().is_some(), "{error}");
    assert!(Report::from_json("a file", "").is_err());
    // Speedups are quotients.
    for (report, key) in [
        (kernel_report(&[("a", 0.0, 0.0)]), "`us`"),
        (kernel_report(&[("a", -1.5, 0.0)]), "`us`"),
        (model_report(0.0, 1.0), "`tokens_per_second`"),
    ] {
        let json = serde_json::to_string(&report).expect("JSON");
        let error = Report::from_json("a file", &json).expect_err("no time is 0").to_string();
        assert!(error.contains(key) && error.contains("above 0"), "{error}");
    }
}

#[test]
fn what_lies_outside_the_spread_is_marked() {
    let name = |name: &str, report| (name.to_string(), report);
    let before = kernel_report(&[
        ("same", 10.0, 1.0),
        ("faster", 10.0, 1.0),
        ("gone", 10.0, 1.0),
        ("wrong", 9.0, 1.0),
    ]);
    let after =
        kernel_report(&[("new", 3.0, 0.1), ("faster", 5.0, 1.0), ("same", 11.5, 1.0), ("wrong", 9.0, 1.0)]);
    let comparison = bench::compare(&[name("a", before.clone()), name("b", after)]).expect("two of a kind");
    assert_eq!((comparison.names.join(" "), comparison.unit), ("a b".to_string(), "µs"));
    let row = |shape: &str| {
        comparison.rows.iter().find(|row| row.label.contains(shape)).expect("it is there").values.clone()
    };
    let faster = row("faster")[1].expect("measured");
    assert!((faster.speedup.expect("of two") - 2.0).abs() < 1e-12 && faster.is_outside && faster.is_right);
    assert!(!row("same")[1].expect("measured").is_outside, "the spreads meet");
    assert_eq!((row("gone")[1], row("new")[0]), (None, None));
    assert_eq!(row("new")[1].expect("measured").speedup, None);
    assert!(!row("wrong")[1].expect("measured").is_right);

    let three = [model_report(10.0, 0.5), model_report(11.0, 0.2), model_report(12.0, 0.2)];
    let three: Vec<_> = three.into_iter().map(|report| name("m", report)).collect();
    let comparison = bench::compare(&three).expect("three of a kind");
    let values: Vec<_> = comparison.rows[0].values.iter().map(|v| v.expect("measured")).collect();
    assert_eq!(values.iter().map(|v| v.is_outside).collect::<Vec<_>>(), [false, false, true]);
    assert!((values[2].speedup.expect("against the first") - 1.2).abs() < 1e-12);

    assert!(matches!(bench::compare(&[name("a", before.clone())]), Err(BenchError::Parameter { .. })));
    let mixed =
        bench::compare(&[name("a", before), name("b", model_report(1.0, 0.0))]).expect_err("two kinds");
    assert_eq!(mixed.to_string(), "`a` holds kernel rows, `b` model rows");
}
