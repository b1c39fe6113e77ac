//! The keys of `config.json` that several families share.

use super::{Around, Rope, act};
use crate::models::settings::{EPSILON, HEAD_WIDTH, HEADS, INNER_WIDTH, LAYERS, ROWS, Read, Settings, WIDTH};
use crate::models::{ModelKind, ModelShape, Names, Shown};
use crate::ops::{Act, Attention};

/// The keys that Llama and its descendants share.
#[derive(Clone, Debug)]
pub struct DecoderKeys {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of attention.
    pub heads: Heads,
    /// Number of logits per row.
    pub vocab_size: usize,
    /// Longest sequence that the model supports.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Added to the weights of the norms: 0, or 1 in Gemma.
    pub norm_offset: f32,
    /// Activation function of the gate.
    pub hidden_act: Act,
    /// Whether the head shares the weights of the embedding, if the checkpoint stores nothing else.
    pub tie_word_embeddings: bool,
    /// Rotation.
    pub rope: Rope,
}

/// The defaults of [`DecoderKeys`], in which the families differ: those of transformers' config classes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecoderDefaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Default: one for each query head.
    pub num_key_value_heads: Option<usize>,
    /// Default: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    /// The key of the activation function, and its default.
    pub hidden_act: (&'static str, &'static str),
    pub tie_word_embeddings: bool,
    pub rope_theta: f64,
    /// Default: `max_position_embeddings`.
    pub original_max_position_embeddings: Option<usize>,
}

impl DecoderKeys {
    /// Reads the keys.
    pub(crate) fn read(s: &Settings<'_>, default: &DecoderDefaults) -> Read<Self> {
        let hidden_size = s.whole("hidden_size", WIDTH, default.hidden_size)?;
        let max_position_embeddings =
            s.whole("max_position_embeddings", ROWS, default.max_position_embeddings)?;
        let keys = HeadKeys {
            n_heads: ("num_attention_heads", default.num_attention_heads),
            n_kv_heads: Some(("num_key_value_heads", default.num_key_value_heads)),
            head_dim: Some(("head_dim", default.head_dim)),
        };
        let heads = Heads::read(s, keys, hidden_size)?;
        let around = Around {
            trained: max_position_embeddings,
            original: default.original_max_position_embeddings,
            theta: default.rope_theta,
            partial: 1.0,
        };
        Ok(DecoderKeys {
            hidden_size,
            intermediate_size: s.whole("intermediate_size", INNER_WIDTH, default.intermediate_size)?,
            num_hidden_layers: s.whole("num_hidden_layers", LAYERS, default.num_hidden_layers)?,
            vocab_size: s.whole("vocab_size", ROWS, default.vocab_size)?,
            rms_norm_eps: s.real("rms_norm_eps", EPSILON, default.rms_norm_eps)? as f32,
            norm_offset: 0.0,
            hidden_act: act(s, default.hidden_act.0, default.hidden_act.1)?,
            tie_word_embeddings: s.flag("tie_word_embeddings", default.tie_word_embeddings)?,
            rope: Rope::read(s, heads.head_dim, around)?,
            max_position_embeddings,
            heads,
        })
    }

    /// The model's shape. `window` gives the number of keys that a query of layer `i` sees; `None` is all.
    pub fn shape(&self, architecture: &'static str, window: impl Fn(usize) -> Option<usize>) -> ModelShape {
        ModelShape {
            architecture,
            kind: ModelKind::Decoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: (0..self.num_hidden_layers).map(|i| self.heads.attention(true, window(i))).collect(),
            intermediate_size: self.intermediate_size,
            has_gate: true,
            hidden_act: self.hidden_act,
            has_layer_norm: false,
            has_head_norm: false,
            ties_embeddings: self.tie_word_embeddings,
            experts: None,
            audio: None,
        }
    }

    /// The names of tensors by which a checkpoint shows these keys.
    pub(crate) fn names(&self) -> Names {
        let (hidden, inner) =
            (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size));
        Names {
            prefix: "model.",
            layers: vec![("layers.", "num_hidden_layers", self.num_hidden_layers)],
            shown: vec![
                Shown { tensor: "embed_tokens.weight", shape: [("vocab_size", self.vocab_size), hidden] },
                Shown { tensor: "layers.0.mlp.down_proj.weight", shape: [hidden, inner] },
            ],
        }
    }

    /// As [`DecoderKeys::names`], with a `router` whose rows show the key of the number of experts.
    pub(crate) fn names_with_router(&self, router: &'static str, n_experts: (&'static str, usize)) -> Names {
        let mut names = self.names();
        let shape = [n_experts, ("hidden_size", self.hidden_size)];
        names.shown.push(Shown { tensor: router, shape });
        names
    }
}

/// The heads of attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

/// The keys of heads, each with its default.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadKeys {
    pub n_heads: (&'static str, usize),
    /// Without a key, or a value: one for each query head.
    pub n_kv_heads: Option<(&'static str, Option<usize>)>,
    /// Without a key, or a value: the width divided by the number of heads.
    pub head_dim: Option<(&'static str, Option<usize>)>,
}

impl HeadKeys {
    /// Only a number of heads.
    pub fn only(key: &'static str, default: usize) -> HeadKeys {
        HeadKeys { n_heads: (key, default), n_kv_heads: None, head_dim: None }
    }
}

impl Heads {
    /// What kernels require of [`Heads::head_dim`].
    const FITS: &'static str = "a multiple of 4, at most 256";

    /// Reads the keys of heads over a residual stream of this `width`.
    pub(crate) fn read(s: &Settings<'_>, keys: HeadKeys, width: usize) -> Read<Heads> {
        let (n_heads_key, default) = keys.n_heads;
        let n_heads = s.whole(n_heads_key, HEADS, default)?;
        let some = |key: Option<(&'static str, Option<usize>)>, range| match key {
            Some((key, default)) => Ok(s.some_whole(key, range, default)?.map(|n| (key, n))),
            None => Ok(None),
        };
        // Where a class has a number as default, `null` is not another value.
        let head_dim = match keys.head_dim {
            Some((key, Some(default))) => Some((key, s.whole(key, HEAD_WIDTH, default)?)),
            other => some(other, HEAD_WIDTH)?,
        };
        let head_dim = match head_dim {
            Some((key, n)) if n % 4 != 0 => return Err(s.wrong_value(key, n, Self::FITS)),
            Some((_, n)) => n,
            None => {
                let n = width / n_heads;
                if !width.is_multiple_of(n_heads) || !n.is_multiple_of(4) || !HEAD_WIDTH.contains(&n) {
                    let expected =
                        format!("a divisor of the width {width}, with heads of {} elements", Self::FITS);
                    return Err(s.wrong_value(n_heads_key, n_heads, expected));
                }
                n
            }
        };
        let n_kv_heads = match some(keys.n_kv_heads, HEADS)? {
            Some((key, n)) if n_heads % n != 0 => {
                let expected = format!("a divisor of the {n_heads} attention heads");
                return Err(s.wrong_value(key, n, expected));
            }
            Some((_, n)) => n,
            None => n_heads,
        };
        Ok(Heads { n_heads, n_kv_heads, head_dim })
    }

    /// Attention of these heads, with the usual scale.
    pub fn attention(&self, causal: bool, window: Option<usize>) -> Attention {
        let Heads { n_heads, n_kv_heads, head_dim } = *self;
        let scale = (head_dim as f32).powf(-0.5);
        Attention { n_heads, n_kv_heads, head_dim, scale, causal, window, softcap: None }
    }
}

/// What the queries of a layer see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerType {
    /// All keys.
    Full,
    /// The keys of a window.
    Sliding,
}

impl LayerType {
    /// Reads `layer_types`, one name for each of `n_layers` layers. Default: each `every`-th layer sees all keys.
    pub(crate) fn read_every(s: &Settings<'_>, n_layers: usize, every: usize) -> Read<Vec<LayerType>> {
        let by_number =
            |i: usize| if (i + 1).is_multiple_of(every) { LayerType::Full } else { LayerType::Sliding };
        Ok(LayerType::read(s, n_layers)?.unwrap_or_else(|| (0..n_layers).map(by_number).collect()))
    }

    /// Reads `layer_types`: one name for each of `n_layers` layers, unless it is absent.
    pub(crate) fn read(s: &Settings<'_>, n_layers: usize) -> Read<Option<Vec<LayerType>>> {
        const KEY: &str = "layer_types";
        let known = [("full_attention", LayerType::Full), ("sliding_attention", LayerType::Sliding)];
        match s.list_of(KEY, &known)? {
            Some(types) if types.len() != n_layers => {
                let (found, expected) = (format!("a list of {}", types.len()), format!("one of {n_layers}"));
                Err(s.wrong_value(KEY, found, format!("{expected}, a name for each layer")))
            }
            types => Ok(types),
        }
    }
}
