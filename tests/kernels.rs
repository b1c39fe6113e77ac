//! Every kernel against its f64 reference, on random shapes that are never only square or multiples of a
//! tile, with subgroups and without.

mod common;

use common::reference as exact;
use common::*;
use wginfer::dtype::Dtype;
use wginfer::gpu::{Caps, Gpu, GpuOptions, Recorder, Subgroups, Tensor};
use wginfer::ops::{
    self, Act, Affine, AttentionPlan, Draws, Embed, ExpertInput, ExpertProduct, HeadNorm, HeadWeights, Input,
    KvLayer, LayerNorm, Lookup, Places, Pooling, Qkv, RmsNorm, RopeAppend, Routes, Rows, Scoring,
    Temperature,
};

const WEIGHTS: [Dtype; 16] = Dtype::WEIGHTS;

/// Whether the padding of rows is zero in this type.
fn pads_with_zero(dtype: Dtype) -> bool {
    !dtype.is_quantised() || matches!(dtype, Dtype::Q8_0 | Dtype::Q4_0)
}

/// A device whose bindings span 4 KiB, so that all but the smallest tables come in several ranges.
fn narrow() -> Option<Gpu> {
    open(&GpuOptions { max_binding_bytes: Some(4096), ..GpuOptions::default() })
}

#[test]
fn embed() {
    for gpu in gpus() {
        let mut rng = Rng::new(1);
        for (i, shape) in
            [[1, 7, 1], [5, 11, 8], [13, 3, 67], [3, 19, 129], [65_537, 5, 3]].iter().enumerate()
        {
            for (j, dtype) in WEIGHTS.into_iter().enumerate() {
                let lookups = [
                    Lookup::Token,
                    Lookup::AddToken,
                    Lookup::AddPosition,
                    Lookup::AddPositionAfter(2),
                    Lookup::AddRow(1),
                ];
                let lookup = lookups[(i + j) % lookups.len()];
                check_embed(&gpu, &mut rng, *shape, dtype, lookup);
            }
        }
    }
    if let Some(gpu) = narrow() {
        let mut rng = Rng::new(2);
        let token = [Lookup::Token, Lookup::AddToken];
        let others = [Lookup::AddPosition, Lookup::AddPositionAfter(3), Lookup::AddRow(299)];
        for lookup in token.into_iter().chain(others) {
            for dtype in WEIGHTS.into_iter().filter(|dtype| pads_with_zero(*dtype)) {
                check_embed(&gpu, &mut rng, [29, 307, 23], dtype, lookup);
            }
        }
    }
}

fn check_embed(
    gpu: &Gpu,
    rng: &mut Rng,
    [n_rows, n_table, hidden]: [usize; 3],
    dtype: Dtype,
    lookup: Lookup,
) {
    // No table whose rows have padding comes in a type that does not pad with zeros.
    let blocks = match hidden {
        0..=3 => 32,
        4..=8 => 96,
        9..=67 => 256,
        _ => 800,
    };
    let hidden = if pads_with_zero(dtype) { hidden } else { blocks };
    let what = format!("embed {n_rows}×{n_table}×{hidden} {dtype} {lookup:?}");
    let (n_seqs, ctx, scale) = (2, n_table + 2, 1.5);
    let (table, values) = upload(gpu, dtype, [n_table, hidden], &rng.normals(n_table * hidden, 1.0));
    let values = rows_f64(&values, hidden);
    // One in eight ids is outside the table.
    let mut id =
        |_| if rng.below(8) == 0 { u32::MAX - rng.below(9) as u32 } else { rng.below(n_table) as u32 };
    let ids: Vec<u32> = (0..n_seqs * ctx).map(&mut id).collect();
    let places: Vec<[u32; 2]> =
        (0..n_rows).map(|_| [rng.below(n_seqs) as u32, rng.below(ctx) as u32]).collect();
    let before = rng.normals(n_rows * hidden, 1.0);

    let rows = tensor_u32(gpu, [n_rows, 2], places.as_flattened());
    let tokens = tensor_u32(gpu, [n_seqs, ctx], &ids);
    let x = tensor_f32(gpu, [n_rows, hidden], &before);
    let n = Rows { n_decode: n_rows / 3, n_prompt: n_rows - n_rows / 3 };
    let embed = Embed { table, lookup, scale };
    run(gpu, |rec| ops::embed(rec, &embed, &rows, &tokens, &x, n));

    let added = |r: usize, id: u32| {
        let row = exact::embed(&values, id, f64::from(scale)).into_iter().zip(&before[r * hidden..]);
        row.map(|(p, x)| p + f64::from(*x)).collect()
    };
    let row = |(r, [seq, pos]): (usize, &[u32; 2])| match lookup {
        Lookup::Token => exact::embed(&values, ids[*seq as usize * ctx + *pos as usize], f64::from(scale)),
        Lookup::AddToken => added(r, ids[*seq as usize * ctx + *pos as usize]),
        Lookup::AddPosition => added(r, *pos),
        Lookup::AddPositionAfter(offset) => added(r, *pos + offset as u32),
        Lookup::AddRow(id) => added(r, id as u32),
    };
    let want: Vec<f64> = places.iter().enumerate().flat_map(row).collect();
    if want.iter().any(|x| *x != 0.0) {
        assert_close(&what, &read(gpu, &x), &want, Tolerance::f32(2, largest(&want)));
    }
    assert_padding_is_zero(gpu, &x);
}

/// A table larger than the 128 MiB of a binding under WebGPU's default limits, which are also lavapipe's.
#[test]
fn embed_from_a_table_of_several_bindings() {
    let Some(gpu) = gpu() else { return };
    let (n_table, hidden) = (530_017, 64);
    let value = |row: usize, col: usize| ((row * 31 + col * 7) % 1009) as f32 - 500.0;
    let data: Vec<f32> = (0..n_table * hidden).map(|i| value(i / hidden, i % hidden)).collect();
    let table = Tensor::weights(&gpu, "table", [n_table, hidden], Dtype::F32).expect("it fits");
    table.write(&gpu, 0, bytemuck::cast_slice(&data));
    if table.size_bytes() > gpu.caps().max_binding_bytes {
        assert!(table.ranges().count() > 1);
    }
    let ids: Vec<u32> = [0, 1, 524_287, 524_288, 530_016, 530_017, 262_144].to_vec();
    let places: Vec<u32> = (0..ids.len() as u32).flat_map(|pos| [0, pos]).collect();
    let rows = tensor_u32(&gpu, [ids.len(), 2], &places);
    let tokens = tensor_u32(&gpu, [1, ids.len()], &ids);
    let x = filled(&gpu, [ids.len(), hidden], f32::NAN);
    let n = Rows { n_decode: 0, n_prompt: ids.len() };
    let embed = Embed { table, lookup: Lookup::Token, scale: 1.0 };
    run(&gpu, |rec| ops::embed(rec, &embed, &rows, &tokens, &x, n));
    let element = |id: u32, c| if (id as usize) < n_table { f64::from(value(id as usize, c)) } else { 0.0 };
    let row = |&id: &u32| (0..hidden).map(|c| element(id, c)).collect::<Vec<f64>>();
    let want: Vec<f64> = ids.iter().flat_map(row).collect();
    assert_close("embed", &read(&gpu, &x), &want, Tolerance::f32(1, largest(&want)));
}

#[test]
fn rms_norm() {
    for gpu in reducing() {
        let mut rng = Rng::new(3);
        let shapes = [[1, 1], [3, 7], [1, 8], [5, 64], [2, 65], [7, 130], [4, 1027], [65_539, 3]];
        for (i, [n_rows, n_cols]) in shapes.into_iter().enumerate() {
            for size in [1.0, 1e-3] {
                // At 1e-3 the squares are as small as epsilon.
                let (eps, offset, gather, add) = (1e-6, (i % 2) as f32, i % 3 == 1, i % 4 > 1);
                let n_x = n_rows + if gather { 4 } else { 0 };
                let (xs, ws) = (rng.normals(n_x * n_cols, size), rng.normals(n_cols, 1.0));
                let index: Vec<u32> =
                    (0..n_rows).map(|r| if gather { rng.below(n_x) } else { r } as u32).collect();
                let (x, w) = (tensor_f32(&gpu, [n_x, n_cols], &xs), tensor_f32(&gpu, [1, n_cols], &ws));
                let list = tensor_u32(&gpu, [1, n_rows], &index);
                let before = rng.normals(n_rows * n_cols, 1.0);
                let y = match add {
                    true => tensor_f32(&gpu, [n_rows, n_cols], &before),
                    false => filled(&gpu, [n_rows, n_cols], f32::NAN),
                };
                let list = gather.then_some(&list);
                let norm = RmsNorm { w, eps, offset };
                // In two parts, like decode rows and prompt rows.
                run(&gpu, |rec| {
                    for range in [0..n_rows / 3, n_rows / 3..n_rows] {
                        ops::rms_norm(rec, &x, &norm, list, add, &y, range);
                    }
                });

                let (xs, ws) = (rows_f64(&xs, n_cols), to_f64(&ws));
                let row = |s: &u32| exact::rms_norm(&xs[*s as usize], &ws, eps.into(), offset.into());
                let mut want: Vec<f64> = index.iter().flat_map(row).collect();
                if add {
                    want.iter_mut().zip(&before).for_each(|(want, before)| *want += f64::from(*before));
                }
                let what = format!("rms_norm {n_rows}×{n_cols} of size {size}, added {add}");
                assert_close(&what, &read(&gpu, &y), &want, Tolerance::f32(n_cols, largest(&want)));
                assert_padding_is_zero(&gpu, &y);
            }
        }
    }
}

#[test]
fn layer_norm() {
    for gpu in reducing() {
        let mut rng = Rng::new(4);
        let shapes = [[1, 1], [3, 7], [1, 8], [5, 64], [2, 65], [7, 130], [4, 1027]];
        for (i, [n_rows, n_cols]) in shapes.into_iter().enumerate() {
            // Small values make epsilon matter, a large mean the second pass.
            for (size, mean) in [(1.0, 0.0), (1e-3, 0.0), (1.0, 100.0)] {
                let (eps, gather) = (1e-5, i % 3 == 1);
                let n_x = n_rows + if gather { 4 } else { 0 };
                let xs: Vec<f32> = rng.normals(n_x * n_cols, size).iter().map(|x| x + mean).collect();
                let (ws, bs) = (rng.normals(n_cols, 1.0), rng.normals(n_cols, 1.0));
                let index: Vec<u32> =
                    (0..n_rows).map(|r| if gather { rng.below(n_x) } else { r } as u32).collect();
                let x = tensor_f32(&gpu, [n_x, n_cols], &xs);
                let (w, b) = (tensor_f32(&gpu, [1, n_cols], &ws), tensor_f32(&gpu, [1, n_cols], &bs));
                let norm = LayerNorm { w, b, eps };
                let list = tensor_u32(&gpu, [1, n_rows], &index);
                let y = filled(&gpu, [n_rows, n_cols], f32::NAN);
                let list = gather.then_some(&list);
                run(&gpu, |rec| ops::layer_norm(rec, &x, &norm, list, &y, n_rows));

                let (xs, ws, bs) = (rows_f64(&xs, n_cols), to_f64(&ws), to_f64(&bs));
                let row = |s: &u32| exact::layer_norm(&xs[*s as usize], &ws, &bs, eps.into());
                let want: Vec<f64> = index.iter().flat_map(row).collect();
                // The mean is rounded before it is subtracted.
                let scale = largest(&want) * (1.0 + f64::from(mean / size));
                let what = format!("layer_norm {n_rows}×{n_cols} of size {size} around {mean}");
                assert_close(&what, &read(&gpu, &y), &want, Tolerance::f32(n_cols, scale));
                assert_padding_is_zero(&gpu, &y);
            }
        }
    }
}

#[test]
fn what_is_no_number_is_not_pooled_away() {
    for gpu in gpus() {
        for odd in 0..3 {
            let mut xs: Vec<f32> = (0..12).map(|i| i as f32).collect();
            xs[4 * odd + 1] = f32::NAN;
            let (x, spans) = (tensor_f32(&gpu, [3, 4], &xs), tensor_u32(&gpu, [1, 2], &[0, 3]));
            for pooling in [Pooling::Mean, Pooling::MeanSqrtLen, Pooling::Max, Pooling::WeightedMean] {
                let y = filled(&gpu, [1, 4], 0.0);
                run(&gpu, |rec| ops::pool(rec, pooling, &spans, &x, &y, 0, 1));
                let is_nan: Vec<bool> = read(&gpu, &y).iter().map(|v| v.is_nan()).collect();
                assert_eq!(is_nan, [false, true, false, false], "{pooling:?}, row {odd}");
            }
        }
    }
}

#[test]
fn pool() {
    for gpu in gpus() {
        let mut rng = Rng::new(20);
        // The last one has more than 65,535 workgroups.
        for [n_seqs, most_rows, n_cols] in
            [[1, 1, 3], [3, 7, 8], [5, 40, 67], [17, 300, 384], [65_537, 1, 254]]
        {
            // Rows in any order, and some that belong to no text.
            let lengths: Vec<usize> = (0..n_seqs).map(|_| 1 + rng.below(most_rows)).collect();
            let mut order: Vec<usize> = (0..n_seqs).collect();
            rng.shuffle(&mut order);
            let (mut spans, mut n_rows) = (vec![[0, 0]; n_seqs], 1);
            for s in order {
                spans[s] = [n_rows as u32, lengths[s] as u32];
                n_rows += lengths[s] + s % 2;
            }
            let xs = rng.normals(n_rows * n_cols, 1.0);
            let x = tensor_f32(&gpu, [n_rows, n_cols], &xs);
            let table = tensor_u32(&gpu, [n_seqs, 2], spans.as_flattened());
            let xs = rows_f64(&xs, n_cols);
            for pooling in [
                Pooling::First,
                Pooling::Last,
                Pooling::Mean,
                Pooling::MeanSqrtLen,
                Pooling::Max,
                Pooling::WeightedMean,
            ] {
                if n_seqs > 65_535 && pooling != Pooling::WeightedMean {
                    continue;
                }
                let what = format!("pool {n_seqs}×{most_rows}×{n_cols} {pooling:?}");
                let row = |span: &[u32; 2]| {
                    exact::pool(pooling.name(), &xs[span[0] as usize..(span[0] + span[1]) as usize])
                };
                let want: Vec<f64> = spans.iter().flat_map(row).collect();
                let y = filled(&gpu, [n_seqs, n_cols], f32::NAN);
                run(&gpu, |rec| ops::pool(rec, pooling, &table, &x, &y, 0, n_seqs));
                assert_close(&what, &read(&gpu, &y), &want, Tolerance::f32(most_rows, largest(&want)));
                assert_padding_is_zero(&gpu, &y);
                if n_cols % 4 > 0 || n_seqs > 65_535 {
                    continue;
                }
                // Next to other columns, which must not change.
                let y = filled(&gpu, [n_seqs, 3 * n_cols], 7.0);
                run(&gpu, |rec| ops::pool(rec, pooling, &table, &x, &y, n_cols, n_seqs));
                let seven = vec![7.0; n_cols];
                let row = |row: &[f64]| [&seven, row, &seven].concat();
                let want: Vec<f64> = want.chunks(n_cols).flat_map(row).collect();
                assert_close(&what, &read(&gpu, &y), &want, Tolerance::f32(most_rows, largest(&want)));
            }
        }
    }
}

#[test]
fn head_norm() {
    for gpu in reducing() {
        let mut rng = Rng::new(5);
        for [n_rows, n_heads, n_kv_heads, head_dim] in
            [[1, 1, 1, 8], [3, 4, 2, 16], [5, 9, 3, 64], [2, 7, 1, 80], [13, 2, 1, 128]]
        {
            // Each head, and all together.
            for [n_q, n_k] in [[head_dim; 2], [n_heads * head_dim, n_kv_heads * head_dim]] {
                let (eps, offset) = (1e-6, (n_rows % 2) as f32);
                let n_cols = (n_heads + 2 * n_kv_heads) * head_dim;
                let xs = rng.normals(n_rows * n_cols, 2e-3);
                let (qs, ks) = (rng.normals(n_q, 1.0), rng.normals(n_k, 1.0));
                let x = tensor_f32(&gpu, [n_rows, n_cols], &xs);
                let (q_w, k_w) = (tensor_f32(&gpu, [1, n_q], &qs), tensor_f32(&gpu, [1, n_k], &ks));
                let norm = HeadNorm { q: q_w, k: k_w, eps, offset };
                let heads = [n_heads, n_kv_heads, head_dim];
                run(&gpu, |rec| ops::head_norm(rec, &norm, heads, &x, n_rows));
                let (qs, ks) = (to_f64(&qs), to_f64(&ks));
                let row =
                    |x: &Vec<f64>| exact::head_norm(x, &qs, &ks, heads, f64::from(eps), f64::from(offset));
                let want: Vec<f64> = rows_f64(&xs, n_cols).iter().flat_map(row).collect();
                let what =
                    format!("head_norm {n_rows}×{n_heads}×{n_kv_heads}×{head_dim}, norms of {n_q} and {n_k}");
                let got = read(&gpu, &x);
                assert_close(&what, &got, &want, Tolerance::f32(n_q, largest(&want)));
                let values = |row: &[f32]| row[(n_heads + n_kv_heads) * head_dim..].to_vec();
                let (got, xs): (Vec<f32>, Vec<f32>) = (
                    got.chunks(n_cols).flat_map(values).collect(),
                    xs.chunks(n_cols).flat_map(values).collect(),
                );
                assert_same_bits(&what, &got, &xs);
            }
        }
    }
}

#[test]
fn softcap() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(29);
    for [n_rows, n_cols] in [[1, 1], [3, 7], [5, 64], [2, 1031]] {
        for (scale, cap) in [(1.0, Some(2.5)), (0.25, Some(30.0)), (0.125, None)] {
            let mut ys = rng.normals(n_rows * n_cols, 4.0);
            if ys.len() > 100 {
                // Inputs for which the exponentials overflow.
                ys[..4].copy_from_slice(&[0.0, 1e4, -1e30, 300.0]);
            }
            // One row more, which does not change.
            let all = [&ys[..], &vec![9.0; n_cols]].concat();
            let y = tensor_f32(&gpu, [n_rows + 1, n_cols], &all);
            run(&gpu, |rec| ops::softcap(rec, &y, scale, cap, n_rows));
            let capped = |x: &f32| exact::softcap((*x).into(), scale.into(), cap.map(f64::from));
            let got = read(&gpu, &y);
            let what = format!("softcap {n_rows}×{n_cols} {scale} {cap:?}");
            assert_same_bits(&what, &got[n_rows * n_cols..], &all[n_rows * n_cols..]);
            // Without outliers, which would loosen the tolerance of the rest.
            for (g, x) in got.iter().zip(&ys).filter(|(_, x)| x.abs() > 100.0) {
                assert!((f64::from(*g) - capped(x)).abs() <= 1e-5 * capped(x).abs(), "{what}: {g} of {x}");
            }
            let near = |i: &usize| ys[*i].abs() <= 100.0;
            let pick: Vec<usize> = (0..ys.len()).filter(near).collect();
            let want: Vec<f64> = pick.iter().map(|i| capped(&ys[*i])).collect();
            let got_near: Vec<f32> = pick.iter().map(|i| got[*i]).collect();
            // A device's tanh has an error relative to one, not to its value.
            let scale = largest(&want).max(cap.map_or(0.0, f64::from));
            assert_close(&what, &got_near, &want, Tolerance::f32(5, scale));
            assert_padding_is_zero(&gpu, &y);
        }
    }
}

/// Rows, inputs, outputs: each on both sides of 1, 8 and 64, all different.
const PRODUCTS: [[usize; 3]; 12] = [
    [1, 8, 5],
    [2, 13, 3],
    [3, 1, 7],
    [3, 64, 9],
    [5, 65, 17],
    [8, 100, 4],
    [9, 131, 63],
    [13, 257, 66],
    [17, 40, 129],
    [64, 72, 65],
    [65, 31, 64],
    [70, 513, 130],
];

#[test]
fn linear() {
    for gpu in gpus() {
        let mut rng = Rng::new(6);
        for (i, shape) in PRODUCTS.into_iter().enumerate() {
            // Each of the many types at every third shape.
            for (j, dtype) in WEIGHTS.into_iter().enumerate().filter(|(j, _)| (2 * i + j) % 3 == 0) {
                check_linear(&gpu, &mut rng, shape, dtype, (i + j) % 2 == 0, (i + j) % 3 == 0);
            }
        }
    }
    // The variants for hardware with cooperative matrices; the variants above are tested there too.
    if let Some(gpu) = coop() {
        let mut rng = Rng::new(17);
        for (i, shape) in [[129, 65, 131], [70, 513, 130], [300, 40, 517]].into_iter().enumerate() {
            check_linear(&gpu, &mut rng, shape, WEIGHTS[i], i == 1, i > 0);
        }
    }
    // Many outputs: more than 65,535 workgroups of linear_few.
    if let Some(gpu) = gpu() {
        check_linear(&gpu, &mut Rng::new(7), [1, 3, 262_151], Dtype::F16, true, false);
    }
    // Weights in several ranges of rows.
    if let Some(gpu) = narrow() {
        let mut rng = Rng::new(8);
        for dtype in WEIGHTS {
            check_linear(&gpu, &mut rng, [5, 100, 131], dtype, true, true);
            check_linear(&gpu, &mut rng, [1, 61, 330], dtype, true, false);
        }
    }
}

/// Every variant, and `ops::linear` with a batch of decode and prompt rows.
fn check_linear(
    gpu: &Gpu,
    rng: &mut Rng,
    [n_rows, n_in, n_out]: [usize; 3],
    dtype: Dtype,
    bias: bool,
    add: bool,
) {
    let xs = rng.normals(n_rows * n_in, 1.0);
    let (w, ws) = upload(gpu, dtype, [n_out, n_in], &rng.normals(n_out * n_in, 0.5));
    let bs = rng.normals(n_out, 1.0);
    let before = rng.normals(n_rows * n_out, 1.0);

    let (ws, exact_bs) = (rows_f64(&ws, n_in), to_f64(&bs));
    let row = |x: &Vec<f64>| exact::linear(x, &ws, bias.then_some(&exact_bs));
    let mut want: Vec<f64> = rows_f64(&xs, n_in).iter().flat_map(row).collect();
    if add {
        want.iter_mut().zip(&before).for_each(|(y, b)| *y += f64::from(*b));
    }
    let tolerance = |name: &str| {
        if name.starts_with("coop") || (name == "linear" && gpu.caps().f16_products()) {
            // Both factors of each product, of size about one, are rounded to f16; the sum is not.
            return Tolerance { eps: half::f16::EPSILON.to_f32(), n_terms: n_in + 2, scale: 1.0 };
        }
        Tolerance::f32(n_in + 2, largest(&want))
    };

    let x = tensor_f32(gpu, [n_rows, n_in], &xs);
    let b = tensor_f32(gpu, [1, n_out], &bs);
    let b = bias.then_some(&b);
    let check = |name: &str, launch: &dyn Fn(&mut Recorder, &Tensor)| {
        let y = tensor_f32(gpu, [n_rows, n_out], &before);
        run(gpu, |rec| launch(rec, &y));
        let what = format!("{name} {n_rows}×{n_in}×{n_out} {dtype} bias {bias} add {add}");
        assert_close(&what, &read(gpu, &y), &want, tolerance(name));
        assert_padding_is_zero(gpu, &y);
    };
    for variant in ops::linear_variants(gpu.caps()) {
        check(variant.name(), &|rec, y| variant.launch(rec, Affine::new(&x, &w, b), add, y, n_rows));
    }
    let n = Rows { n_decode: n_rows / 3, n_prompt: n_rows - n_rows / 3 };
    check("linear", &|rec, y| ops::linear(rec, Affine::new(&x, &w, b), add, y, n));

    // The same with a norm, whose epsilon matters.
    let (eps, offset) = (0.1, (n_rows % 2) as f32);
    let gs = rng.normals(n_in, 1.0);
    let row = |x: &Vec<f64>| {
        let x = exact::rms_norm(x, &to_f64(&gs), f64::from(eps), f64::from(offset));
        exact::linear(&x, &ws, bias.then_some(&exact_bs))
    };
    let mut want: Vec<f64> = rows_f64(&xs, n_in).iter().flat_map(row).collect();
    if add {
        want.iter_mut().zip(&before).for_each(|(y, b)| *y += f64::from(*b));
    }
    let norm = RmsNorm { w: tensor_f32(gpu, [1, n_in], &gs), eps, offset };
    let h = filled(gpu, [n_rows, n_in], f32::NAN);
    let y = tensor_f32(gpu, [n_rows, n_out], &before);
    let input = Input { x: &x, norm: Some((&norm, &h)) };
    run(gpu, |rec| ops::linear(rec, Affine::new(input, &w, b), add, &y, n));
    let what = format!("linear with norm {n_rows}×{n_in}×{n_out} {dtype} bias {bias} add {add}");
    assert_close(&what, &read(gpu, &y), &want, product_tolerance(gpu, n_in + 4, largest(&want)));
}

/// For sums of `n_terms` products of about equal size that are at most `largest`: where products take F16 inputs, each
/// term has the error of two roundings to F16.
fn product_tolerance(gpu: &Gpu, n_terms: usize, largest: f64) -> Tolerance {
    if gpu.caps().f16_products() {
        return Tolerance { eps: half::f16::EPSILON.to_f32(), n_terms: 2, scale: largest };
    }
    Tolerance::f32(n_terms, largest)
}

/// The variants of a card with matrix units, by its capabilities: those with F16 inputs run only if F16 products are
/// allowed, the width of a subgroup is certain, and the tiles fit.
#[test]
fn cards_with_matrix_units_take_them() {
    let Some(gpu) = gpu() else { return };
    let card = Caps {
        f16: true,
        subgroups: Some(Subgroups::fixed(32)),
        cooperative_matrices: vec![(16, 8, 16), (16, 16, 16)],
        f32_products: false,
        cpu: false,
        max_workgroup_bytes: 48 << 10,
        max_workgroup_size: 1024,
        ..gpu.caps().clone()
    };
    let n_coop = |caps: &Caps| {
        let variants = ops::linear_variants(caps);
        variants.iter().filter(|v| v.name().starts_with("coop")).count()
    };
    let block_rows = |caps: &Caps, heads| attention_shape(heads).block_rows(caps);
    assert_eq!((card.coop_tile(), n_coop(&card)), (Some(16), 2));
    // Tiles of 16 queries in up to four subgroups; with the widest heads two fit.
    assert_eq!(block_rows(&card, [14, 2, 128]), 9);
    assert_eq!(block_rows(&card, [8, 2, 64]), 16);
    assert_eq!(block_rows(&card, [8, 8, 256]), 32);

    // A driver that makes subgroups of 64 of all workgroups larger than 32 has both shapes of products too.
    let rdna = Subgroups::range(32, 64).probed(1024, |size, _| Some(if size <= 32 { 32 } else { 64 }));
    let rdna = Caps { subgroups: Some(rdna), ..card.clone() };
    assert_eq!((rdna.coop_tile(), n_coop(&rdna), rdna.coop_width(8)), (Some(16), 2, Some(64)));
    assert_eq!([[14, 2, 128], [8, 2, 64]].map(|heads| block_rows(&rdna, heads)), [9, 16]);

    let small = Caps { max_workgroup_bytes: 16 << 10, ..card.clone() };
    assert_eq!(n_coop(&small), 1, "small tiles alone");
    for less in [
        Caps { f32_products: true, ..card.clone() },
        Caps { subgroups: None, ..card.clone() },
        Caps { subgroups: Some(Subgroups::range(32, 64)), ..card.clone() },
        Caps { f16: false, ..card.clone() },
        Caps { cooperative_matrices: vec![(16, 8, 16)], ..card.clone() },
    ] {
        assert_eq!((less.coop_tile(), n_coop(&less)), (None, 0));
        assert!(block_rows(&less, [1, 1, 64]) <= 16);
    }
}

/// Values beyond the range of f16 become its largest number.
#[test]
fn linear_on_cooperative_matrices_saturates() {
    let Some(gpu) = coop() else { return };
    let (n_rows, n_in, n_out) = (9, 33, 5);
    let (w, ws) = upload(&gpu, Dtype::F32, [n_out, n_in], &Rng::new(18).normals(n_out * n_in, 1.0));
    let mut xs = vec![0.5; n_rows * n_in];
    xs[..3].copy_from_slice(&[1e6, -7e4, 65519.0]);
    let (x, y) = (tensor_f32(&gpu, [n_rows, n_in], &xs), filled(&gpu, [n_rows, n_out], f32::NAN));
    let n = Rows { n_decode: 0, n_prompt: n_rows };
    run(&gpu, |rec| ops::linear(rec, Affine::new(&x, &w, None), false, &y, n));
    let held: Vec<f32> = xs.iter().map(|x| x.clamp(-65504.0, 65504.0)).collect();
    let ws = rows_f64(&ws, n_in);
    let want: Vec<f64> = rows_f64(&held, n_in).iter().flat_map(|x| exact::linear(x, &ws, None)).collect();
    let tolerance = Tolerance { eps: half::f16::EPSILON.to_f32(), n_terms: 3, scale: 65504.0 };
    assert_close("saturated", &read(&gpu, &y)[..n_out], &want[..n_out], tolerance);
}

type Function = fn(f64) -> f64;

const ACTS: [(Act, Function); 5] = [
    (Act::Silu, exact::silu),
    (Act::GeluTanh, exact::gelu_tanh),
    (Act::Gelu, exact::gelu),
    (Act::Relu, exact::relu),
    (Act::Tanh, f64::tanh),
];

#[test]
fn gate() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(9);
    // The last one has more than 65,535 workgroups.
    for [n_rows, n_cols] in [[1, 1], [3, 7], [5, 64], [2, 65], [13, 131], [65_537, 65]] {
        for (act, exact_act) in ACTS {
            let large = n_rows > 65_535;
            if large && act != Act::Silu {
                continue;
            }
            for gated in [true, false] {
                if large && gated {
                    continue;
                }
                let n_x = if gated { 2 * n_cols } else { n_cols };
                let mut xs = rng.normals(n_rows * n_x, 2.0);
                if xs.len() > 100 {
                    // Inputs for which the exponential and the cube overflow.
                    xs[..6].copy_from_slice(&[0.0, -0.0, 100.0, -100.0, -1e4, 90.0]);
                }
                let (x, y) = (tensor_f32(&gpu, [n_rows, n_x], &xs), filled(&gpu, [n_rows, n_cols], f32::NAN));
                run(&gpu, |rec| {
                    for range in [0..n_rows / 3, n_rows / 3..n_rows] {
                        ops::gate(rec, act, &x, &y, range);
                    }
                });
                let want: Vec<f64> = if gated {
                    rows_f64(&xs, n_x).iter().flat_map(|x| exact::gate(exact_act, x)).collect()
                } else {
                    xs.iter().map(|x| exact_act((*x).into())).collect()
                };
                let what = format!("gate {n_rows}×{n_cols} {act:?} gated {gated}");
                // Without outliers, which would loosen the tolerance of the rest.
                let got = read(&gpu, &y);
                let (near, far): (Vec<usize>, Vec<usize>) =
                    (0..want.len()).partition(|&i| want[i].abs() < 50.0);
                let pick =
                    |at: &[usize]| -> (Vec<f32>, Vec<f64>) { at.iter().map(|&i| (got[i], want[i])).unzip() };
                let (got_near, want_near) = pick(&near);
                if want_near.iter().all(|w| *w == 0.0) {
                    assert!(act == Act::Relu && got_near.iter().all(|g| *g == 0.0), "{what}");
                    continue;
                }
                // Four roundings; the approximation of erf is good to one more unit of 1.
                assert_close(&what, &got_near, &want_near, Tolerance::f32(5, largest(&want_near).max(4.0)));
                for (g, w) in far.iter().map(|&i| (f64::from(got[i]), want[i])) {
                    assert!((g - w).abs() <= 1e-5 * w.abs(), "{what}: {g} expected {w}");
                }
                assert_padding_is_zero(&gpu, &y);
            }
        }
    }
}

/// A pool of pages in shuffled order and the block tables of some sequences.
struct Pages {
    page_size: usize,
    per_seq: usize,
    /// [n_seqs][per_seq]
    table: Vec<Vec<u32>>,
    n_pages: usize,
}

impl Pages {
    fn new(rng: &mut Rng, n_seqs: usize, ctx: usize, page_size: usize) -> Pages {
        let per_seq = ctx.div_ceil(page_size);
        let n_pages = n_seqs * per_seq + 3;
        let mut order: Vec<u32> = (0..n_pages as u32).collect();
        rng.shuffle(&mut order);
        let table = (0..n_seqs).map(|s| order[s * per_seq..][..per_seq].to_vec()).collect();
        Pages { page_size, per_seq, table, n_pages }
    }

    fn upload(&self, gpu: &Gpu) -> Tensor {
        tensor_u32(gpu, [self.table.len(), self.per_seq], &self.table.concat())
    }

    /// The index of a head of a position in the cache [n_pages, n_kv_heads, page_size, head_dim].
    fn at(&self, seq: usize, pos: usize, [n_kv_heads, kv_head, head_dim]: [usize; 3]) -> usize {
        let page = self.table[seq][pos / self.page_size] as usize;
        ((page * n_kv_heads + kv_head) * self.page_size + pos % self.page_size) * head_dim
    }
}

/// Bits of cosine and sine of `n_rot / 2` angles of each position, and the angles.
fn rotary(gpu: &Gpu, ctx: usize, n_rot: usize, switches: Switches) -> Option<ops::Rotary> {
    let Switches { interleaved, temperature } = switches;
    let bits = |f: f64| (f as f32).to_bits();
    let table: Vec<u32> = (0..ctx)
        .flat_map(|pos| (0..n_rot / 2).map(move |i| angle(pos, i, n_rot)))
        .flat_map(|a| [bits(a.cos()), bits(a.sin())])
        .collect();
    let cos_sin = (n_rot > 0).then(|| tensor_u32(gpu, [ctx, n_rot], &table));
    cos_sin.map(|cos_sin| ops::Rotary { cos_sin, n_rot, interleaved, temperature })
}

/// How queries and keys are rotated.
#[derive(Clone, Copy, Debug)]
struct Switches {
    interleaved: bool,
    temperature: Option<Temperature>,
}

fn angle(pos: usize, i: usize, n_rot: usize) -> f64 {
    pos as f64 * 100f64.powf(-2.0 * i as f64 / n_rot.max(1) as f64)
}

const KV: [Dtype; 3] = KvLayer::DTYPES;

/// The value of every slot that was not written.
const UNTOUCHED: f32 = 7.0;

/// A cache with `data` [n_pages, width] in keys and values, and the values as they were rounded.
fn cache(
    gpu: &Gpu,
    dtype: Dtype,
    [n_pages, width]: [usize; 2],
    data: [&[f32]; 2],
) -> (KvLayer, [Vec<f32>; 2]) {
    let cache = KvLayer::new(gpu, 0, n_pages, width, dtype).expect("it fits");
    let rounded = [(&cache.k, data[0]), (&cache.v, data[1])].map(|(tensor, data)| {
        let mut bytes: Vec<u8> = Vec::new();
        let mut values = Vec::new();
        match dtype {
            Dtype::F16 => {
                bytes.extend(data.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()));
                values.extend(data.iter().map(|x| round(dtype, *x)));
            }
            // Four scales, then four blocks.
            Dtype::Q8_0 => data.chunks(4 * 32).for_each(|blocks| {
                let most = |m: f32, x: &f32| if x.is_nan() { *x } else { m.max(x.abs()) };
                let scales: Vec<f32> =
                    blocks.chunks(32).map(|block| block.iter().fold(0f32, most) / 127.0).collect();
                bytes.extend(scales.iter().flat_map(|d| d.to_le_bytes()));
                for (x, d) in blocks.iter().enumerate().map(|(i, x)| (x, scales[i / 32])) {
                    let q = if d > 0.0 { (x / d).round_ties_even() } else { 0.0 };
                    bytes.push(q as i8 as u8);
                    values.push(d * q);
                }
            }),
            _ => {
                bytes.extend(data.iter().flat_map(|x| x.to_le_bytes()));
                values.extend(data);
            }
        }
        tensor.write(gpu, 0, &bytes);
        values
    });
    (cache, rounded)
}

/// Keys or values read back, in any type.
fn read_cache(gpu: &Gpu, dtype: Dtype, tensor: &Tensor) -> Vec<f32> {
    let words = gpu.read_words(tensor).expect("it reads back");
    match dtype {
        Dtype::F16 => {
            let halves: &[half::f16] = bytemuck::cast_slice(&words);
            halves[..tensor.n_rows() * tensor.n_cols()].iter().map(|h| h.to_f32()).collect()
        }
        Dtype::Q8_0 => {
            let blocks = |blocks: &[u32]| {
                let quants: &[i8] = bytemuck::cast_slice(&blocks[4..]);
                let value = |(i, q): (usize, &i8)| f32::from_bits(blocks[i / 32]) * f32::from(*q);
                quants.iter().enumerate().map(value).collect::<Vec<f32>>()
            };
            words[..tensor.n_rows() * tensor.n_cols()].chunks(36).flat_map(blocks).collect()
        }
        _ => bytemuck::cast_slice(&words)[..tensor.n_rows() * tensor.n_cols()].to_vec(),
    }
}

/// The error of rounding a value of at most `largest` to a cache of `dtype`.
fn cache_tolerance(dtype: Dtype, largest: f64) -> Tolerance {
    let eps = match dtype {
        Dtype::F16 => half::f16::EPSILON.to_f32(),
        // Half a step of 127; the tolerance has a factor of four.
        Dtype::Q8_0 => 0.5 / 127.0 / 4.0 * 1.01,
        _ => f32::EPSILON,
    };
    Tolerance { eps, n_terms: if dtype == Dtype::Q8_0 { 1 } else { 3 }, scale: largest }
}

/// Queries, keys and values of `qkv` [rows, (n_heads + 2·n_kv_heads)·head_dim] in f64, in their places.
fn appended(
    pages: &Pages,
    qkv: &[Vec<f64>],
    places: &[(usize, usize)],
    [n_heads, n_kv_heads, head_dim]: [usize; 3],
    n_rot: usize,
    Switches { interleaved, temperature }: Switches,
) -> [Vec<f64>; 3] {
    let mut q = Vec::new();
    let mut k = vec![f64::from(UNTOUCHED); pages.n_pages * n_kv_heads * pages.page_size * head_dim];
    let mut v = k.clone();
    for (x, &(seq, pos)) in qkv.iter().zip(places) {
        let angles: Vec<f64> = (0..n_rot / 2).map(|i| angle(pos, i, n_rot)).collect();
        for (h, head) in x.chunks(head_dim).enumerate() {
            let turned = exact::rope(head, &angles, interleaved);
            let at = |kv_head| pages.at(seq, pos, [n_kv_heads, kv_head, head_dim]);
            if h < n_heads {
                let tempered = temperature.filter(|_| n_rot > 0);
                let factor =
                    tempered.map_or(1.0, |t| exact::temperature(pos, t.beta.into(), t.original as usize));
                q.extend(turned.iter().map(|x| x * factor));
            } else if h < n_heads + n_kv_heads {
                k[at(h - n_heads)..][..head_dim].copy_from_slice(&turned);
            } else {
                v[at(h - n_heads - n_kv_heads)..][..head_dim].copy_from_slice(head);
            }
        }
    }
    [q, k, v]
}

/// `n_rows` different places of three sequences.
fn some_places(rng: &mut Rng, n_rows: usize, ctx: usize) -> Vec<(usize, usize)> {
    let mut places: Vec<(usize, usize)> = (0..3 * ctx).map(|i| (i / ctx, i % ctx)).collect();
    rng.shuffle(&mut places);
    places.truncate(n_rows);
    places
}

/// Rows, query heads, key-value heads, head_dim, rotated dimensions, positions per page.
const APPENDED: [[usize; 6]; 8] = [
    [1, 1, 1, 8, 8, 16],
    [3, 4, 2, 16, 6, 5],
    [17, 3, 1, 64, 64, 16],
    [5, 14, 2, 80, 32, 7],
    [2, 9, 3, 128, 128, 16],
    [4, 2, 1, 24, 0, 4],
    [3, 3, 3, 12, 0, 5],
    [5, 2, 1, 20, 20, 16],
];

#[test]
fn rope_append() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(10);
    for [n_rows, n_heads, n_kv_heads, head_dim, n_rot, page_size] in APPENDED {
        let tempered = Temperature { beta: 0.7, original: 6 };
        let cases = [(KV[0], false, None), (KV[1], true, None), (KV[2], true, Some(tempered))];
        for (dtype, interleaved, temperature) in
            cases.into_iter().chain([(Dtype::F16, false, Some(tempered))])
        {
            let switches = Switches { interleaved, temperature };
            if dtype == Dtype::Q8_0 && !head_dim.is_multiple_of(32) {
                continue; // refused when the cache is allocated
            }
            let what = format!("rope_append {n_rows}×{n_heads}×{n_kv_heads}×{head_dim} {dtype} {switches:?}");
            let (n_seqs, ctx) = (3, 41);
            let pages = Pages::new(&mut rng, n_seqs, ctx, page_size);
            let places = some_places(&mut rng, n_rows, ctx);
            let flat: Vec<u32> = places.iter().flat_map(|&(s, p)| [s as u32, p as u32]).collect();
            let n_cols = (n_heads + 2 * n_kv_heads) * head_dim;
            let xs = rng.normals(n_rows * n_cols, 1.0);
            let rotary = rotary(&gpu, ctx, n_rot, switches);
            let (rows, table) = (tensor_u32(&gpu, [n_rows, 2], &flat), pages.upload(&gpu));
            let x = tensor_f32(&gpu, [n_rows, n_cols], &xs);
            let q = filled(&gpu, [n_rows, n_heads * head_dim], f32::NAN);
            let shape = [pages.n_pages, n_kv_heads * page_size * head_dim];
            let untouched = vec![UNTOUCHED; shape[0] * shape[1]];
            let (cache, _) = cache(&gpu, dtype, shape, [&untouched; 2]);
            let heads = [n_heads, n_kv_heads, head_dim];
            let places_of = Places { rows: &rows, pages: &table, page_size };
            let to = RopeAppend { rotary: rotary.as_ref(), heads, places: places_of, q: &q, cache: &cache };
            run(&gpu, |rec| {
                for range in [0..n_rows / 3, n_rows / 3..n_rows] {
                    ops::rope_append(rec, &x, to, range);
                }
            });
            let [want_q, want_k, want_v] =
                appended(&pages, &rows_f64(&xs, n_cols), &places, heads, n_rot, switches);
            assert_close(&what, &read(&gpu, &q), &want_q, Tolerance::f32(3, largest(&want_q)));
            let tolerance = cache_tolerance(dtype, 7.0);
            assert_close(&what, &read_cache(&gpu, dtype, &cache.k), &want_k, tolerance);
            assert_close(&what, &read_cache(&gpu, dtype, &cache.v), &want_v, tolerance);
        }
    }
}

/// A batch of decode rows and prompt rows, projected, rotated and appended, with and without a norm.
#[test]
fn qkv() {
    for gpu in gpus().into_iter().chain(hardware()) {
        let mut rng = Rng::new(17);
        for (i, [n_rows, n_heads, n_kv_heads, head_dim, n_rot, page_size]) in APPENDED.into_iter().enumerate()
        {
            for (j, dtype) in WEIGHTS.into_iter().enumerate().filter(|(j, _)| (i + j) % 4 == 0) {
                let kv_dtype = if head_dim.is_multiple_of(32) { KV[(i + j) % 3] } else { KV[(i + j) % 2] };
                let (normed, bias, interleaved) = (j % 3 > 0, j % 4 < 2, j % 5 == 1);
                let temperature = (j % 5 > 2).then_some(Temperature { beta: 0.7, original: 6 });
                let switches = Switches { interleaved, temperature };
                let what = format!(
                    "qkv {n_rows}×{n_heads}×{n_kv_heads}×{head_dim} {n_rot} {dtype} cache {kv_dtype} norm {normed} \
                     bias {bias} {switches:?}"
                );
                let (n_in, ctx) = ([37, 96, 270, 65, 129, 8, 31, 50][i], 41);
                let heads = [n_heads, n_kv_heads, head_dim];
                let n_cols = (n_heads + 2 * n_kv_heads) * head_dim;
                let pages = Pages::new(&mut rng, 3, ctx, page_size);
                let places = some_places(&mut rng, n_rows, ctx);
                let flat: Vec<u32> = places.iter().flat_map(|&(s, p)| [s as u32, p as u32]).collect();
                let xs = rng.normals(n_rows * n_in, 1.0);
                let scale = (n_in as f32).powf(-0.5);
                let (w, ws) = upload(&gpu, dtype, [n_cols, n_in], &rng.normals(n_cols * n_in, scale));
                let (gs, bs) = (rng.normals(n_in, 1.0), rng.normals(n_cols, 1.0));
                let (eps, offset) = (0.1, (i % 2) as f32);
                let norm = RmsNorm { w: tensor_f32(&gpu, [1, n_in], &gs), eps, offset };
                let h = filled(&gpu, [n_rows, n_in], f32::NAN);
                let x = tensor_f32(&gpu, [n_rows, n_in], &xs);
                let input = Input { x: &x, norm: normed.then_some((&norm, &h)) };
                let b = tensor_f32(&gpu, [1, n_cols], &bs);
                let rotary = rotary(&gpu, ctx, n_rot, switches);
                let (rows, table) = (tensor_u32(&gpu, [n_rows, 2], &flat), pages.upload(&gpu));
                let room = filled(&gpu, [n_rows, n_cols], f32::NAN);
                let q = filled(&gpu, [n_rows, n_heads * head_dim], f32::NAN);
                let shape = [pages.n_pages, n_kv_heads * page_size * head_dim];
                let untouched = vec![UNTOUCHED; shape[0] * shape[1]];
                let (cache, _) = cache(&gpu, kv_dtype, shape, [&untouched; 2]);
                let places_of = Places { rows: &rows, pages: &table, page_size };
                let n = Rows { n_decode: n_rows / 3, n_prompt: n_rows - n_rows / 3 };
                let to =
                    RopeAppend { rotary: rotary.as_ref(), heads, places: places_of, q: &q, cache: &cache };
                let product = Affine::new(input, &w, bias.then_some(&b));
                run(&gpu, |rec| ops::qkv(rec, Qkv { product, head_norm: None, projected: &room, to }, n));

                let (ws, gs, bs) = (rows_f64(&ws, n_in), to_f64(&gs), to_f64(&bs));
                let row = |x: &Vec<f64>| {
                    let normed_x = exact::rms_norm(x, &gs, f64::from(eps), f64::from(offset));
                    exact::linear(if normed { &normed_x } else { x }, &ws, bias.then_some(&bs))
                };
                let projected: Vec<Vec<f64>> = rows_f64(&xs, n_in).iter().map(row).collect();
                let [want_q, want_k, want_v] = appended(&pages, &projected, &places, heads, n_rot, switches);
                let tolerance = product_tolerance(&gpu, n_in + 8, largest(&want_q).max(1.0));
                assert_close(&what, &read(&gpu, &q), &want_q, tolerance);
                let most = largest(&want_k).max(largest(&want_v));
                let mut tolerance = cache_tolerance(kv_dtype, most);
                if kv_dtype == Dtype::F32 || gpu.caps().f16_products() {
                    let product = product_tolerance(&gpu, n_in + 8, most);
                    tolerance = if product.value() > tolerance.value() { product } else { tolerance };
                }
                assert_close(&what, &read_cache(&gpu, kv_dtype, &cache.k), &want_k, tolerance);
                assert_close(&what, &read_cache(&gpu, kv_dtype, &cache.v), &want_v, tolerance);
            }
        }
    }
}

#[test]
fn gate_up() {
    for gpu in gpus().into_iter().chain(hardware()) {
        let mut rng = Rng::new(18);
        for (i, [n_rows, n_in, n_out]) in PRODUCTS.into_iter().enumerate() {
            // Every second type at each shape, because compiling variants takes most of the time.
            for (j, dtype) in WEIGHTS.into_iter().enumerate().filter(|(j, _)| (i + j) % 4 == 2) {
                let (act, exact_act) = ACTS[(i + j) % 5];
                let (gated, bias, normed) = (i % 4 > 0, j % 4 < 2, i % 3 > 0);
                check_gate_up(
                    &gpu,
                    &mut rng,
                    [n_rows, n_in, n_out],
                    dtype,
                    (act, exact_act),
                    [gated, bias, normed],
                );
            }
        }
    }
    // Gate and up in different bindings.
    if let Some(gpu) = narrow() {
        let flags = [true, true, true];
        check_gate_up(&gpu, &mut Rng::new(19), [5, 100, 65], Dtype::F16, ACTS[0], flags);
    }
}

fn check_gate_up(
    gpu: &Gpu,
    rng: &mut Rng,
    [n_rows, n_in, n_out]: [usize; 3],
    dtype: Dtype,
    (act, exact_act): (Act, Function),
    [gated, bias, normed]: [bool; 3],
) {
    let what =
        format!("gate_up {n_rows}×{n_in}×{n_out} {dtype} {act:?} gated {gated} bias {bias} norm {normed}");
    let n_up = if gated { 2 * n_out } else { n_out };
    let xs = rng.normals(n_rows * n_in, 1.0);
    let (w, ws) = upload(gpu, dtype, [n_up, n_in], &rng.normals(n_up * n_in, (n_in as f32).powf(-0.5)));
    let (gs, bs) = (rng.normals(n_in, 1.0), rng.normals(n_up, 1.0));
    let (eps, offset) = (0.1, (n_rows % 2) as f32);
    let norm = RmsNorm { w: tensor_f32(gpu, [1, n_in], &gs), eps, offset };
    let h = filled(gpu, [n_rows, n_in], f32::NAN);
    let x = tensor_f32(gpu, [n_rows, n_in], &xs);
    let input = Input { x: &x, norm: normed.then_some((&norm, &h)) };
    let b = tensor_f32(gpu, [1, n_up], &bs);
    let up = filled(gpu, [n_rows, n_up], f32::NAN);
    let y = filled(gpu, [n_rows, n_out], f32::NAN);
    let n = Rows { n_decode: n_rows / 3, n_prompt: n_rows - n_rows / 3 };
    let product = Affine::new(input, &w, bias.then_some(&b));
    run(gpu, |rec| ops::gate_up(rec, act, product, &up, &y, n));

    let (ws, gs, bs) = (rows_f64(&ws, n_in), to_f64(&gs), to_f64(&bs));
    let row = |x: &Vec<f64>| {
        let normed_x = exact::rms_norm(x, &gs, f64::from(eps), f64::from(offset));
        let up = exact::linear(if normed { &normed_x } else { x }, &ws, bias.then_some(&bs));
        if gated { exact::gate(exact_act, &up) } else { up.into_iter().map(exact_act).collect() }
    };
    let want: Vec<f64> = rows_f64(&xs, n_in).iter().flat_map(row).collect();
    assert_close(&what, &read(gpu, &y), &want, product_tolerance(gpu, n_in + 8, largest(&want).max(2.0)));
    assert_padding_is_zero(gpu, &y);
}

/// gpt-oss's gate, in both kernels that have one: gates beyond its limit, and the other half beyond both of its limits.
#[test]
fn clamped_gate() {
    for gpu in gpus() {
        let mut rng = Rng::new(47);
        for [n_rows, n_in, n_out] in [[1, 31, 3], [3, 70, 17], [13, 131, 66]] {
            let (xs, n_up) = (rng.normals(n_rows * n_in, 1.0), 2 * n_out);
            let scale = 5.0 * (n_in as f32).powf(-0.5);
            let (w, ws) = upload(&gpu, Dtype::F16, [n_up, n_in], &rng.normals(n_up * n_in, scale));
            let (x, up) = (tensor_f32(&gpu, [n_rows, n_in], &xs), filled(&gpu, [n_rows, n_up], f32::NAN));
            let [fused, apart] = [(); 2].map(|()| filled(&gpu, [n_rows, n_out], f32::NAN));
            let (n, product) = (Rows { n_decode: n_rows, n_prompt: 0 }, Affine::new(&x, &w, None));
            run(&gpu, |rec| {
                ops::gate_up(rec, Act::Clamped, product, &up, &fused, n);
                ops::linear(rec, product, false, &up, n);
                ops::gate(rec, Act::Clamped, &up, &apart, 0..n_rows);
            });
            let ws = rows_f64(&ws, n_in);
            let row = |x: &Vec<f64>| exact::clamped_gate(&exact::linear(x, &ws, None));
            let want: Vec<f64> = rows_f64(&xs, n_in).iter().flat_map(row).collect();
            for y in [fused, apart] {
                let what = format!("clamped gate {n_rows}×{n_in}×{n_out}");
                assert_close(&what, &read(&gpu, &y), &want, Tolerance::f32(n_in + 8, largest(&want)));
                assert_padding_is_zero(&gpu, &y);
            }
        }
    }
}

#[test]
fn route() {
    for gpu in gpus() {
        let mut rng = Rng::new(43);
        for (i, [n_rows, n_experts, k]) in
            [[1, 1, 1], [3, 5, 2], [7, 128, 8], [2, 512, 16], [65, 33, 9], [200, 67, 4], [3, 70, 64]]
                .into_iter()
                .enumerate()
        {
            let mut logits = rng.normals(n_rows * n_experts, 3.0);
            // Ties in every row, of the largest in some.
            for row in logits.chunks_mut(n_experts) {
                let (a, b, c) = (rng.below(n_experts), rng.below(n_experts), rng.below(n_experts));
                (row[a], row[b]) = (row[c], row[c]);
                if a % 3 == 0 {
                    (row[a], row[b]) = (9.0, 9.0);
                }
            }
            let x = tensor_f32(&gpu, [n_rows, n_experts], &logits);
            let exact_rows = rows_f64(&logits, n_experts);
            for (sigmoid, normalised) in [(false, true), (false, false), (true, true), (true, false)] {
                let mut routes = Routes::new(&gpu, n_rows, n_experts, k).expect("it fits");
                routes.weights = filled(&gpu, [n_rows, k], f32::NAN);
                let scoring = Scoring { sigmoid, normalised };
                run(&gpu, |rec| {
                    ops::route(rec, scoring, &x, &routes, n_rows);
                });
                let row = |z: &Vec<f64>| exact::route(z, k, sigmoid, normalised);
                let want: Vec<(usize, f64)> = exact_rows.iter().flat_map(row).collect();
                let what = format!("route {n_rows}×{n_experts} to {k} {scoring:?}");
                let ids: Vec<u32> = want.iter().map(|(e, _)| *e as u32).collect();
                assert_eq!(read_u32(&gpu, &routes.ids), ids, "{what}");
                let weights: Vec<f64> = want.iter().map(|(_, weight)| *weight).collect();
                if i > 0 {
                    assert_close(
                        &what,
                        &read(&gpu, &routes.weights),
                        &weights,
                        Tolerance::f32(n_experts, 1.0),
                    );
                } else if normalised {
                    assert_eq!(read(&gpu, &routes.weights), [1.0], "{what}");
                }
                assert_padding_is_zero(&gpu, &routes.weights);
            }
        }
        // Whatever the logits are, experts exist and differ; what is no number stays so.
        let logits = [f32::NAN, 1.0, f32::INFINITY, -f32::NAN, f32::NEG_INFINITY, f32::NAN, 0.0];
        let routes = Routes::new(&gpu, 1, 7, 3).expect("it fits");
        let x = tensor_f32(&gpu, [1, 7], &logits);
        run(&gpu, |rec| {
            ops::route(rec, Scoring { sigmoid: false, normalised: true }, &x, &routes, 1);
        });
        let mut ids = read_u32(&gpu, &routes.ids);
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.len() == 3 && ids.iter().all(|e| *e < 7), "{ids:?}");
        assert!(read(&gpu, &routes.weights).iter().all(|weight| weight.is_nan()));
    }
}

#[test]
fn group() {
    for gpu in gpus() {
        let mut rng = Rng::new(44);
        for [n_rows, n_experts, k, size] in
            [[1, 1, 1, 4], [2, 7, 3, 1], [9, 5, 2, 4], [65, 128, 8, 64], [200, 67, 3, 32], [700, 3, 1, 64]]
        {
            let mut ids = experts_of_rows(&mut rng, n_rows, n_experts, k);
            if n_experts == 3 {
                // All rows choose one.
                ids.fill(1);
            }
            let table = tensor_u32(&gpu, [n_rows, k], &ids);
            let routes = Routes::of(&gpu, table, n_experts).expect("it fits");
            let first = n_rows / 3;
            let mut n_blocks = 0;
            run(&gpu, |rec| {
                // What another span has left there does not matter.
                ops::group(rec, &routes, 0..n_rows, 1);
                n_blocks = ops::group(rec, &routes, first..n_rows, size);
            });
            let words = read_u32(&gpu, &routes.lists);
            let blocks = words[..3 * n_blocks].chunks(3);
            let mut got = vec![Vec::new(); n_experts];
            for block in blocks {
                let [expert, first, n] = [block[0], block[1], block[2]].map(|n| n as usize);
                assert!(n <= size && (n == size || words[first + n..].len() < words.len()), "{block:?}");
                got[expert].push(words[first..first + n].to_vec());
            }
            let what = format!("group {n_rows}×{k} of {n_experts} by {size}");
            for (e, pairs) in exact::group(&ids[first * k..], n_experts).into_iter().enumerate() {
                let pairs: Vec<u32> = pairs.into_iter().map(|p| (first * k + p) as u32).collect();
                assert_eq!(got[e].concat(), pairs, "{what}: expert {e}");
                // Only the last block may be short.
                let full = got[e].iter().filter(|block| !block.is_empty());
                assert_eq!(full.count(), pairs.len().div_ceil(size), "{what}: expert {e}");
            }
        }
    }
}

/// For each row `k` different experts; of more than four, no row chooses the last, and most choose the first.
fn experts_of_rows(rng: &mut Rng, n_rows: usize, n_experts: usize, k: usize) -> Vec<u32> {
    let n = if n_experts > 4.max(k) { n_experts - 1 } else { n_experts };
    let row = |_| {
        let mut all: Vec<u32> = (0..n as u32).collect();
        rng.shuffle(&mut all);
        if let Some(at) = all.iter().position(|e| *e == 0).filter(|at| at % 4 > 0) {
            all.swap(0, at);
        }
        all.truncate(k);
        all
    };
    (0..n_rows).flat_map(row).collect()
}

#[test]
fn combine() {
    for gpu in gpus() {
        let mut rng = Rng::new(45);
        // The last one has more than 65,535 workgroups.
        for [n_rows, n_cols, k] in [[1, 3, 1], [5, 67, 4], [9, 130, 16], [4099, 1027, 1]] {
            let mut routes = Routes::new(&gpu, n_rows, 20, k).expect("it fits");
            let (weights, ys) = (rng.normals(n_rows * k, 1.0), rng.normals(n_rows * k * n_cols, 1.0));
            let xs = rng.normals(n_rows * n_cols, 1.0);
            routes.weights = tensor_f32(&gpu, [n_rows, k], &weights);
            let (y, x) =
                (tensor_f32(&gpu, [n_rows * k, n_cols], &ys), tensor_f32(&gpu, [n_rows, n_cols], &xs));
            run(&gpu, |rec| ops::combine(rec, &routes, &y, &x, n_rows));
            let (weights, ys) = (rows_f64(&weights, k), rows_f64(&ys, n_cols));
            let row = |(r, x): (usize, &Vec<f64>)| exact::combine(x, &weights[r], &ys[r * k..(r + 1) * k]);
            let want: Vec<f64> = rows_f64(&xs, n_cols).iter().enumerate().flat_map(row).collect();
            let what = format!("combine {n_rows}×{n_cols} of {k}");
            assert_close(&what, &read(&gpu, &x), &want, Tolerance::f32(k + 1, largest(&want)));
            assert_padding_is_zero(&gpu, &x);
        }
    }
}

/// Experts that no row chooses, and those that almost all choose; few rows and many.
#[test]
fn expert_linear() {
    // Rows, inputs, outputs, experts, experts per row.
    let shapes =
        [[1, 40, 13, 7, 2], [2, 65, 9, 5, 3], [9, 131, 17, 4, 1], [65, 31, 66, 9, 2], [200, 67, 5, 67, 3]];
    for gpu in gpus().into_iter().chain(hardware()) {
        let mut rng = Rng::new(46);
        for (i, shape) in shapes.into_iter().enumerate() {
            let dtypes = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_K];
            check_experts(&gpu, &mut rng, shape, &[dtypes[i]], [i % 2 == 0, i % 3 == 0]);
        }
        // All types at one shape.
        for (i, dtype) in WEIGHTS.into_iter().enumerate() {
            check_experts(&gpu, &mut rng, [23, 72, 19, 6, 2], &[dtype], [i % 2 == 0, i % 3 == 0]);
        }
        // Gate and up of different types.
        check_experts(&gpu, &mut rng, [11, 64, 19, 6, 2], &[Dtype::Q8_0, Dtype::F16], [true, true]);
    }
    // Weights in several ranges of whole experts.
    if let Some(gpu) = narrow() {
        let mut rng = Rng::new(48);
        check_experts(&gpu, &mut rng, [1, 65, 9, 13, 3], &[Dtype::F16], [true, true]);
        check_experts(&gpu, &mut rng, [5, 65, 9, 7, 2], &[Dtype::F16], [false, true]);
    }
}

fn check_experts(
    gpu: &Gpu,
    rng: &mut Rng,
    [n_rows, n_in, n_out, n_experts, k]: [usize; 5],
    dtypes: &[Dtype],
    [of_rows, bias]: [bool; 2],
) {
    let what = format!("experts {n_rows}×{n_in}×{n_out} {k} of {n_experts} {dtypes:?} {of_rows} bias {bias}");
    let n_pairs = n_rows * k;
    let ids = experts_of_rows(rng, n_rows, n_experts, k);
    let n_inputs = if of_rows { n_rows } else { n_pairs };
    let xs = rng.normals(n_inputs * n_in, 1.0);
    let scale = (n_in as f32).powf(-0.5);
    let (mut parts, mut exact_parts) = (Vec::new(), Vec::new());
    for dtype in dtypes {
        let values = rng.normals(n_experts * n_out * n_in, scale);
        // A tensor of whole experts has the same bytes.
        let (w, ws) = upload(gpu, *dtype, [n_experts * n_out, n_in], &values);
        let shape = [n_experts * n_out, n_in];
        let to = Tensor::experts(gpu, "test", shape, *dtype, n_out).expect("it fits");
        let words = gpu.read_words(&w).expect("it reads back");
        to.write(gpu, 0, bytemuck::cast_slice(&words));
        parts.push(to);
        exact_parts.push(rows_f64(&ws, n_in));
    }
    let n_all = n_out * dtypes.len();
    let bs = rng.normals(n_experts * n_all, 1.0);
    let b = tensor_f32(gpu, [1, n_experts * n_all], &bs);
    let table = tensor_u32(gpu, [n_rows, k], &ids);
    let routes = Routes::of(gpu, table, n_experts).expect("it fits");
    let x = tensor_f32(gpu, [n_inputs, n_in], &xs);
    let (xs, bs) = (rows_f64(&xs, n_in), to_f64(&bs));
    let pair = |p: usize| {
        let (e, x) = (ids[p] as usize, &xs[if of_rows { p / k } else { p }]);
        let rows =
            exact_parts.iter().flat_map(|w| w[e * n_out..(e + 1) * n_out].to_vec()).collect::<Vec<_>>();
        exact::linear(x, &rows, bias.then_some(&bs[e * n_all..(e + 1) * n_all]))
    };
    let want: Vec<f64> = (0..n_pairs).flat_map(pair).collect();
    let input = if of_rows { ExpertInput::Rows(&x) } else { ExpertInput::Pairs(&x) };
    let product = ExpertProduct { input, parts: &parts, bias: bias.then_some(&b) };
    let of = |n: Rows| {
        let y = filled(gpu, [n_pairs, n_all], f32::NAN);
        run(gpu, |rec| ops::expert_linear(rec, product, &routes.routed(), &y, n));
        assert_padding_is_zero(gpu, &y);
        read(gpu, &y)
    };
    let n = Rows { n_decode: n_rows / 3, n_prompt: n_rows - n_rows / 3 };
    assert_close(&what, &of(n), &want, product_tolerance(gpu, n_in + 1, largest(&want)));
    // The same bits in every batch: the first row alone, the first few, all.
    for is_prompt in [false, true] {
        let rows = |n| match is_prompt {
            true => Rows { n_decode: 0, n_prompt: n },
            false => Rows { n_decode: n, n_prompt: 0 },
        };
        let all = of(rows(n_rows));
        for n in [1, n_rows.div_ceil(7), n_rows.div_ceil(2)] {
            let n_values = n * k * n_all;
            let few = of(rows(n));
            assert_same_bits(&format!("{what}: {n} rows"), &few[..n_values], &all[..n_values]);
            assert!(few[n_values..].iter().all(|y| y.is_nan()), "{what}: other rows were written");
        }
    }
}

/// A little-endian reader of llama.cpp's GGUF files: the test needs their tensors, not the program.
struct Gguf {
    bytes: Vec<u8>,
    /// Name, dimensions (the row's length first), ggml's number of the type, place of the data.
    tensors: Vec<(String, Vec<usize>, u32, usize)>,
}

impl Gguf {
    fn open(path: &std::path::Path) -> Option<Gguf> {
        let bytes = std::fs::read(path).ok()?;
        let mut at = 8; // magic, version
        let u32_at = |at: &mut usize| {
            *at += 4;
            u32::from_le_bytes(bytes[*at - 4..*at].try_into().expect("four bytes"))
        };
        let u64_at = |at: &mut usize| {
            *at += 8;
            u64::from_le_bytes(bytes[*at - 8..*at].try_into().expect("eight bytes")) as usize
        };
        let string = |at: &mut usize| {
            let n = u64_at(at);
            *at += n;
            String::from_utf8_lossy(&bytes[*at - n..*at]).into_owned()
        };
        let (n_tensors, n_values) = (u64_at(&mut at), u64_at(&mut at));
        let skip = |kind: u32, at: &mut usize| match kind {
            0 | 1 | 7 => *at += 1,
            2 | 3 => *at += 2,
            4..=6 => *at += 4,
            8 => drop(string(at)),
            _ => *at += 8,
        };
        for _ in 0..n_values {
            string(&mut at);
            let kind = u32_at(&mut at);
            if kind == 9 {
                let kind = u32_at(&mut at);
                (0..u64_at(&mut at)).for_each(|_| skip(kind, &mut at));
            } else {
                skip(kind, &mut at);
            }
        }
        let mut tensors = Vec::new();
        for _ in 0..n_tensors {
            let name = string(&mut at);
            let n_dims = u32_at(&mut at);
            let dims = (0..n_dims).map(|_| u64_at(&mut at)).collect();
            tensors.push((name, dims, u32_at(&mut at), u64_at(&mut at)));
        }
        let data = at.next_multiple_of(32);
        tensors.iter_mut().for_each(|t| t.3 += data);
        Some(Gguf { bytes, tensors })
    }
}

/// The device quantises as llama.cpp's own quantiser does, if its files are present.
#[test]
fn quantize_as_llama_cpp_does() {
    let Some(gpu) = gpu() else { return };
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden/gguf");
    let Some(source) = Gguf::open(&dir.join("llama-f16.gguf")) else {
        say(&format!("skipped, `{}` is not here: quantize_as_llama_cpp_does", dir.display()));
        return;
    };
    for (file, dtype, number) in [
        ("llama-q8_0.gguf", Dtype::Q8_0, 8),
        ("llama-q4_0.gguf", Dtype::Q4_0, 2),
        ("llama-q4_k_m.gguf", Dtype::Q4_K, 12),
    ] {
        let theirs = Gguf::open(&dir.join(file)).expect("it is there like the other");
        let (mut n, mut same) = (0, 0);
        for (name, dims, _, at) in theirs.tensors.iter().filter(|t| t.2 == number) {
            let (_, _, kind, from) = source.tensors.iter().find(|t| t.0 == *name).expect("the same tensors");
            assert_eq!((dims.len(), *kind), (2, 1), "{name} is an F16 matrix");
            let (n_cols, n_rows) = (dims[0], dims[1].min(64));
            let halves = &source.bytes[*from..][..2 * n_cols * n_rows];
            let values: Vec<f32> =
                halves.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
            let (_, ours) = upload(&gpu, dtype, [n_rows, n_cols], &values);
            let row_bytes = match dtype {
                Dtype::Q8_0 => n_cols / 32 * 34,
                Dtype::Q4_0 => n_cols / 32 * 18,
                _ => n_cols / 256 * 144,
            };
            let want = theirs.bytes[*at..][..n_rows * row_bytes].chunks(row_bytes);
            let want: Vec<f32> = want.flat_map(|row| exact::quant::stored(dtype.name(), row)).collect();
            n += want.len();
            same += ours.iter().zip(&want).filter(|(a, b)| a == b).count();
        }
        say(&format!("{file}: {same} of {n} weights as llama.cpp has them"));
        // If the search finds two scales that are almost equally good, fused multiply-adds decide between them.
        let least = if dtype == Dtype::Q4_K { 980 } else { 999 };
        assert!(n > 1000 && same * 1000 >= n * least, "{file}: {same} of {n}");
    }
}

/// The device quantises by ggml's rules.
#[test]
fn quantize() {
    for gpu in gpus() {
        let mut rng = Rng::new(20);
        for [n_rows, n_cols] in [[1, 256], [3, 512], [5, 32], [2, 96], [7, 768], [1, 7]] {
            for dtype in Dtype::QUANTISED {
                let mut xs = rng.normals(n_rows * n_cols, 1.0);
                if n_cols > 32 {
                    // A block of zeros, a constant one, one with an outlier, and one of positive values.
                    xs[..32].fill(0.0);
                    xs[32..64].fill(-0.25);
                    xs[70] = 50.0;
                    if n_cols > 128 {
                        xs[96..128].iter_mut().for_each(|x| *x = x.abs() + 3.0);
                    }
                }
                let (_, got) = upload(&gpu, dtype, [n_rows, n_cols], &xs);
                let want: Vec<f32> = xs
                    .chunks(n_cols)
                    .flat_map(|row| {
                        let mut row = row.to_vec();
                        row.resize(n_cols.next_multiple_of(32), 0.0);
                        exact::quant::round(dtype.name(), &row)[..n_cols].to_vec()
                    })
                    .collect();
                let what = format!("quantize {n_rows}×{n_cols} {dtype}");
                // On a device, division and square root may be off by one unit in the last place, and so round a value to the other side.
                let same = got.iter().zip(&want).filter(|(g, w)| g == w).count();
                assert!(same * 100 >= got.len() * 98, "{what}: {same} of {} as ggml has them", got.len());
                let blocks = got.chunks(n_cols).flat_map(|row| row.chunks(32));
                let wanted = want.chunks(n_cols).flat_map(|row| row.chunks(32));
                for (got, want) in blocks.zip(wanted) {
                    let (low, high) = want.iter().fold((0f32, 0f32), |(l, h), w| (l.min(*w), h.max(*w)));
                    let step = (high - low) / if dtype == Dtype::Q8_0 { 127.0 } else { 8.0 };
                    for (g, w) in got.iter().zip(want) {
                        assert!((g - w).abs() <= step * 1.1, "{what}: {g} expected {w}");
                    }
                }
                assert!(want.iter().any(|w| *w != 0.0) && want != xs, "{what}: nothing was rounded");
            }
        }
    }
}

/// A batch for attention: each sequence has either one decode row or a chunk of its prompt.
#[derive(Clone, Debug)]
struct Batch {
    shape: ops::Attention,
    page_size: usize,
    dtype: Dtype,
    /// Position of each decode row, each of another sequence.
    decode: Vec<usize>,
    /// First position and number of rows of each chunk, each of another sequence.
    prompt: Vec<(usize, usize)>,
    max_seq_len: usize,
    has_sinks: bool,
}

impl Batch {
    /// Keys of a sequence with rows from `pos` on: as many as there are positions, or if queries see both sides some
    /// that have no row in the batch.
    fn n_keys(&self, seq: usize, (pos, n): (usize, usize)) -> usize {
        if self.shape.causal { pos + n } else { (pos + n + [5, 0, 31][seq % 3]).min(self.max_seq_len) }
    }

    /// The keys that a query at `pos` sees.
    fn visible(&self, pos: usize, n_keys: usize) -> std::ops::Range<usize> {
        match (self.shape.causal, self.shape.window) {
            (true, window) => (pos + 1).saturating_sub(window.unwrap_or(pos + 1))..pos + 1,
            (false, None) => 0..n_keys,
            (false, Some(window)) => pos.saturating_sub(window)..n_keys.min(pos + window + 1),
        }
    }
}

/// Queries, keys and values, which depend only on (sequence, position), so that batches can be compared.
struct Contents {
    seed: u64,
    size: f32,
}

impl Contents {
    fn row(&self, kind: u64, seq: u64, pos: usize, n: usize) -> Vec<f32> {
        Rng::new(self.seed ^ (kind << 60) ^ (seq << 32) ^ pos as u64).normals(n, self.size)
    }
}

/// Runs a batch: `names` are the sequences' names in `Contents`, decoding ones first. Returns what it should
/// give and what it gave, [rows, n_heads·head_dim].
fn attend(gpu: &Gpu, batch: &Batch, contents: &Contents, names: &[u64]) -> (Vec<f64>, Vec<f32>) {
    let Batch { shape, page_size, dtype, .. } = *batch;
    let ops::Attention { n_heads, n_kv_heads, head_dim, .. } = shape;
    let n_seqs = batch.decode.len() + batch.prompt.len();
    assert_eq!(names.len(), n_seqs);
    let mut rng = Rng::new(n_seqs as u64 + 11);
    let pages = Pages::new(&mut rng, n_seqs, batch.max_seq_len, page_size);

    let chunks: Vec<(usize, usize)> =
        batch.decode.iter().map(|&pos| (pos, 1)).chain(batch.prompt.iter().copied()).collect();
    let (mut rows, mut blocks) = (Vec::new(), Vec::new());
    let block_rows = shape.block_rows(gpu.caps());
    for (seq, &(pos, n)) in chunks.iter().enumerate() {
        let most = if seq < batch.decode.len() { 1 } else { block_rows };
        for first in (0..n).step_by(most) {
            blocks.push([(rows.len() + first) as u32, most.min(n - first) as u32]);
        }
        rows.extend((pos..pos + n).map(|p| [seq as u32, p as u32]));
    }

    let n_keys: Vec<usize> =
        chunks.iter().enumerate().map(|(seq, chunk)| batch.n_keys(seq, *chunk)).collect();
    let ends = tensor_u32(gpu, [1, n_seqs], &n_keys.iter().map(|n| *n as u32).collect::<Vec<_>>());

    // Slots that no query may see hold NaN.
    let cache_shape = [pages.n_pages, n_kv_heads * page_size * head_dim];
    let mut values = [(); 2].map(|()| vec![f32::NAN; cache_shape[0] * cache_shape[1]]);
    for (seq, &(pos, n)) in chunks.iter().enumerate() {
        let first = batch.visible(pos, n_keys[seq]).start;
        let last = batch.visible(pos + n - 1, n_keys[seq]).end;
        for p in first..last {
            for (kind, cache) in values.iter_mut().enumerate() {
                let row = contents.row(kind as u64, names[seq], p, n_kv_heads * head_dim);
                for (h, head) in row.chunks(head_dim).enumerate() {
                    let at = pages.at(seq, p, [n_kv_heads, h, head_dim]);
                    cache[at..at + head_dim].copy_from_slice(head);
                }
            }
        }
    }
    let q_cols = n_heads * head_dim;
    let qs: Vec<f32> = rows
        .iter()
        .flat_map(|&[seq, pos]| contents.row(2, names[seq as usize], pos as usize, q_cols))
        .collect();

    let n = Rows { n_decode: batch.decode.len(), n_prompt: rows.len() - batch.decode.len() };
    let q = tensor_f32(gpu, [rows.len(), q_cols], &qs);
    let (cache, rounded) = cache(gpu, dtype, cache_shape, [&values[0], &values[1]]);
    let o = filled(gpu, [rows.len(), q_cols], f32::NAN);
    let partial_shape = shape.partial_shape(gpu.caps(), n.n_decode.max(1), batch.max_seq_len);
    let plan = AttentionPlan {
        rows: &tensor_u32(gpu, [rows.len(), 2], rows.as_flattened()),
        blocks: &tensor_u32(gpu, [blocks.len(), 2], blocks.as_flattened()),
        pages: &pages.upload(gpu),
        page_size,
        ends: (!shape.causal).then_some(&ends),
        n,
        n_prompt_blocks: blocks.len() - n.n_decode,
        longest: n_keys[..batch.decode.len()].iter().copied().max().unwrap_or(0),
        partial: &filled(gpu, partial_shape, f32::NAN),
        max_seq_len: batch.max_seq_len,
    };
    // Some far below the scores, some far above.
    let sinks = batch.has_sinks.then(|| Rng::new(contents.seed + 12).normals(n_heads, 6.0));
    let sinks_tensor = sinks.as_ref().map(|sinks| tensor_f32(gpu, [1, n_heads], sinks));
    run(gpu, |rec| shape.launch(rec, &plan, &q, &cache, sinks_tensor.as_ref(), &o));

    let exact_shape = exact::Attention {
        n_heads,
        n_kv_heads,
        scale: shape.scale.into(),
        window: None, // the history is cut to what is visible
        softcap: shape.softcap.map(f64::from),
    };
    let sinks = sinks.as_deref().map(to_f64);
    let mut want = Vec::new();
    for (r, &[seq, pos]) in rows.iter().enumerate() {
        let visible = batch.visible(pos as usize, n_keys[seq as usize]);
        let history = |kind: usize| -> Vec<Vec<f64>> {
            let head =
                |p, h| &rounded[kind][pages.at(seq as usize, p, [n_kv_heads, h, head_dim])..][..head_dim];
            let row = |p| (0..n_kv_heads).flat_map(|h| to_f64(head(p, h))).collect();
            visible.clone().map(row).collect()
        };
        want.extend(exact::attention(
            exact_shape,
            &to_f64(&qs[r * q_cols..][..q_cols]),
            &history(0),
            &history(1),
            sinks.as_deref(),
        ));
    }
    (want, read(gpu, &o))
}

fn check_attention(gpu: &Gpu, batch: &Batch, size: f32) {
    let contents = Contents { seed: batch.max_seq_len as u64, size };
    let names: Vec<u64> = (0..(batch.decode.len() + batch.prompt.len()) as u64).collect();
    let (want, got) = attend(gpu, batch, &contents, &names);
    // A score's rounding error is a relative error of its weight; scores have about this size.
    let size = f64::from(size);
    let score = (f64::from(batch.shape.scale) * size * size * (batch.shape.head_dim as f64).sqrt()).max(1.0);
    let tolerance = if gpu.caps().f16_products() {
        // All factors are rounded to f16, but no sums.
        Tolerance { eps: half::f16::EPSILON.to_f32(), n_terms: 1, scale: score * largest(&want) }
    } else {
        Tolerance::f32(batch.shape.head_dim, 4.0 * score * largest(&want))
    };
    assert_close(&format!("{batch:?}"), &got, &want, tolerance);
}

fn attention_shape([n_heads, n_kv_heads, head_dim]: [usize; 3]) -> ops::Attention {
    let scale = 1.0 / (head_dim as f32).sqrt();
    ops::Attention { n_heads, n_kv_heads, head_dim, scale, causal: true, window: None, softcap: None }
}

/// Grouped-query ratios 1, 2, 3 and 7 with every width of heads.
const HEADS: [[usize; 3]; 7] =
    [[1, 1, 8], [4, 2, 16], [3, 1, 64], [14, 2, 80], [5, 5, 128], [6, 3, 24], [2, 2, 12]];

#[test]
fn attention() {
    for gpu in gpus() {
        for (i, heads) in HEADS.into_iter().enumerate() {
            check_batches(&gpu, i, heads);
        }
    }
    if let Some(gpu) = coop() {
        HEADS.into_iter().enumerate().for_each(|(i, heads)| check_batches(&gpu, i, heads));
    }
}

/// Every cache type that heads of this width can have.
fn cache_type(i: usize, head_dim: usize) -> Dtype {
    if head_dim.is_multiple_of(32) { KV[i % 3] } else { KV[i % 2] }
}

fn check_batches(gpu: &Gpu, i: usize, heads: [usize; 3]) {
    let dtype = cache_type(i + usize::from(gpu.caps().cpu), heads[2]);
    let base = Batch {
        shape: attention_shape(heads),
        page_size: [16, 12, 32][i % 3],
        dtype,
        decode: vec![],
        prompt: vec![],
        max_seq_len: 211,
        has_sinks: false,
    };
    // A single position; only decode rows; only prompts; both.
    check_attention(gpu, &Batch { decode: vec![0], max_seq_len: 1, ..base.clone() }, 1.0);
    check_attention(gpu, &Batch { prompt: vec![(0, 1)], max_seq_len: 1, ..base.clone() }, 1.0);
    check_attention(gpu, &Batch { decode: vec![15, 16, 100, 0, 17], ..base.clone() }, 1.0);
    let prompts = Batch { prompt: vec![(0, 37), (31, 18), (200, 3)], ..base.clone() };
    check_attention(gpu, &prompts, 1.0);
    // Scores with outliers, over many steps of keys.
    check_attention(gpu, &prompts, 4.0);
    let mixed = Batch { decode: vec![40, 3, 129], prompt: vec![(5, 21), (0, 2)], ..base.clone() };
    check_attention(gpu, &mixed, 1.0);
    // Scores with outliers.
    check_attention(gpu, &mixed, 4.0);
    let windowed = |window| ops::Attention { window: Some(window), ..base.shape };
    for window in [1, 19] {
        check_attention(gpu, &Batch { shape: windowed(window), ..mixed.clone() }, 1.0);
    }
    // Sinks, also beside a window, and where a row sees only its own key.
    let sinks = Batch { has_sinks: true, ..mixed.clone() };
    check_attention(gpu, &sinks, 1.0);
    check_attention(gpu, &Batch { shape: windowed(19), ..sinks.clone() }, 4.0);
    check_attention(gpu, &Batch { has_sinks: true, ..prompts.clone() }, 4.0);
    check_attention(gpu, &Batch { decode: vec![0], max_seq_len: 1, has_sinks: true, ..base.clone() }, 1.0);
    let capped = ops::Attention { softcap: Some(2.5), scale: 1.5, ..base.shape };
    check_attention(gpu, &Batch { shape: capped, ..mixed.clone() }, 1.0);
    check_attention(gpu, &Batch { shape: capped, ..sinks.clone() }, 1.0);
    // Keys on both sides.
    for window in [None, Some(1), Some(19)] {
        let both = ops::Attention { causal: false, window, ..base.shape };
        check_attention(gpu, &Batch { shape: both, ..mixed.clone() }, 1.0);
        check_attention(gpu, &Batch { shape: both, ..prompts.clone() }, 4.0);
    }
}

/// Decode rows of different lengths, so that some have one split of the keys and others several.
#[test]
fn attention_splits() {
    for gpu in gpus() {
        HEADS.into_iter().enumerate().for_each(|(i, heads)| check_splits(&gpu, i, heads));
    }
    // Hardware has shorter splits, by the number of key-value heads.
    if let Some(gpu) = hardware() {
        [[3, 1, 64], [5, 5, 128]].into_iter().enumerate().for_each(|(i, heads)| check_splits(&gpu, i, heads));
    }
}

fn check_splits(gpu: &Gpu, i: usize, heads: [usize; 3]) {
    let dtype = cache_type(i + 1, heads[2]);
    let base = Batch {
        shape: attention_shape(heads),
        page_size: 16,
        dtype,
        decode: vec![511, 3, 1200, 512, 700],
        prompt: vec![(530, 7)],
        max_seq_len: 1300,
        has_sinks: false,
    };
    check_attention(gpu, &base, 1.0);
    check_attention(gpu, &Batch { has_sinks: true, ..base.clone() }, 1.0);
    let windowed = ops::Attention { window: Some(300), ..base.shape };
    check_attention(gpu, &Batch { shape: windowed, has_sinks: true, ..base.clone() }, 1.0);
    for (causal, window) in [(true, Some(300)), (false, None), (false, Some(300))] {
        let shape = ops::Attention { causal, window, ..base.shape };
        check_attention(gpu, &Batch { shape, ..base.clone() }, 1.0);
    }
}

#[test]
fn softmax() {
    for gpu in reducing() {
        let mut rng = Rng::new(12);
        for [n_rows, n_cols] in [[1, 1], [3, 7], [1, 8], [5, 64], [2, 257], [7, 1031]] {
            for (log, filtered) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut xs = rng.normals(n_rows * n_cols, 4.0);
                if n_cols > 8 {
                    // Outliers, ties, and tokens that a mask forbids.
                    for row in xs.chunks_mut(n_cols) {
                        row[3] = 60.0;
                        row[5] = 60.0;
                        row[6] = f32::NEG_INFINITY;
                        row[7] = f32::MIN;
                    }
                }
                let keep: Vec<[f32; 2]> = xs.chunks(n_cols).map(|row| [1.25, row[0]]).collect();
                let keep = if filtered { keep } else { vec![[1.0, f32::NEG_INFINITY]; n_rows] };
                let bits: Vec<u32> = keep.as_flattened().iter().map(|f| f.to_bits()).collect();
                let filters = tensor_u32(&gpu, [n_rows, 2], &bits);
                let x = tensor_f32(&gpu, [n_rows, n_cols], &xs);
                let y = filled(&gpu, [n_rows, n_cols], f32::NAN);
                let filters = filtered.then_some(&filters);
                run(&gpu, |rec| ops::softmax(rec, &x, filters, log, &y, n_rows));

                let row = |(x, [scale, floor]): (&[f32], &[f32; 2])| {
                    let masked = |x: &f32| {
                        if x >= floor { f64::from(*x) * f64::from(*scale) } else { f64::NEG_INFINITY }
                    };
                    let z: Vec<f64> = x.iter().map(masked).collect();
                    if log { exact::log_softmax(&z) } else { exact::softmax(&z) }
                };
                let mut want: Vec<f64> = xs.chunks(n_cols).zip(&keep).flat_map(row).collect();
                let mut got = read(&gpu, &y);
                let what = format!("softmax {n_rows}×{n_cols} log {log} filtered {filtered}");
                for (g, w) in got.iter_mut().zip(&mut want) {
                    if *w < -1e30 {
                        assert!(*g < -1e30 && g.is_finite(), "{what}: {g} expected the lowest number");
                        (*g, *w) = (0.0, 0.0);
                    }
                }
                if n_cols > 1 {
                    // An exponent's rounding error is relative to its size, here up to 100.
                    let scale = if log { largest(&want) } else { 100.0 * largest(&want) };
                    assert_close(&what, &got, &want, Tolerance::f32(n_cols, scale));
                } else {
                    assert_eq!(got[0], if log { 0.0 } else { 1.0 });
                }
                assert_padding_is_zero(&gpu, &y);
            }
        }
    }
}

#[test]
fn token_logprob() {
    for gpu in reducing() {
        let mut rng = Rng::new(15);
        for [n_seqs, n_before, n_rows, n_vocab, ctx] in [
            [1, 0, 3, 7, 5],
            [2, 3, 5, 64, 9],
            [3, 1, 17, 257, 31],
            [2, 2, 11, 1031, 6],
            [1, 0, 3, 50_021, 4],
        ] {
            let n_all = n_before + n_rows;
            let mut zs = rng.normals(n_all * n_vocab, 4.0);
            // An outlier, and a token that is forbidden.
            for row in zs.chunks_mut(n_vocab).step_by(2) {
                row[n_vocab / 2] = 60.0;
                row[n_vocab / 3] = f32::MIN;
            }
            let tokens: Vec<u32> = (0..n_seqs * ctx).map(|_| rng.below(n_vocab) as u32).collect();
            // A row of z belongs to row index[r] of the batch, which belongs to a sequence and a position of it.
            let mut index: Vec<u32> = (0..n_all as u32).collect();
            rng.shuffle(&mut index);
            let places: Vec<[u32; 2]> =
                (0..n_all).map(|_| [rng.below(n_seqs) as u32, rng.below(ctx - 1) as u32]).collect();
            let next = |r: usize| {
                let [seq, pos] = places[index[r] as usize];
                tokens[seq as usize * ctx + pos as usize + 1] as usize
            };
            let z = tensor_f32(&gpu, [n_all, n_vocab], &zs);
            let rows = tensor_u32(&gpu, [n_all, 2], places.as_flattened());
            let (list, table) =
                (tensor_u32(&gpu, [1, n_all], &index), tensor_u32(&gpu, [n_seqs, ctx], &tokens));
            let y = filled(&gpu, [1, n_rows + 2], 99.0);
            run(&gpu, |rec| ops::token_logprob(rec, &rows, &list, &table, &z, n_before..n_all, &y));
            let z = rows_f64(&zs, n_vocab);
            let want: Vec<f64> = (n_before..n_all).map(|r| exact::token_logprob(&z[r], next(r))).collect();
            let got = read(&gpu, &y);
            let what = format!("token_logprob {n_before}+{n_rows}×{n_vocab}");
            assert_close(&what, &got[..n_rows], &want, Tolerance::f32(n_vocab, largest(&want)));
            assert_eq!(got[n_rows..], [99.0, 99.0], "{what}: written beyond its rows");
        }
    }
}

#[test]
fn top_k() {
    for gpu in reducing() {
        let mut rng = Rng::new(13);
        for [n_rows, n_cols, k, most] in [
            [1, 1, 1, 1],
            [3, 7, 7, 9],
            [5, 64, 0, 4],
            [2, 257, 20, 20],
            [7, 1031, 5, 20],
            [1, 50_021, 20, 20],
            // More than always fit in the list that the kernel narrows a row down to.
            [1, 3001, 400, 400],
        ] {
            // Few different values, so that there are ties; and forbidden tokens.
            let mut xs: Vec<f32> = (0..n_rows * n_cols).map(|_| rng.below(40) as f32 * 0.5 - 10.0).collect();
            for row in xs.chunks_mut(n_cols).filter(|row| row.len() < 10) {
                row[1..].iter_mut().step_by(2).for_each(|x| *x = f32::MIN);
            }
            let chosen: Vec<u32> = (0..n_rows).map(|_| rng.below(n_cols) as u32).collect();
            let x = tensor_f32(&gpu, [n_rows, n_cols], &xs);
            let y = tensor_u32(&gpu, [n_rows, 2 * (1 + most)], &vec![99; n_rows * 2 * (1 + most)]);
            let list = tensor_u32(&gpu, [1, n_rows], &chosen);
            run(&gpu, |rec| ops::top_k(rec, &x, &list, k, &y, n_rows));
            let row = |(x, c): (&[f32], &u32)| {
                let best = exact::top_k(&to_f64(x), k);
                let columns = std::iter::once(*c as usize).chain(best);
                let mut row: Vec<u32> = columns.flat_map(|c| [c as u32, x[c].to_bits()]).collect();
                row.resize(2 * (1 + most), 99);
                row
            };
            let want: Vec<u32> = xs.chunks(n_cols).zip(&chosen).flat_map(row).collect();
            assert_eq!(read_u32(&gpu, &y), want, "top_k {k} of {n_rows}×{n_cols}");
        }
        // Every digit decides, and only columns do.
        for (n_cols, step) in [(3001, 0.0), (3001, 1e-7), (50_021, 1e-7), (50_021, 0.0)] {
            let xs: Vec<f32> = (0..n_cols).map(|i| 100.0 + (i * 389 % n_cols) as f32 * step).collect();
            let (x, list) = (tensor_f32(&gpu, [1, n_cols], &xs), tensor_u32(&gpu, [1, 1], &[0]));
            let y = zeros(&gpu, [1, 42], Dtype::U32);
            run(&gpu, |rec| ops::top_k(rec, &x, &list, 20, &y, 1));
            let best: Vec<usize> =
                read_u32(&gpu, &y).chunks(2).skip(1).map(|pair| pair[0] as usize).collect();
            assert_eq!(best, exact::top_k(&to_f64(&xs), 20), "{n_cols} columns {step} apart");
        }
        // If fewer than k tokens are allowed, the forbidden ones follow in the order of the columns.
        let xs = [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY];
        let (x, list) = (tensor_f32(&gpu, [1, 5], &xs), tensor_u32(&gpu, [1, 1], &[3]));
        let y = zeros(&gpu, [1, 12], Dtype::U32);
        run(&gpu, |rec| ops::top_k(rec, &x, &list, 5, &y, 1));
        let columns: Vec<u32> = read_u32(&gpu, &y).into_iter().step_by(2).collect();
        assert_eq!(columns, [3, 3, 1, 0, 2, 4]);
    }
}

#[test]
fn penalize() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(14);
    for [n_seqs, n_vocab, n_prompt, most_bias] in [[1, 7, 3, 1], [3, 131, 40, 5], [5, 1031, 300, 12]] {
        let z = rng.normals(n_seqs * n_vocab, 3.0);
        // A row of z belongs to row index[r] of the batch, which belongs to a sequence.
        let index: Vec<u32> = (0..n_seqs as u32).rev().collect();
        let places: Vec<u32> = (0..n_seqs as u32).flat_map(|r| [(r + 1) % n_seqs as u32, 50 + r]).collect();
        let seq = |r: usize| places[2 * index[r] as usize] as usize;
        let prompts: Vec<u32> = (0..n_seqs * n_prompt).map(|_| rng.below(n_vocab) as u32).collect();
        let drawn: Vec<u32> =
            (0..n_seqs * n_vocab).map(|_| if rng.below(3) == 0 { rng.below(5) as u32 } else { 0 }).collect();
        let record = |seq: usize| ops::SamplingRecord {
            repetition_penalty: 1.3 + seq as f32,
            presence_penalty: 0.5,
            frequency_penalty: -0.25,
            n_bias: (seq % (most_bias + 1)) as u32,
            counts: u32::from(seq != 1),
            ..bytemuck::Zeroable::zeroed()
        };
        let records: Vec<ops::SamplingRecord> = (0..n_seqs).map(record).collect();
        let mut biases = Vec::new();
        for _ in 0..n_seqs {
            let mut ids: Vec<usize> = (0..n_vocab).collect();
            rng.shuffle(&mut ids);
            biases.push(ids[..most_bias].iter().map(|t| (*t, rng.normal() * 50.0)).collect::<Vec<_>>());
        }
        let pairs: Vec<u32> = biases.concat().iter().flat_map(|(t, b)| [*t as u32, b.to_bits()]).collect();

        let tokens = tensor_u32(&gpu, [n_seqs, n_prompt], &prompts);
        let rows = tensor_u32(&gpu, [n_seqs, 2], &places);
        let list = tensor_u32(&gpu, [1, n_seqs], &index);
        let sampling = tensor_u32(&gpu, [n_seqs, 12], bytemuck::cast_slice(&records));
        let bias = tensor_u32(&gpu, [n_seqs, 2 * most_bias], &pairs);
        let counts = tensor_u32(&gpu, [n_seqs, n_vocab], &vec![77; n_seqs * n_vocab]);
        let logits = tensor_f32(&gpu, [n_seqs, n_vocab], &z);
        run(&gpu, |rec| {
            for seq in 0..n_seqs {
                // The last `seq` tokens are those of a prompt no more.
                ops::count_prompt(rec, &tokens, &counts, seq, [n_prompt - seq, n_prompt - seq]);
            }
        });
        let mut in_prompt = vec![false; n_seqs * n_vocab];
        for seq in 0..n_seqs {
            for t in &prompts[seq * n_prompt..][..n_prompt - seq] {
                in_prompt[seq * n_vocab + *t as usize] = true;
            }
        }
        let marks: Vec<u32> = in_prompt.iter().map(|p| if *p { 1 << 31 } else { 0 }).collect();
        assert_eq!(read_u32(&gpu, &counts), marks, "count_prompt");
        // What was generated before is counted, once for each time.
        let counted: Vec<u32> = prompts
            .chunks(n_prompt)
            .flat_map(|ids| exact::count_prompt(ids, n_prompt / 2, n_vocab))
            .collect();
        run(&gpu, |rec| {
            for seq in 0..n_seqs {
                ops::count_prompt(rec, &tokens, &counts, seq, [n_prompt / 2, n_prompt]);
            }
        });
        assert_eq!(read_u32(&gpu, &counts), counted, "count_prompt with generated tokens");

        let both: Vec<u32> = marks.iter().zip(&drawn).map(|(m, d)| m | d).collect();
        counts.write(&gpu, 0, bytemuck::cast_slice(&both));
        let draws = Draws { rows: &rows, index: &list, sampling: &sampling, counts: &counts };
        run(&gpu, |rec| ops::penalize(rec, draws, &bias, &logits, n_seqs));
        let row = |r: usize| {
            let (seq, z) = (seq(r), to_f64(&z[r * n_vocab..][..n_vocab]));
            let record = records[seq];
            let list: Vec<(usize, f64)> =
                biases[seq][..record.n_bias as usize].iter().map(|(t, b)| (*t, f64::from(*b))).collect();
            let (prompt, counts) = if record.counts == 1 {
                (in_prompt[seq * n_vocab..][..n_vocab].to_vec(), drawn[seq * n_vocab..][..n_vocab].to_vec())
            } else {
                (vec![false; n_vocab], vec![0; n_vocab])
            };
            let s = exact::Sampling {
                repetition_penalty: record.repetition_penalty.into(),
                presence_penalty: record.presence_penalty.into(),
                frequency_penalty: record.frequency_penalty.into(),
                ..exact::Sampling::GREEDY
            };
            exact::penalize(&z, s, &prompt, &counts, &list)
        };
        let want: Vec<f64> = (0..n_seqs).flat_map(row).collect();
        let what = format!("penalize {n_seqs}×{n_vocab}");
        assert_close(&what, &read(&gpu, &logits), &want, Tolerance::f32(4, largest(&want)));
    }
}

/// A row's product has the same bits in every batch.
#[test]
fn linear_rows_do_not_depend_on_the_batch() {
    for gpu in gpus().into_iter().chain(coop()) {
        let mut rng = Rng::new(15);
        let (n_in, n_out, most) = (203, 67, 75);
        let xs = rng.normals(most * n_in, 1.0);
        for dtype in WEIGHTS {
            let (w, _) = upload(&gpu, dtype, [n_out, n_in], &rng.normals(n_out * n_in, 1.0));
            let x = tensor_f32(&gpu, [most, n_in], &xs);
            let product = |n: Rows| {
                let y = filled(&gpu, [most, n_out], f32::NAN);
                run(&gpu, |rec| ops::linear(rec, Affine::new(&x, &w, None), false, &y, n));
                read(&gpu, &y)[..n.count() * n_out].to_vec()
            };
            let decoded = product(Rows { n_decode: 13, n_prompt: 0 });
            for n_decode in [1, 2, 5, 8] {
                let few = product(Rows { n_decode, n_prompt: 3 });
                let n = n_decode * n_out;
                assert_same_bits(&format!("{n_decode} decoding rows"), &few[..n], &decoded[..n]);
            }
            let prompt = product(Rows { n_decode: 0, n_prompt: most });
            for n_decode in [1, 7, 60] {
                let chunk = product(Rows { n_decode, n_prompt: 11 });
                let (from, to) = (n_decode * n_out, (n_decode + 11) * n_out);
                assert_same_bits(&format!("rows after {n_decode}"), &chunk[from..to], &prompt[from..to]);
            }
        }
    }
}

/// A row's attention has the same bits however its prompt is cut, whatever else is in the
/// batch, and whether longer sequences make other rows split their keys.
#[test]
fn attention_rows_do_not_depend_on_the_batch() {
    for gpu in gpus().into_iter().chain(coop().or_else(hardware)) {
        check_attention_rows(&gpu);
    }
}

fn check_attention_rows(gpu: &Gpu) {
    for heads in [[3, 1, 64], [2, 2, 16], [7, 1, 8]] {
        for (window, has_sinks) in [(None, false), (Some(37), false), (None, true), (Some(37), true)] {
            let shape = ops::Attention { window, ..attention_shape(heads) };
            let n_cols = heads[0] * heads[2];
            let batch = Batch {
                shape,
                page_size: 16,
                dtype: Dtype::F16,
                decode: vec![],
                prompt: vec![],
                max_seq_len: 1300,
                has_sinks,
            };
            let contents = Contents { seed: 16, size: 1.0 };
            let one = |batch: &Batch, names: &[u64]| attend(gpu, batch, &contents, names).1;

            let whole = one(&Batch { prompt: vec![(0, 45)], ..batch.clone() }, &[9]);
            for cut in [1, 13, 16, 44] {
                let two = Batch { prompt: vec![(0, cut), (cut, 45 - cut)], ..batch.clone() };
                assert_same_bits(&format!("cut at {cut}"), &one(&two, &[9, 9]), &whole);
            }
            let mixed = one(&Batch { decode: vec![80], prompt: vec![(7, 20)], ..batch.clone() }, &[3, 9]);
            assert_same_bits("behind another row", &mixed[n_cols..], &whole[7 * n_cols..27 * n_cols]);

            let alone = one(&Batch { decode: vec![300], ..batch.clone() }, &[5]);
            let beside = one(&Batch { decode: vec![1250, 300, 600], ..batch.clone() }, &[1, 5, 2]);
            assert_same_bits("one split of several", &beside[n_cols..2 * n_cols], &alone);
            let alone = one(&Batch { decode: vec![700], ..batch.clone() }, &[5]);
            let beside = one(&Batch { decode: vec![700, 1250, 3], ..batch.clone() }, &[5, 1, 2]);
            assert_same_bits("two splits of three", &beside[..n_cols], &alone);

            if has_sinks {
                continue; // only causal attention has them
            }
            // The fourth sequence has as many keys as the first.
            let batch = Batch { shape: ops::Attention { causal: false, ..shape }, ..batch };
            let alone = one(&Batch { prompt: vec![(0, 45)], ..batch.clone() }, &[9]);
            let beside = Batch { prompt: vec![(0, 9), (2, 1), (0, 50), (0, 45)], ..batch.clone() };
            let beside = one(&beside, &[1, 2, 3, 9]);
            assert_same_bits("both sides", &beside[60 * n_cols..], &alone);
        }
    }
}

/// The values of a tensor of weights, in any type, and whether its padding is zero.
fn read_weights(gpu: &Gpu, w: &Tensor) -> (Vec<f32>, bool) {
    let words = gpu.read_words(w).expect("it reads back");
    let all: Vec<f32> = match w.dtype() {
        Dtype::F16 => bytemuck::cast_slice::<_, half::f16>(&words).iter().map(|h| h.to_f32()).collect(),
        Dtype::BF16 => bytemuck::cast_slice::<_, half::bf16>(&words).iter().map(|h| h.to_f32()).collect(),
        _ => bytemuck::cast_slice(&words).to_vec(),
    };
    let rows = || all.chunks(w.stride()).take(w.n_rows());
    let values = rows().flat_map(|row| row[..w.n_cols()].to_vec()).collect();
    (values, rows().all(|row| row[w.n_cols()..].iter().all(|x| *x == 0.0)))
}

#[test]
fn fill_normal() {
    let check = |gpu: &Gpu, shape: [usize; 2], dtype: Dtype, seed: u32, mean: f32, scale: f32| {
        let w = Tensor::weights(gpu, "w", shape, dtype).expect("it fits");
        run(gpu, |rec| ops::fill_normal(rec, &w, seed, mean, scale));
        let (got, padding_is_zero) = read_weights(gpu, &w);
        let element = |i: usize| {
            let (r, c) = ((i / shape[1]) as u32, (i % shape[1]) as u32);
            exact::fill_normal(seed, r, c, mean.into(), scale.into())
        };
        let want: Vec<f64> = (0..shape[0] * shape[1]).map(element).collect();
        let what = format!("fill_normal {shape:?} {dtype}");
        let eps = match dtype {
            Dtype::F16 => half::f16::EPSILON.to_f32(),
            Dtype::BF16 => half::bf16::EPSILON.to_f32(),
            _ => f32::EPSILON,
        };
        // A unit in the last place is a quarter of what the comparison allows for four.
        assert_close(&what, &got, &want, Tolerance { eps, n_terms: 1, scale: largest(&want) / 2.0 });
        assert!(padding_is_zero, "{what}: padding was written");
        got
    };
    let Some(gpu) = gpu() else { return };
    for (i, shape) in [[1, 1], [3, 7], [5, 64], [13, 131], [2, 1027]].into_iter().enumerate() {
        for dtype in WEIGHTS.into_iter().filter(|dtype| !dtype.is_quantised()) {
            check(&gpu, shape, dtype, i as u32, i as f32 - 2.0, 0.5);
        }
    }
    let values = to_f64(&check(&gpu, [211, 307], Dtype::F32, 9, 0.0, 1.0));
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let var = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    assert!(mean.abs() < 4.0 / n.sqrt() && (var - 1.0).abs() < 8.0 / n.sqrt(), "mean {mean}, variance {var}");
    // More than 65,535 workgroups, and several ranges of rows.
    check(&gpu, [65_539, 257], Dtype::F16, 3, 0.0, 1.0);
    if let Some(gpu) = narrow() {
        check(&gpu, [331, 61], Dtype::BF16, 4, 1.0, 0.1);
    }
}

#[test]
fn probe_copy() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(17);
    for shape in [[1, 1], [3, 65], [13, 1031], [517, 4099]] {
        let xs = rng.normals(shape[0] * shape[1], 1.0);
        let (x, y) = (tensor_f32(&gpu, shape, &xs), filled(&gpu, shape, f32::NAN));
        run(&gpu, |rec| ops::probe_copy(rec, &x, &y));
        assert_same_bits(&format!("probe_copy {shape:?}"), &read(&gpu, &y), &xs);
    }
}

#[test]
fn probe_fma() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(18);
    for (shape, n_steps) in [([1, 1], 8), ([3, 65], 0), ([13, 131], 200), ([70, 257], 16)] {
        let xs = rng.normals(shape[0] * shape[1], 1.0);
        let (x, y) = (tensor_f32(&gpu, shape, &xs), filled(&gpu, shape, f32::NAN));
        run(&gpu, |rec| ops::probe_fma(rec, &x, &y, n_steps, [0.75, 0.5]));
        let want: Vec<f64> = xs.iter().map(|x| exact::probe_fma((*x).into(), n_steps, [0.75, 0.5])).collect();
        if n_steps > 100 {
            // It has reached the fixed point.
            assert!(read(&gpu, &y).iter().zip(&want).all(|(y, w)| (f64::from(*y) - w).abs() < 1e-5));
        } else {
            let what = format!("probe_fma {shape:?} {n_steps} steps");
            assert_close(&what, &read(&gpu, &y), &want, Tolerance::f32(n_steps + 1, largest(&want)));
        }
    }
}

#[test]
fn unfold() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(31);
    for ([first, n_in, n_channels], stride) in
        [([0, 1, 1], 1), ([3, 7, 5], 1), ([2, 9, 80], 2), ([0, 64, 33], 2), ([1, 130, 7], 1)]
    {
        let x = rng.normals((first + n_in + 2) * n_channels, 1.0);
        let n_rows = n_in.div_ceil(stride);
        let input = tensor_f32(&gpu, [first + n_in + 2, n_channels], &x);
        let y = filled(&gpu, [n_rows, 3 * n_channels], f32::NAN);
        run(&gpu, |rec| ops::unfold(rec, &input, first, n_in, stride, &y));
        let rows: Vec<Vec<f64>> = x.chunks(n_channels).skip(first).take(n_in).map(to_f64).collect();
        let want: Vec<f64> = (0..n_rows).flat_map(|t| exact::unfold(&rows, stride, t)).collect();
        assert_eq!(to_f64(&read(&gpu, &y)), want, "unfold {n_in} rows of {n_channels} by {stride}");
        assert!(n_in == 1 || want.iter().any(|w| *w != 0.0));
    }
}

#[test]
fn attention_weights() {
    for gpu in reducing() {
        for (i, heads) in HEADS.into_iter().enumerate() {
            check_attention_weights(&gpu, heads, cache_type(i, heads[2]));
        }
    }
}

/// Prompt rows of two sequences with arbitrary numbers of keys, after decode rows.
fn check_attention_weights(gpu: &Gpu, [n_heads, n_kv_heads, head_dim]: [usize; 3], dtype: Dtype) {
    let mut rng = Rng::new(32);
    let (page_size, n_keys) = (16, [37, 300]);
    let rows: [[u32; 2]; 5] = [[1, 9], [0, 2], [1, 0], [1, 1], [0, 3]];
    let n = Rows { n_decode: 1, n_prompt: 4 };
    let pages = Pages::new(&mut rng, 2, 300, page_size);
    let shape = [pages.n_pages, n_kv_heads * page_size * head_dim];
    let keys = rng.normals(shape[0] * shape[1], 1.0);
    let (cache, [keys, _]) = cache(gpu, dtype, shape, [&keys, &keys]);
    let q_cols = n_heads * head_dim;
    let qs = rng.normals(rows.len() * q_cols, 2.0);
    let (q, ends) = (tensor_f32(gpu, [5, q_cols], &qs), tensor_u32(gpu, [1, 2], &n_keys.map(|n| n as u32)));
    let p = filled(gpu, [5, 7 + 300], f32::NAN);
    let attention = ops::Attention { causal: false, ..attention_shape([n_heads, n_kv_heads, head_dim]) };
    let table = tensor_u32(gpu, [5, 2], rows.as_flattened());
    let plan = AttentionPlan {
        rows: &table,
        blocks: &table,
        pages: &pages.upload(gpu),
        page_size,
        ends: Some(&ends),
        n,
        n_prompt_blocks: 0,
        longest: 300,
        partial: &table,
        max_seq_len: 300,
    };
    let head = n_heads - 1;
    let to = HeadWeights { head, p: &p, first: 7 };
    run(gpu, |rec| ops::attention_weights(rec, &attention, &plan, &q, &cache, to));
    let got = read(gpu, &p);
    assert!(got[..307].iter().all(|p| p.is_nan()), "a row that decodes is left alone");
    for (r, [seq, _]) in rows.into_iter().enumerate().skip(1) {
        let key = |pos: usize| {
            let at = pages.at(seq as usize, pos, [n_kv_heads, head * n_kv_heads / n_heads, head_dim]);
            to_f64(&keys[at..at + head_dim])
        };
        let keys: Vec<Vec<f64>> = (0..n_keys[seq as usize]).map(key).collect();
        let query = to_f64(&qs[r * q_cols + head * head_dim..][..head_dim]);
        let want = exact::attention_weights(attention.scale.into(), &query, &keys);
        let got = &got[r * 307 + 7..][..keys.len()];
        // A score's rounding error is a relative error of its weight; scores have about this size.
        let tolerance = Tolerance::f32(head_dim, 16.0 * largest(&want));
        assert_close(&format!("attention_weights, row {r}, {dtype}"), got, &want, tolerance);
    }
}

#[test]
fn speech_rules() {
    let forbidden = -1e30;
    for gpu in reducing() {
        let mut rng = Rng::new(33);
        for n_vocab in [57, 1031, 51_865] {
            let first = n_vocab * 2 / 3;
            let (end, no_timestamps) = (first - 9, first - 1);
            let text = |rng: &mut Rng| rng.below(end);
            let time = |i: usize| first + i;
            let (a, b, c) = (text(&mut rng), text(&mut rng), text(&mut rng));
            // No token yet; a segment begun, in its text, ended, followed by a new one; two segments; an end after a timestamp.
            let histories: [Vec<usize>; 9] = [
                vec![],
                vec![time(2)],
                vec![time(2), a],
                vec![time(2), a, b, time(5)],
                vec![time(2), a, time(5), time(5)],
                vec![time(0), a, time(5), time(7), b, c],
                vec![time(0), a, time(5), time(7), b, time(7)],
                vec![a, b],
                vec![a],
            ];
            let n_prompt = 3;
            for (boost, max_initial) in [(0.0, Some(4)), (4.0, Some(1)), (-30.0, None)] {
                let n_seqs = histories.len() + 2;
                let mut z = rng.normals(n_seqs * n_vocab, 3.0);
                // Timestamps together more probable than text, or less.
                z.chunks_mut(n_vocab).for_each(|row| row[first..].iter_mut().for_each(|z| *z += boost));
                let rules = |seq: usize| exact::SpeechRules {
                    end,
                    suppress_first: vec![a, end],
                    timestamps: (seq != 1).then_some(exact::TimestampRules {
                        first,
                        no_timestamps,
                        max_initial,
                    }),
                };
                let history = |seq: usize| if seq < 2 { &histories[0] } else { &histories[seq - 2] };
                let record = |seq: usize| ops::SpeechRecord {
                    on: u32::from(seq != 0),
                    prompt_len: n_prompt as u32,
                    end: end as u32,
                    timestamps: u32::from(seq != 1),
                    first: first as u32,
                    no_timestamps: no_timestamps as u32,
                    max_initial: max_initial.map_or(u32::MAX, |n| n as u32),
                    pad: 0,
                    suppress_first: [a as u32, end as u32, u32::MAX, u32::MAX],
                };
                let records: Vec<ops::SpeechRecord> = (0..n_seqs).map(record).collect();
                let ctx = 12;
                let tokens: Vec<u32> = (0..n_seqs)
                    .flat_map(|seq| {
                        let mut row = vec![first as u32 + 30; n_prompt];
                        row.extend(history(seq).iter().map(|t| *t as u32));
                        row.resize(ctx, first as u32 + 40); // of an earlier request
                        row
                    })
                    .collect();
                // Rows of z in another order than sequences.
                let index: Vec<u32> = (0..n_seqs as u32).rev().collect();
                let places: Vec<u32> = (0..n_seqs)
                    .flat_map(|seq| [seq as u32, (n_prompt + history(seq).len() - 1) as u32])
                    .collect();
                let logits = tensor_f32(&gpu, [n_seqs, n_vocab], &z);
                run(&gpu, |rec| {
                    ops::speech_rules(
                        rec,
                        &tensor_u32(&gpu, [n_seqs, 2], &places),
                        &tensor_u32(&gpu, [1, n_seqs], &index),
                        &tensor_u32(&gpu, [n_seqs, 12], bytemuck::cast_slice(&records)),
                        &tensor_u32(&gpu, [n_seqs, ctx], &tokens),
                        &logits,
                        n_seqs,
                    );
                });
                let got = read(&gpu, &logits);
                let mut seen = [0, 0];
                for r in 0..n_seqs {
                    let seq = index[r] as usize;
                    let z = to_f64(&z[r * n_vocab..][..n_vocab]);
                    let want = if seq == 0 { z } else { exact::speech_rules(&z, history(seq), &rules(seq)) };
                    let want: Vec<f64> = want.iter().map(|z| z.max(f64::from(forbidden as f32))).collect();
                    let got = to_f64(&got[r * n_vocab..][..n_vocab]);
                    let differs = got.iter().zip(&want).position(|(g, w)| g != w);
                    assert_eq!(differs, None, "{n_vocab} tokens, boost {boost}, after {:?}", history(seq));
                    seen[0] += want.iter().filter(|z| **z < -1e29).count();
                    seen[1] += want.iter().filter(|z| **z > -1e29).count();
                }
                assert!(seen[0] > n_vocab && seen[1] > n_vocab, "rules that do nothing: {seen:?}");
            }
        }
    }
}
