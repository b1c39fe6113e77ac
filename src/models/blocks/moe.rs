//! A mixture of experts instead of an MLP.

use std::ops::RangeInclusive;

use super::{Linear, Mlp, Target, normed};
use crate::gpu::{Recorder, Tensor};
use crate::models::settings::{Read, Settings};
use crate::models::{Activations, ExpertNames, ExpertsShape, Loader, ModelError};
use crate::ops::{self, Act, ExpertInput, ExpertProduct, MOST_CHOSEN, MOST_EXPERTS, RmsNorm, Rows, Scoring};

/// Numbers of experts of a layer.
const EXPERTS: RangeInclusive<usize> = 1..=MOST_EXPERTS;

/// Reads the number of experts, whose key and default are `n_experts`, and that of those that a row takes.
pub(crate) fn read_experts(
    s: &Settings<'_>,
    n_experts: (&str, usize),
    default_chosen: usize,
    intermediate_size: usize,
    layers: Vec<bool>,
) -> Read<ExpertsShape> {
    let n_experts = s.whole(n_experts.0, EXPERTS, n_experts.1)?;
    let (most, default) = (n_experts.min(MOST_CHOSEN), default_chosen.min(n_experts));
    let n_chosen = s.whole("num_experts_per_tok", 1..=most, default)?;
    Ok(ExpertsShape { n_experts, n_chosen, intermediate_size, layers })
}

/// The second half of a layer.
#[derive(Debug)]
pub enum FeedForward {
    /// An MLP.
    Dense(Mlp),
    /// A mixture of experts.
    Sparse(Moe),
}

impl From<Mlp> for FeedForward {
    fn from(mlp: Mlp) -> Self {
        FeedForward::Dense(mlp)
    }
}

impl From<Moe> for FeedForward {
    fn from(moe: Moe) -> Self {
        FeedForward::Sparse(moe)
    }
}

impl FeedForward {
    /// Records it on the residual stream, with a `norm` before it.
    pub fn record(&self, rec: &mut Recorder, n: Rows, norm: &RmsNorm, a: &Activations) {
        match self {
            FeedForward::Dense(mlp) => mlp.record(rec, n, normed(norm, a), Target::Add(&a.x), a),
            FeedForward::Sparse(moe) => moe.record(rec, n, norm, a),
        }
    }
}

/// `x += Σ weight·down(act(gate(h)) · up(h))` over the experts that the router chooses for each row.
///
/// Shazeer et al. 2017.
#[derive(Debug)]
pub struct Moe {
    /// `[n_experts, hidden_size]`, as stored, because a small error there may choose another expert.
    pub router: Linear,
    /// How its logits become weights.
    pub scoring: Scoring,
    /// The activation function of the gate.
    pub act: Act,
    /// Gate above up of each expert.
    pub up: Experts,
    /// The second product.
    pub down: Experts,
}

/// The weights of one product of all experts.
#[derive(Debug)]
pub struct Experts {
    /// As in [`ExpertProduct`].
    pub parts: Vec<Tensor>,
    /// `[1, n_experts·n_out]`.
    pub bias: Option<Tensor>,
}

impl Experts {
    /// Loads the matrices `[n_own, n_in]` of each expert, and their biases if they have them.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        names: ExpertNames<'_>,
        shape: &ExpertsShape,
        [n_own, n_in]: [usize; 2],
        bias: bool,
    ) -> Result<Self, ModelError> {
        let bias = match bias {
            true => Some(loader.expert_biases(names, shape.n_experts, n_own)?),
            false => None,
        };
        Ok(Experts { parts: loader.experts(names, shape.n_experts, [n_own, n_in])?, bias })
    }

    fn of<'a>(&'a self, input: ExpertInput<'a>) -> ExpertProduct<'a> {
        ExpertProduct { input, parts: &self.parts, bias: self.bias.as_ref() }
    }
}

/// Where a mixture of experts is in a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct MoeNames<'a> {
    /// The router.
    pub router: &'a str,
    /// What the names of the experts begin with.
    pub experts: &'a str,
    /// Gate, up and down of an expert.
    pub parts: [&'a str; 3],
    /// As in [`ExpertNames`].
    pub transposed: bool,
    /// Whether all products have biases.
    pub bias: bool,
}

impl Moe {
    /// Loads the router, and all experts.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        names: MoeNames<'_>,
        hidden_size: usize,
        shape: &ExpertsShape,
        act: Act,
        scoring: Scoring,
    ) -> Result<Self, ModelError> {
        let MoeNames { router, experts: prefix, ref parts, transposed, bias } = names;
        let (n, n_inner) = (hidden_size, shape.intermediate_size);
        let (up, down) = parts.split_at(2);
        let up = ExpertNames { prefix, parts: up, joined: "gate_up_proj", transposed };
        let down = ExpertNames { prefix, parts: down, joined: "down_proj", transposed };
        Ok(Moe {
            router: Linear::load_as_stored(loader, router, [shape.n_experts, n], bias)?,
            scoring,
            act,
            up: Experts::load(loader, up, shape, [n_inner, n], bias)?,
            down: Experts::load(loader, down, shape, [n, n_inner], bias)?,
        })
    }

    /// Records it on the residual stream, with a `norm` before it.
    ///
    /// # Panics
    /// If the activations have no room for experts.
    pub fn record(&self, rec: &mut Recorder, n: Rows, norm: &RmsNorm, a: &Activations) {
        let e = a.experts.as_ref().expect("the shape has experts");
        let n_rows = n.count();
        ops::rms_norm(rec, &a.x, norm, None, false, &a.h, 0..n_rows);
        // As decode rows, whatever their kind: F16 inputs may choose another expert.
        let all = Rows { n_decode: n_rows, n_prompt: 0 };
        ops::linear(rec, self.router.of(&a.h), false, &e.logits, all);
        let routed = ops::route(rec, self.scoring, &e.logits, &e.routes, n_rows);
        ops::expert_linear(rec, self.up.of(ExpertInput::Rows(&a.h)), &routed, &e.up, n);
        ops::gate(rec, self.act, &e.up, &e.act, 0..n_rows * e.routes.k());
        ops::expert_linear(rec, self.down.of(ExpertInput::Pairs(&e.act)), &routed, &e.y, n);
        ops::combine(rec, &e.routes, &e.y, &a.x, n_rows);
    }
}
