//! Named model shapes: configs without weights.

use std::path::Path;

use serde_json::{Map, Value};

use super::BenchError;
use crate::checkpoint::{self, ModelFiles};
use crate::dtype::Dtype;
use crate::models::{self, ModelKind, ModelShape};

macro_rules! shapes {
    ($($name:literal),* $(,)?) => {
        /// The named shapes, each with its `config.json`.
        pub const SHAPES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../assets/shapes/", $name, ".json")))),*];
    };
}

shapes!(
    "llama-15m",
    "smollm2-135m",
    "gpt2",
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "llama-3.2-1b",
    "qwen3-4b",
    "smollm3-3b",
    "ministral-3-3b",
    "phi-4-mini",
    "gemma-3-4b",
    "llama-3.1-8b",
    "qwen3-30b-a3b",
    "gpt-oss-20b",
    "whisper-tiny",
    "whisper-base",
    "whisper-small",
    "whisper-medium",
    "whisper-large-v3",
    "whisper-large-v3-turbo",
);

/// A model without weights.
#[derive(Clone, Debug)]
pub struct Shape {
    /// One of [`SHAPES`], or the file it came from.
    pub name: String,
    /// Its `config.json`.
    pub config_json: String,
    /// The model's shape.
    pub model: ModelShape,
}

impl Shape {
    /// The shape of that name, or of the `config.json` at that path (a file, or a folder with one).
    ///
    /// # Errors
    /// [`BenchError::UnknownShape`], [`BenchError::Checkpoint`], [`BenchError::Model`].
    pub fn open(name: &str) -> Result<Shape, BenchError> {
        let known = SHAPES.iter().find(|(known, _)| *known == name);
        let (name, config_json) = match known {
            Some((name, config)) => (name.to_string(), config.to_string()),
            None => {
                let path = Path::new(name);
                if !path.exists() {
                    let known: Vec<String> = SHAPES.iter().map(|(name, _)| format!("`{name}`")).collect();
                    return Err(BenchError::UnknownShape { found: name.into(), known: known.join(", ") });
                }
                (name.to_string(), checkpoint::read_config(path)?)
            }
        };
        let shape = Shape::of_config(&name, &config_json)?;
        ModelFiles::random(&name, &config_json, Dtype::F32)?.expect(ModelKind::Decoder)?;
        Ok(shape)
    }

    /// The shape with only its first `n` layers, for devices that have no memory for all.
    ///
    /// # Errors
    /// [`BenchError::Model`] if the model cannot have as many.
    pub fn with_layers(&self, n: usize) -> Result<Shape, BenchError> {
        let mut config: Map<String, Value> =
            serde_json::from_str(&self.config_json).expect("a config that was read before");
        let key = ["n_layer", "decoder_layers"].into_iter().find(|key| config.contains_key(*key));
        config.insert(key.unwrap_or("num_hidden_layers").into(), n.into());
        if let Some(Value::Array(types)) = config.get_mut("layer_types") {
            types.truncate(n);
        }
        Shape::of_config(&format!("{}, {n} layers", self.name), &Value::Object(config).to_string())
    }
}

impl Shape {
    /// The shape of a model with this `config.json`.
    pub(super) fn of_config(name: &str, config_json: &str) -> Result<Shape, BenchError> {
        let architecture =
            models::open(config_json).map_err(|source| BenchError::Model { name: name.into(), source })?;
        Ok(Shape { name: name.into(), config_json: config_json.into(), model: architecture.shape() })
    }
}

/// A product of a model: its name, outputs and inputs.
pub(super) type Matrix = (&'static str, usize, usize);

/// The matrices of one layer, but experts and their router.
pub(super) fn layer_matrices(model: &ModelShape, layer: usize) -> Vec<Matrix> {
    let Some(a) = model.attention.get(layer) else { return Vec::new() };
    let (n_q, n_kv) = (a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim);
    let (hidden, inner) = (model.hidden_size, model.intermediate_size);
    let mut all = vec![("qkv", n_q + 2 * n_kv, hidden), ("out", hidden, n_q)];
    if model.experts_of(layer).is_none() {
        let up = if model.has_gate { ("gate_up", 2 * inner, hidden) } else { ("up", inner, hidden) };
        all.extend([up, ("down", hidden, inner)]);
    }
    if model.audio.is_some() {
        all.extend([("cross q", n_q, hidden), ("cross out", hidden, n_q)]);
    }
    all
}

/// Elements of all matrices that multiply a clip's rows: the encoder's, and those for the decoder's cross-attention
/// keys and values.
pub(super) fn n_encoder(model: &ModelShape) -> f64 {
    let Some(audio) = &model.audio else { return 0.0 };
    let hidden = model.hidden_size;
    // Two frames give one row.
    let convolutions = 2 * 3 * audio.n_mels * hidden + 3 * hidden * hidden;
    let layer = 4 * hidden * hidden + 2 * hidden * audio.intermediate_size;
    let cross = model.n_layers() * 2 * hidden * hidden;
    (convolutions + audio.attention.len() * layer + cross) as f64
}

/// The product that gives the logits.
pub(super) fn head(model: &ModelShape) -> Matrix {
    ("head", model.vocab_size, model.hidden_size)
}

/// Elements of one expert of each layer that has any.
pub(super) fn n_expert(model: &ModelShape) -> f64 {
    let experts = (0..model.n_layers()).filter_map(|i| model.experts_of(i));
    experts.map(|experts| 3.0 * model.hidden_size as f64 * experts.intermediate_size as f64).sum()
}

/// Experts of a layer that `n_rows` rows take together, if each chooses at random: so many are read.
pub(super) fn n_taken(model: &ModelShape, n_rows: f64) -> f64 {
    let Some(experts) = &model.experts else { return 0.0 };
    let (n, k) = (experts.n_experts as f64, experts.n_chosen as f64);
    n * (1.0 - (1.0 - k / n).powf(n_rows))
}

/// Elements of all parameters but norms, biases and the embedding of positions.
pub(super) fn n_params(model: &ModelShape) -> f64 {
    let [layers, head] = n_multiplied(model);
    let embedding = if model.ties_embeddings { 0.0 } else { head };
    let n_experts = model.experts.as_ref().map_or(0, |experts| experts.n_experts) as f64;
    n_encoder(model) + layers + head + embedding + n_experts * n_expert(model)
}

/// Elements of all matrices that multiply every row: those of the layers but for experts, and the head.
pub(super) fn n_multiplied(model: &ModelShape) -> [f64; 2] {
    let elements = |(_, n_out, n_in): Matrix| n_out as f64 * n_in as f64;
    let layers: f64 = (0..model.n_layers()).flat_map(|i| layer_matrices(model, i)).map(elements).sum();
    let routers = (0..model.n_layers()).filter_map(|i| model.experts_of(i));
    let routers: f64 = routers.map(|experts| (experts.n_experts * model.hidden_size) as f64).sum();
    [layers + routers, elements(head(model))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_shapes_have_the_size_that_their_name_says() {
        let language = [
            15e6, 135e6, 124e6, 494e6, 596e6, 1236e6, 4022e6, 3075e6, 3429e6, 3836e6, 3880e6, 8030e6,
            30.53e9, 20.91e9,
        ];
        let speech = [37.8e6, 72.6e6, 242e6, 764e6, 1543e6, 809e6];
        let expected: Vec<f64> = language.into_iter().chain(speech).collect();
        assert_eq!(SHAPES.len(), expected.len());
        for ((name, _), expected) in SHAPES.iter().zip(expected) {
            let model = Shape::open(name).expect(name).model;
            let n = n_params(&model);
            assert!((n / expected - 1.0).abs() < 0.03, "{name}: {n} parameters");
        }
    }

    #[test]
    fn a_shape_has_fewer_layers() {
        for (name, _) in SHAPES {
            let shape = Shape::open(name).expect(name);
            let few = shape.with_layers(2).expect(name);
            assert_eq!((few.model.n_layers(), few.name), (2, format!("{name}, 2 layers")));
            assert_eq!(few.model.attention[..], shape.model.attention[..2], "{name}");
        }
        let error = Shape::open("gpt2").expect("a shape").with_layers(0).expect_err("no layers").to_string();
        assert!(error.contains("`n_layer` is `0`"), "{error}");
    }
}
