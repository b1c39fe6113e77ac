//! Many texts through an encoder, in batches.

use crate::engine::{EngineError, Output, TextEncoder};

/// What an encoder made of many texts, in their order.
#[derive(Clone, Debug, Default)]
pub struct Encodings {
    /// The embedding of each text, or its logits, one a label.
    pub values: Vec<Vec<f32>>,
    /// Tokens of each text, those around it included.
    pub n_tokens: Vec<usize>,
    /// Tokens that were cut from each text because the model reads no more.
    pub n_cut: Vec<usize>,
}

impl Encodings {
    /// How many texts were cut, and how many tokens they lost together.
    pub fn cut(&self) -> (usize, usize) {
        (self.n_cut.iter().filter(|n| **n > 0).count(), self.n_cut.iter().sum())
    }
}

/// Computes the embeddings of `texts`, or the logits of the encoder's classification head. `progress` hears how many of
/// them are done. It waits, and so needs a device of our own: a guest calls [`TextEncoder::submit`] for each of what
/// [`TextEncoder::tokenize`] returns.
///
/// # Errors
/// What [`TextEncoder::tokenize`] and [`TextEncoder::submit`] refuse, [`EngineError::OutputNotFinite`],
/// [`EngineError::Gpu`].
pub fn encode(
    encoder: &mut TextEncoder,
    texts: &[impl AsRef<str>],
    output: Output,
    progress: &mut dyn FnMut(usize),
) -> Result<Encodings, EngineError> {
    let tokenized = texts.iter().map(|text| encoder.tokenize(text.as_ref()));
    let (token_ids, n_cut): (Vec<Vec<u32>>, Vec<usize>) =
        tokenized.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let n_tokens: Vec<usize> = token_ids.iter().map(Vec::len).collect();
    let values = encode_tokens(encoder, token_ids, output, progress)?;
    Ok(Encodings { values, n_tokens, n_cut })
}

/// As [`encode`], for texts that are token ids already.
///
/// # Errors
/// As [`encode`].
pub fn encode_tokens(
    encoder: &mut TextEncoder,
    mut token_ids: Vec<Vec<u32>>,
    output: Output,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<f32>>, EngineError> {
    // Longest first: texts of a batch are about as long as each other, and what is too large shows at once.
    let mut order: Vec<usize> = (0..token_ids.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(token_ids[*i].len()));
    let mut index_of = std::collections::HashMap::with_capacity(order.len());
    for i in order {
        match encoder.submit(std::mem::take(&mut token_ids[i]), output) {
            Ok(id) => {
                index_of.insert(id, i);
            }
            Err(error) => {
                index_of.keys().for_each(|id| encoder.cancel(*id));
                return Err(error);
            }
        }
    }
    let mut values = vec![Vec::new(); token_ids.len()];
    let (mut n_done, mut failed) = (0, None);
    encoder.run(|encoded| {
        let Some(i) = index_of.get(&encoded.id) else { return };
        match encoded.values {
            Ok(found) => values[*i] = found,
            Err(error) => failed = Some(error),
        }
        n_done += 1;
        progress(n_done);
    })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(values),
    }
}

/// A temperature for [`label_scores`]: sentence embeddings are trained with cosines times 20 as logits (the `scale` of
/// sentence-transformers' `MultipleNegativesRankingLoss`).
pub const COSINE_TEMPERATURE: f64 = 0.05;

/// How well each of `labels` describes each of `texts`, by an embedder that was not trained for it: the cosine between the
/// embeddings of text and label over `temperature`, `[n_texts][n_labels]`. The softmax of a text's scores is the
/// probability of each label. Returns the texts' embeddings too. It waits, as [`encode`] does.
///
/// Radford et al. 2021, section 3.1.2, whose labels are texts and whose inputs are pictures.
///
/// # Errors
/// As [`encode`].
pub fn label_scores(
    encoder: &mut TextEncoder,
    texts: &[impl AsRef<str>],
    labels: &[impl AsRef<str>],
    temperature: f64,
    progress: &mut dyn FnMut(usize),
) -> Result<(Vec<Vec<f64>>, Encodings), EngineError> {
    let named = encode(encoder, labels, Output::Embedding, &mut |_| {})?;
    let encodings = encode(encoder, texts, Output::Embedding, progress)?;
    let score = |text: &[f32], label: &[f32]| f64::from(cosine(text, label)) / temperature;
    let row = |text: &Vec<f32>| named.values.iter().map(|label| score(text, label)).collect();
    Ok((encodings.values.iter().map(row).collect(), encodings))
}

/// The cosine of the angle between two embeddings of the same model; 0 where one is all zeros.
///
/// # Panics
/// If their lengths differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "embeddings of one model have one length");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths) as f32 } else { 0.0 }
}
