//! What a mixture of experts reads: counted in what its steps record.

mod common;

use common::requests::{folder, prompt, step};
use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Engine, EngineOptions, Request, Sampling};
use wginfer::gpu::GpuOptions;

/// The model has eight experts in each of its layers, and a row takes two.
const MODEL: &str = "qwen3-moe";
const N_EXPERTS: usize = 8;
const N_CHOSEN: usize = 2;

/// For each product with experts' weights in a recording: groups of rows, quads of outputs, and rows of an expert's
/// weights.
fn expert_products(text: &str) -> Vec<[usize; 3]> {
    let lines: Vec<&str> = text.lines().collect();
    let products = lines.windows(2).filter(|pair| pair[0].contains(" ROUTED="));
    let counts = products.map(|pair| {
        assert!(pair[0].starts_with("linear"), "{}", pair[0]);
        let groups = pair[0].rsplit_once(" @ ").expect("groups").1.split(' ');
        let groups: Vec<usize> = groups.map(|n| n.parse().expect("a number")).collect();
        let weights = pair[1].split(", ").find(|name| name.contains(".experts.")).expect("weights");
        let rows = weights.rsplit("..").next().expect("rows").split(' ').next().expect("a number");
        [groups[0], groups[1] * groups[2], rows.parse::<usize>().expect("a number") / N_EXPERTS]
    });
    counts.collect()
}

/// A group of rows reads the weights of one expert once: a decode step has as many groups as it chooses experts, and a
/// prompt at most one for each expert beside the full ones.
#[test]
fn a_step_reads_only_the_experts_that_its_rows_choose() {
    // A workgroup of the portable variant computes one quad of outputs.
    let disable = "f16,subgroups,cooperative-matrices,tuning,software".into();
    let Some(gpu) = common::open(&GpuOptions { disable, ..GpuOptions::default() }) else { return };
    let files = ModelFiles::open(&folder(MODEL)).expect("a model");
    let n_layers = files.architecture.shape().n_layers();
    let options = EngineOptions { run_ahead: false, ..EngineOptions::default() };
    let mut engine = Engine::load(&gpu, files, options, &mut |_| {}).expect("engine");
    let request = |seed| Request {
        sampling: Sampling::greedy(),
        max_tokens: Some(5),
        stop_tokens: Some(vec![]),
        ..Request::new(prompt(seed, 130))
    };
    // What was never measured is recorded in pieces, so each step runs before it is looked at.
    engine.submit(request(4)).expect("submit");
    engine.run(|_| {}).expect("it runs");
    engine.trace(true);
    engine.submit(request(3)).expect("submit");
    let [prompt, decode] = [(); 2].map(|()| step(&gpu, &mut engine));

    let products = expert_products(&decode);
    assert_eq!(products.len(), 2 * n_layers, "gate and up, and down:\n{decode}");
    for [n_groups, n_quads, n_rows] in products {
        assert_eq!((n_groups, n_quads), (N_CHOSEN, n_rows.div_ceil(4)), "{decode}");
    }
    // Tiles of 64 rows.
    let products = expert_products(&prompt);
    assert_eq!(products.len(), 2 * n_layers, "{prompt}");
    for [n_tiles, n_groups, n_rows] in products {
        assert_eq!((n_tiles, n_groups), (n_rows.div_ceil(64), 130 * N_CHOSEN / 64 + N_EXPERTS), "{prompt}");
    }
    assert_eq!(
        prompt.matches("\ngroup @").count(),
        n_layers,
        "pairs are listed once for both products:\n{prompt}"
    );
}
