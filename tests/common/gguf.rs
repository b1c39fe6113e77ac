//! A writer of GGUF files, and golden models as such files: what llama.cpp's converter makes of a folder.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use serde_json::Value;

/// A file to write.
#[derive(Clone, Default)]
pub struct Gguf {
    pub version: u32,
    pub alignment: usize,
    /// Keys with their types and bytes.
    keys: Vec<(String, Vec<u8>)>,
    /// Names, dimensions (innermost first), ggml's numbers of the types, bytes.
    pub tensors: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn typed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], bytes].concat()
}

impl Gguf {
    pub fn new() -> Gguf {
        Gguf { version: 3, alignment: 32, ..Gguf::default() }
    }

    /// Sets a key to a value of ggml's type `kind`, in place of one that is there.
    pub fn key(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.keys.retain(|(known, _)| known != key);
        self.again(key, kind, bytes);
    }

    /// As [`Gguf::key`], even if the key is there.
    pub fn again(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.keys.push((key.into(), typed(kind, bytes)));
    }

    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(known, _)| known != key);
    }

    pub fn whole(&mut self, key: &str, n: u64) {
        self.key(key, 4, &(n as u32).to_le_bytes());
    }

    pub fn real(&mut self, key: &str, x: f64) {
        self.key(key, 6, &(x as f32).to_le_bytes());
    }

    pub fn flag(&mut self, key: &str, is_on: bool) {
        self.key(key, 7, &[is_on.into()]);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8, &text(value));
    }

    pub fn texts<S: AsRef<str>>(&mut self, key: &str, values: &[S]) {
        let texts: Vec<u8> = values.iter().flat_map(|value| text(value.as_ref())).collect();
        self.list(key, 8, values.len(), &texts);
    }

    pub fn list(&mut self, key: &str, kind: u32, n: usize, bytes: &[u8]) {
        self.key(key, 9, &[&kind.to_le_bytes()[..], &(n as u64).to_le_bytes(), bytes].concat());
    }

    pub fn tensor(&mut self, name: &str, dims: &[usize], kind: u32, bytes: Vec<u8>) {
        self.tensors.push((name.into(), dims.to_vec(), kind, bytes));
    }

    /// The file, whose tensors are at these offsets, or one after the other.
    pub fn bytes_at(&self, offsets: Option<&[u64]>) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        let mut data: Vec<u8> = Vec::new();
        for (i, (name, dims, kind, content)) in self.tensors.iter().enumerate() {
            bytes.extend(text(name));
            bytes.extend((dims.len() as u32).to_le_bytes());
            bytes.extend(dims.iter().flat_map(|n| (*n as u64).to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offsets.map_or(data.len() as u64, |all| all[i]).to_le_bytes());
            data.extend(content);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend(data);
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_at(None)
    }
}

/// Keys of all decoders but GPT-2, and the config's.
const DECODER: [(&str, &str); 5] = [
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
];

/// A golden folder as llama.cpp's converter writes it, with the stored types. `llama` has the rows of queries and keys
/// in another order, experts are stacked, `gpt2` its matrices the other way round. Encoders lose their heads, and RoBERTa the positions before
/// its first.
pub fn of_folder(dir: &Path) -> Gguf {
    let read = |name: &str| std::fs::read(dir.join(name)).expect(name);
    let config: Value = serde_json::from_slice(&read("config.json")).expect("JSON");
    let tokenizer: Value = serde_json::from_slice(&read("tokenizer.json")).expect("JSON");
    let model_type = config["model_type"].as_str().expect("a name");
    let architecture = match model_type {
        "distilbert" | "roberta" | "xlm-roberta" => "bert",
        "modernbert" => "modern-bert",
        "gpt_neox" => "gptneox",
        "gpt_oss" => "gpt-oss",
        "ministral3" => "mistral3",
        "mixtral" => "llama",
        "qwen3_moe" => "qwen3moe",
        "gemma3_text" if config["use_bidirectional_attention"] == true => "gemma-embedding",
        "gemma3_text" => "gemma3",
        other => other,
    };
    let is_gpt2 = architecture == "gpt2";
    let mut file = Gguf::new();
    file.text("general.architecture", architecture);
    let n = |key: &str| config[key].as_u64().unwrap_or_else(|| panic!("{key}"));
    let arch = |key: &str| format!("{architecture}.{key}");
    let lost_positions = if model_type.ends_with("roberta") { n("pad_token_id") as usize + 1 } else { 0 };
    let is_encoder = architecture.contains("bert");
    if is_encoder {
        let any = |keys: [&str; 2]| keys.iter().find_map(|key| config[*key].as_u64()).expect("a number");
        for (key, from) in [
            ("embedding_length", ["hidden_size", "dim"]),
            ("feed_forward_length", ["intermediate_size", "hidden_dim"]),
            ("block_count", ["num_hidden_layers", "n_layers"]),
            ("attention.head_count", ["num_attention_heads", "n_heads"]),
        ] {
            file.whole(&arch(key), any(from));
        }
        file.whole(&arch("context_length"), n("max_position_embeddings") - lost_positions as u64);
        let epsilon = ["layer_norm_eps", "norm_eps"].iter().find_map(|key| config[*key].as_f64());
        file.real(&arch("attention.layer_norm_epsilon"), epsilon.unwrap_or(1e-12));
        file.flag(&arch("attention.causal"), false);
        if model_type == "modernbert" {
            file.whole(&arch("attention.sliding_window"), n("local_attention"));
            file.whole(&arch("attention.sliding_window_pattern"), n("global_attn_every_n_layers"));
            for (key, layers) in [("freq_base", "full_attention"), ("freq_base_swa", "sliding_attention")] {
                let theta = config["rope_parameters"][layers]["rope_theta"].as_f64().expect("a number");
                file.real(&arch(&format!("rope.{key}")), theta);
            }
        }
    } else if is_gpt2 {
        for (key, from) in [
            ("context_length", "n_positions"),
            ("embedding_length", "n_embd"),
            ("block_count", "n_layer"),
            ("attention.head_count", "n_head"),
        ] {
            file.whole(&arch(key), n(from));
        }
        file.whole(&arch("feed_forward_length"), 4 * n("n_embd"));
        file.real(
            &arch("attention.layer_norm_epsilon"),
            config["layer_norm_epsilon"].as_f64().expect("a number"),
        );
    } else if model_type == "gpt_neox" {
        for (key, from) in DECODER {
            file.whole(&arch(key), n(from));
        }
        let rotated = config["rope_parameters"]["partial_rotary_factor"].as_f64();
        let rotated = rotated.or(config["rotary_pct"].as_f64()).expect("a number");
        let head_dim = n("hidden_size") / n("num_attention_heads");
        file.whole(&arch("rope.dimension_count"), (rotated * head_dim as f64) as u64);
        file.real(
            &arch("attention.layer_norm_epsilon"),
            config["layer_norm_eps"].as_f64().expect("a number"),
        );
        file.flag(&arch("use_parallel_residual"), config["use_parallel_residual"].as_bool().expect("a flag"));
    } else {
        for (key, from) in DECODER {
            file.whole(&arch(key), n(from));
        }
        file.whole(&arch("attention.head_count_kv"), n("num_key_value_heads"));
        if model_type == "granite" {
            for (key, from) in [
                ("attention.scale", "attention_multiplier"),
                ("embedding_scale", "embedding_multiplier"),
                ("residual_scale", "residual_multiplier"),
                ("logit_scale", "logits_scaling"),
            ] {
                file.real(&arch(key), config[from].as_f64().expect("a number"));
            }
        }
        if model_type == "phi3" {
            phi3(&mut file, &config);
        }
        if let Some(dim) = config["head_dim"].as_u64() {
            file.whole(&arch("attention.key_length"), dim);
            file.whole(&arch("attention.value_length"), dim);
            file.whole(&arch("rope.dimension_count"), dim);
        }
        file.real(
            &arch("attention.layer_norm_rms_epsilon"),
            config["rms_norm_eps"].as_f64().expect("a number"),
        );
        // Gemma 3 has one for each type of layer.
        let ropes = &config["rope_parameters"];
        let rope = if ropes["full_attention"].is_object() { &ropes["full_attention"] } else { ropes };
        if let Some(theta) = ropes["sliding_attention"]["rope_theta"].as_f64() {
            file.real(&arch("rope.freq_base_swa"), theta);
        }
        if rope["rope_type"] == "yarn" {
            let real = |key: &str| rope[key].as_f64().expect("a number");
            file.text(&arch("rope.scaling.type"), "yarn");
            let original = rope["original_max_position_embeddings"].as_u64().expect("a number");
            file.whole(&arch("rope.scaling.original_context_length"), original);
            for (key, from) in [
                ("rope.scaling.factor", "factor"),
                ("rope.scaling.yarn_beta_fast", "beta_fast"),
                ("rope.scaling.yarn_beta_slow", "beta_slow"),
                ("rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
                ("attention.temperature_scale", "llama_4_scaling_beta"),
            ] {
                file.real(&arch(key), real(from));
            }
        }
        if architecture.starts_with("gemma") {
            file.whole(&arch("attention.sliding_window"), n("sliding_window"));
            for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
                if let Some(cap) = config[key].as_f64() {
                    file.real(&arch(key), cap);
                }
            }
        }
        let theta = rope["rope_theta"].as_f64().or(config["rope_theta"].as_f64()).expect("a number");
        file.real(&arch("rope.freq_base"), theta);
        if let Some(n_experts) = config["num_local_experts"].as_u64() {
            file.whole(&arch("expert_count"), n_experts);
            file.whole(&arch("expert_used_count"), n("num_experts_per_tok"));
        }
        if model_type == "gpt_oss" {
            file.whole(&arch("expert_feed_forward_length"), n("intermediate_size"));
            file.whole(&arch("attention.sliding_window"), n("sliding_window"));
            let scaling = &config["rope_scaling"];
            file.text(&arch("rope.scaling.type"), "yarn");
            file.real(&arch("rope.scaling.factor"), scaling["factor"].as_f64().expect("a number"));
            let original = scaling["original_max_position_embeddings"].as_u64().expect("a number");
            file.whole(&arch("rope.scaling.original_context_length"), original);
            for (key, from) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                file.real(&arch(&format!("rope.scaling.{key}")), scaling[from].as_f64().expect("a number"));
            }
        }
        if let Some(width) = config["moe_intermediate_size"].as_u64() {
            file.whole(&arch("expert_feed_forward_length"), width);
        }
        if rope["rope_type"] == "llama3" {
            let dim = n("head_dim") as usize;
            let factors: Vec<u8> = llama3_factors(rope, dim).iter().flat_map(|x| x.to_le_bytes()).collect();
            file.tensor("rope_freqs.weight", &[dim / 2], 0, factors);
        }
    }
    vocabulary(&mut file, &config, &tokenizer);

    let bytes = read("model.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut experts: BTreeMap<String, BTreeMap<usize, Vec<u8>>> = BTreeMap::new();
    for (name, tensor) in tensors.iter() {
        let (shape, mut data) = (tensor.shape().to_vec(), tensor.data().to_vec());
        let (mut kind, size) = match tensor.dtype() {
            safetensors::Dtype::F32 => (0, 4),
            safetensors::Dtype::F16 => (1, 2),
            safetensors::Dtype::BF16 => (30, 2),
            safetensors::Dtype::U8 => (39, 1),
            other => panic!("{other:?}"),
        };
        if is_encoder && ["classifier", "head.", "pooler."].iter().any(|part| name.contains(part)) {
            continue;
        }
        let prefixes = [
            "model.",
            "gpt_neox.",
            "transformer.",
            "bert.",
            "roberta.",
            "distilbert.transformer.",
            "distilbert.",
        ];
        let prefix = prefixes.iter().find(|prefix| name.starts_with(**prefix)).copied().unwrap_or_default();
        let has_norms_after =
            architecture.starts_with("gemma") || ["olmo2", "gpt-oss"].contains(&architecture);
        let stem = match name.strip_suffix("post_attention_layernorm.weight") {
            Some(_) if has_norms_after => {
                ggml_name(&name[prefix.len()..].replace("post_attention_layernorm", "post_attention_norm"))
            }
            _ => ggml_name(&name[prefix.len()..]),
        };
        let mut dims: Vec<usize> = shape.iter().rev().copied().collect();
        if let Some((before, part)) = stem.split_once(".experts.").filter(|_| model_type == "gpt_oss") {
            let scales = name.replace("_blocks", "_scales");
            let scales = tensors.tensor(&scales).ok().filter(|_| part.ends_with("_blocks"));
            of_gpt_oss(
                &mut file,
                before,
                part,
                &shape,
                (kind, size, &data),
                scales.as_ref().map(|t| t.data()),
            );
            continue;
        }
        if let Some((before, rest)) = stem.split_once(".experts.") {
            // One tensor for all experts of a layer.
            let (e, part) = rest.split_once('.').expect("an expert");
            let part = ["gate_proj", "down_proj", "up_proj", "w1", "w2", "w3"]
                .iter()
                .position(|own| part.starts_with(own))
                .expect("a matrix of an expert");
            let name = format!("{before}.ffn_{}_exps.weight", ["gate", "down", "up"][part % 3]);
            let own = experts.entry(name.clone()).or_default();
            own.insert(e.parse().expect("a number"), data);
            if own.len() == n("num_local_experts") as usize {
                dims.push(own.len());
                file.tensor(&name, &dims, kind, own.values().flatten().copied().collect());
            }
            continue;
        }
        if architecture.starts_with("gemma") && name.ends_with("norm.weight") {
            // Stored plus one, in F32.
            let values = numbers(kind, &data).into_iter().map(|x| x + 1.0);
            (kind, data) = (0, values.flat_map(f32::to_le_bytes).collect());
        }
        if stem == "position_embd.weight" && lost_positions > 0 {
            data.drain(..lost_positions * dims[0] * size);
            dims[1] -= lost_positions;
        }
        if ["granite", "llama", "mistral3", "smollm3"].contains(&architecture)
            && [".attn_q.", ".attn_k."].iter().any(|part| stem.contains(part))
        {
            let heads = if stem.contains("attn_q") { "num_attention_heads" } else { "num_key_value_heads" };
            data = alternating(&data, shape[0], n(heads) as usize);
        }
        if stem.contains("attn_qkv") && architecture == "gptneox" {
            data = parts_of_heads(&data, shape[0], n("num_attention_heads") as usize);
        }
        let turned = ["attn_qkv", "attn_output", "ffn_up", "ffn_down"];
        if is_gpt2 && shape.len() == 2 && turned.iter().any(|part| stem.contains(part)) {
            data = transposed(&data, &shape, size);
            dims.reverse();
        }
        file.tensor(&stem, &dims, kind, data);
    }
    file
}

/// The experts of gpt-oss, whose gate and up alternate and whose matrices have inputs above outputs, or are blocks of
/// MXFP4 beside their scales. Scales come with their blocks.
fn of_gpt_oss(
    file: &mut Gguf,
    before: &str,
    part: &str,
    shape: &[usize],
    (kind, size, data): (u32, usize, &[u8]),
    scales: Option<&[u8]>,
) {
    let halves: &[&str] = if part.starts_with("gate_up") { &["gate", "up"] } else { &["down"] };
    let n_experts = shape[0];
    let own = |e: usize| &data[e * (data.len() / n_experts)..][..data.len() / n_experts];
    // For each expert its rows, one for each output.
    let (n_in, rows): (usize, Vec<Vec<Vec<u8>>>) = match part.rsplit('_').next().expect("a name") {
        "bias" => (1, (0..n_experts).map(|e| own(e).chunks(size).map(<[u8]>::to_vec).collect()).collect()),
        "scales" => return,
        "blocks" => {
            let (scales, n_blocks) = (scales.expect("scales"), shape[2]);
            let row = |r: usize| -> Vec<u8> {
                let block = |b: usize| {
                    let nibbles = &data[(r * n_blocks + b) * 16..][..16];
                    let of = |i: usize| nibbles[i / 2] >> (i % 2 * 4) & 15;
                    let packed = (0..16).map(move |i| of(i) | of(16 + i) << 4);
                    [vec![scales[r * n_blocks + b]], packed.collect::<Vec<u8>>()].concat()
                };
                (0..n_blocks).flat_map(block).collect()
            };
            let rows = |e: usize| (e * shape[1]..(e + 1) * shape[1]).map(row).collect();
            (32 * n_blocks, (0..n_experts).map(rows).collect())
        }
        _ => {
            let (n_in, n_out) = (shape[1], shape[2]);
            let turned = |e: usize| transposed(own(e), &[n_in, n_out], size);
            let rows = |e: usize| turned(e).chunks(n_in * size).map(<[u8]>::to_vec).collect();
            (n_in, (0..n_experts).map(rows).collect())
        }
    };
    for (i, half) in halves.iter().enumerate() {
        let of = |rows: &Vec<Vec<u8>>| rows.iter().skip(i).step_by(halves.len()).flatten().copied().collect();
        let data: Vec<u8> = rows.iter().flat_map(|rows| -> Vec<u8> { of(rows) }).collect();
        let n_out = rows[0].len() / halves.len();
        match part.ends_with("bias") {
            true => file.tensor(&format!("{before}.ffn_{half}_exps.bias"), &[n_out, n_experts], kind, data),
            false => {
                let dims = [n_in, n_out, n_experts];
                file.tensor(&format!("{before}.ffn_{half}_exps.weight"), &dims, kind, data);
            }
        }
    }
}

/// The names of tensors without the model's prefix, and ggml's.
fn ggml_name(name: &str) -> String {
    // The first that a name contains counts.
    const NAMES: &[(&str, &str)] = &[
        ("block_sparse_moe.experts.", "experts."),
        ("mlp.experts.", "experts."),
        ("block_sparse_moe.gate.", "ffn_gate_inp."),
        ("mlp.gate.", "ffn_gate_inp."),
        ("mlp.router.", "ffn_gate_inp."),
        ("self_attn.sinks", "attn_sinks.weight"),
        ("embed_tokens.", "token_embd."),
        ("wte.", "token_embd."),
        ("embeddings.word_embeddings.", "token_embd."),
        ("embeddings.tok_embeddings.", "token_embd."),
        ("wpe.", "position_embd."),
        ("embeddings.position_embeddings.", "position_embd."),
        ("embeddings.token_type_embeddings.", "token_types."),
        ("embeddings.LayerNorm.", "token_embd_norm."),
        ("embeddings.norm.", "token_embd_norm."),
        ("embed_in.", "token_embd."),
        ("lm_head.", "output."),
        ("embed_out.", "output."),
        ("final_layer_norm.", "output_norm."),
        ("attention.query_key_value.", "attn_qkv."),
        ("attention.dense.", "attn_output."),
        ("mlp.dense_h_to_4h.", "ffn_up."),
        ("mlp.dense_4h_to_h.", "ffn_down."),
        ("ln_f.", "output_norm."),
        ("final_norm.", "output_norm."),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_norm.", "post_attention_norm."),
        ("pre_feedforward_layernorm.", "ffn_norm."),
        ("post_feedforward_layernorm.", "post_ffw_norm."),
        ("ln_1.", "attn_norm."),
        ("attn_norm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("ln_2.", "ffn_norm."),
        ("mlp_norm.", "ffn_norm."),
        ("attention.output.LayerNorm.", "attn_output_norm."),
        ("sa_layer_norm.", "attn_output_norm."),
        ("output.LayerNorm.", "layer_output_norm."),
        ("output_layer_norm.", "layer_output_norm."),
        ("self_attn.q_proj.", "attn_q."),
        ("attention.self.query.", "attn_q."),
        ("attention.q_lin.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("attention.self.key.", "attn_k."),
        ("attention.k_lin.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("attention.self.value.", "attn_v."),
        ("attention.v_lin.", "attn_v."),
        ("self_attn.o_proj.", "attn_output."),
        ("attention.output.dense.", "attn_output."),
        ("attention.out_lin.", "attn_output."),
        ("attn.Wo.", "attn_output."),
        ("self_attn.q_norm.", "attn_q_norm."),
        ("self_attn.k_norm.", "attn_k_norm."),
        ("attn.c_attn.", "attn_qkv."),
        ("self_attn.qkv_proj.", "attn_qkv."),
        ("mlp.gate_up_proj.", "ffn_up."),
        ("attn.Wqkv.", "attn_qkv."),
        ("attn.c_proj.", "attn_output."),
        ("mlp.c_fc.", "ffn_up."),
        ("mlp.Wi.", "ffn_up."),
        ("ffn.lin1.", "ffn_up."),
        ("intermediate.dense.", "ffn_up."),
        ("mlp.c_proj.", "ffn_down."),
        ("mlp.Wo.", "ffn_down."),
        ("ffn.lin2.", "ffn_down."),
        ("output.dense.", "ffn_down."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
    ];
    if let Some(suffix) = name.strip_prefix("norm.") {
        return format!("output_norm.{suffix}");
    }
    let before = ["layers.", "h.", "encoder.layer.", "layer."];
    let layer = before.iter().find_map(|before| name.strip_prefix(before));
    let name = layer.map_or(name.to_string(), |layer| format!("blk.{layer}"));
    let (from, to) = NAMES.iter().find(|(from, _)| name.contains(from)).unwrap_or_else(|| panic!("{name}"));
    name.replacen(from, to, 1)
}

/// The keys and tensors that Phi-3 has of its own.
fn phi3(file: &mut Gguf, config: &Value) {
    let n = |key: &str| config[key].as_u64().unwrap_or_else(|| panic!("{key}"));
    let scaling = [&config["rope_parameters"], &config["rope_scaling"]].into_iter().find(|s| s.is_object());
    let partial = |of: &Value| of["partial_rotary_factor"].as_f64();
    let partial = partial(config).or(scaling.and_then(partial)).unwrap_or(1.0);
    let original = n("original_max_position_embeddings");
    file.whole(
        "phi3.rope.dimension_count",
        (partial * n("hidden_size") as f64) as u64 / n("num_attention_heads"),
    );
    file.whole("phi3.rope.scaling.original_context_length", original);
    file.whole("phi3.attention.sliding_window", config["sliding_window"].as_u64().unwrap_or(0));
    let Some(scaling) = scaling.filter(|scaling| scaling["long_factor"].is_array()) else { return };
    let longer = n("max_position_embeddings") as f64 / original as f64;
    file.real("phi3.rope.scaling.attn_factor", (1.0 + longer.ln() / (original as f64).ln()).sqrt());
    for (name, key) in [("rope_factors_long", "long_factor"), ("rope_factors_short", "short_factor")] {
        let factors: Vec<f32> = serde_json::from_value(scaling[key].clone()).expect("numbers");
        file.tensor(&format!("{name}.weight"), &[factors.len()], 0, encoded(0, &factors));
    }
}

/// The numbers of a tensor of ggml's type 0, 1 or 30.
fn numbers(kind: u32, data: &[u8]) -> Vec<f32> {
    match kind {
        0 => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect(),
        1 => data.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => data.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// The rows of each head in the order 0, n/2, 1, n/2 + 1, …
fn alternating(data: &[u8], n_rows: usize, n_heads: usize) -> Vec<u8> {
    let (row, dim) = (data.len() / n_rows, n_rows / n_heads);
    let order = (0..n_heads).flat_map(|h| (0..dim).map(move |i| h * dim + i % 2 * (dim / 2) + i / 2));
    order.flat_map(|from| data[from * row..][..row].to_vec()).collect()
}

/// The rows of all queries, then of all keys, then of all values, where each head has its own together.
fn parts_of_heads(data: &[u8], n_rows: usize, n_heads: usize) -> Vec<u8> {
    let part = data.len() / n_rows * (n_rows / n_heads / 3);
    let order = (0..3).flat_map(|p| (0..n_heads).map(move |h| 3 * h + p));
    order.flat_map(|at| data[at * part..][..part].to_vec()).collect()
}

fn transposed(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let (rows, cols) = (shape[0], shape[1]);
    let places = (0..cols).flat_map(|c| (0..rows).map(move |r| r * cols + c));
    places.flat_map(|at| data[at * size..][..size].to_vec()).collect()
}

/// By how much Llama 3.1 divides each frequency (transformers' `_compute_llama3_parameters`), rounded to F32.
fn llama3_factors(rope: &Value, dim: usize) -> Vec<f32> {
    let key = |key: &str| rope[key].as_f64().expect("a number");
    let (factor, low, high) = (key("factor"), key("low_freq_factor"), key("high_freq_factor"));
    let original = key("original_max_position_embeddings");
    let one = |i: usize| {
        let wavelength = std::f64::consts::TAU * key("rope_theta").powf(2.0 * i as f64 / dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..dim / 2).map(|i| one(i) as f32).collect()
}

/// The byte-level vocabulary of `tokenizer.json`.
fn vocabulary(file: &mut Gguf, config: &Value, tokenizer: &Value) {
    let n = config["vocab_size"].as_u64().expect("a number") as usize;
    let mut tokens: Vec<String> = (0..n).map(|i| format!("[PAD{i}]")).collect();
    let mut types = vec![5i32; n];
    for (token, id) in tokenizer["model"]["vocab"].as_object().expect("tokens") {
        let id = id.as_u64().expect("an id") as usize;
        (tokens[id], types[id]) = (token.clone(), 1);
    }
    for token in tokenizer["added_tokens"].as_array().expect("tokens") {
        let id = token["id"].as_u64().expect("an id") as usize;
        (tokens[id], types[id]) = (token["content"].as_str().expect("a text").into(), 3);
    }
    let merge = |merge: &Value| match merge {
        Value::String(merge) => merge.clone(),
        pair => format!("{} {}", pair[0].as_str().expect("a token"), pair[1].as_str().expect("a token")),
    };
    let merges: Vec<String> =
        tokenizer["model"]["merges"].as_array().expect("merges").iter().map(merge).collect();
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "gpt-2");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.list(
        "tokenizer.ggml.token_type",
        5,
        n,
        &types.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<_>>(),
    );
    file.texts("tokenizer.ggml.merges", &merges);
    for key in ["bos_token_id", "eos_token_id"] {
        if let Some(id) = config[key].as_u64() {
            file.whole(&format!("tokenizer.ggml.{key}"), id);
        }
    }
    file.flag("tokenizer.ggml.add_bos_token", false);
}

/// Values in ggml's type `kind`: F32, F16 or BF16.
pub fn encoded(kind: u32, values: &[f32]) -> Vec<u8> {
    match kind {
        1 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        30 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// `tests/golden/gguf/tokenizers.json`, which `tests/gguf_ids.py` wrote.
pub fn vocabularies() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/tokenizers.json");
    serde_json::from_slice(&std::fs::read(path).expect("the vocabularies")).expect("JSON")
}

/// The metadata of one of its `cases`.
pub fn vocabulary_of(golden: &Value, case: &Value) -> Gguf {
    let mut file = Gguf::new();
    let vocabulary = &golden["vocabularies"][case["vocabulary"].as_u64().expect("a place") as usize];
    for (key, value) in vocabulary.as_object().expect("lists") {
        let key = format!("tokenizer.ggml.{key}");
        let list = |kind: u32, bytes: fn(f64) -> Vec<u8>, file: &mut Gguf| {
            let numbers: Vec<f64> = serde_json::from_value(value.clone()).expect("numbers");
            let n = numbers.len();
            file.list(&key, kind, n, &numbers.into_iter().flat_map(bytes).collect::<Vec<u8>>());
        };
        match key.rsplit('.').next().expect("a key") {
            "tokens" | "merges" => {
                file.texts(&key, &serde_json::from_value::<Vec<String>>(value.clone()).expect("texts"));
            }
            "scores" => list(6, |x| (x as f32).to_le_bytes().to_vec(), &mut file),
            "precompiled_charsmap" => list(0, |x| vec![x as u8], &mut file),
            _ => list(5, |x| (x as i32).to_le_bytes().to_vec(), &mut file),
        }
    }
    for (key, value) in case["keys"].as_object().expect("keys") {
        let key = format!("tokenizer.ggml.{key}");
        match value {
            Value::String(text) => file.text(&key, text),
            Value::Bool(is_on) => file.flag(&key, *is_on),
            other => file.whole(&key, other.as_u64().expect("a number")),
        }
    }
    file
}
