//! Products with weights: every matrix of the model, every variant.

use super::super::check::Check;
use super::super::{exact, shapes};
use super::{Case, Cost, MOST_DECODE, Prepared, Workload, clear, some, values};
use crate::gpu::{Gpu, Recorder};
use crate::ops;

pub(super) fn linear(work: &Workload<'_>) -> Vec<Case> {
    let mut matrices = shapes::layer_matrices(work.model(), 0);
    if work.n_rows <= MOST_DECODE {
        // Few rows of a prompt get logits.
        matrices.push(shapes::head(work.model()));
    }
    let (n_rows, dtype, n) = (work.n_rows, work.dtype, work.rows());
    let mut cases = Vec::new();
    for (name, n_out, n_in) in matrices {
        let cost = Cost {
            flops: 2.0 * (n_rows * n_out) as f64 * n_in as f64,
            bytes: (n_out * dtype.bytes(n_in)) as f64 + (n_rows * 4 * (n_in + n_out)) as f64,
        };
        for variant in ops::linear_variants(work.caps, dtype, n_rows) {
            let what = format!("{name} {n_out}×{n_in}");
            let case = work.case("linear", what, dtype, cost, move |pool| {
                let weights = pool.weights([n_out, n_in], dtype, (n_in as f32).powf(-0.5))?;
                let x = pool.activations("x", [n_rows, n_in], 1)?;
                let y = pool.output([n_rows, n_out])?;
                let (first, x2, y2, y3) = (weights[0].clone(), x.clone(), y.clone(), y.clone());
                let model = (weights[0].clone(), x.clone(), y.clone());
                let unasked = move |rec: &mut Recorder, _: usize| {
                    let (w, x, y) = &model;
                    ops::linear(rec, x, w, None, false, y, n);
                };
                let launch = move |rec: &mut Recorder, i: usize| {
                    let w = &weights[i % weights.len()];
                    variant.launch(rec, &x, w, None, false, &y, n_rows);
                };
                let verify = move |gpu: &Gpu| {
                    let mut check = Check::f32(n_in + 2, 1.0);
                    let outputs = some(n_out, 16);
                    let w = outputs.iter().map(|o| values(gpu, &first, *o)).collect::<Result<Vec<_>, _>>()?;
                    for r in some(n_rows, 3) {
                        let y = values(gpu, &y2, r)?;
                        let got: Vec<f64> = outputs.iter().map(|o| y[*o]).collect();
                        check.extend(&got, &exact::linear(&values(gpu, &x2, r)?, &w, None));
                    }
                    Ok(check)
                };
                Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)).instead_of(unasked))
            });
            cases.push(Case { variant: Some(variant.name().to_string()), ..case });
        }
    }
    cases
}
