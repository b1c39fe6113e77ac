//! `cargo bench --bench embeddings [-- FOLDER…]`: a thousand short texts through an encoder, in one call, and in one call
//! per text. The difference is the overhead of calls: large on a card or for a small model, small where arithmetic is
//! slow. Default: the small classifier of the tests.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{EncoderOptions, Output, TextEncoder};
use wginfer::gpu::{Gpu, GpuOptions};
use wginfer::tasks::{self, Encoding, TaskError};

const N_TEXTS: usize = 1000;

/// Texts as long as headlines: 3 to 12 token ids each.
fn texts(vocab_size: usize) -> Vec<Vec<u32>> {
    // The multiples of a large prime look random.
    let id = |i: usize| ((i as u64 * 2_654_435_761) % vocab_size as u64) as u32;
    (0..N_TEXTS).map(|i| (0..3 + i * 7 % 10).map(|j| id(1 + 13 * i + j)).collect()).collect()
}

fn timed(
    encode: impl FnOnce() -> wginfer::Result<Vec<Encoding>>,
) -> wginfer::Result<(Duration, Vec<Encoding>)> {
    let begin = Instant::now();
    let values = encode()?;
    Ok((begin.elapsed(), values))
}

fn main() -> wginfer::Result<()> {
    // Cargo adds `--bench`.
    let folders: Vec<PathBuf> =
        std::env::args().skip(1).filter(|a| !a.starts_with('-')).map(Into::into).collect();
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert-classifier");
    let folders = if folders.is_empty() { vec![small] } else { folders };
    let gpu = Gpu::open(&GpuOptions::default())?;
    for folder in folders {
        let checkpoint = ModelFiles::open(&folder)?;
        let mut encoder = TextEncoder::load(&gpu, checkpoint, EncoderOptions::default(), &mut |_| {})?;
        let texts = texts(encoder.shape().vocab_size);
        let mut encode = |texts: &[Vec<u32>]| {
            let rows = tasks::encode_tokens(&mut encoder, texts.to_vec(), Output::Embedding, &mut |_| {})?;
            rows.into_iter().collect::<Result<Vec<Encoding>, TaskError>>()
        };
        // Software devices compile a kernel at its first dispatch.
        encode(&texts)?;
        texts[..50].iter().try_for_each(|text| encode(std::slice::from_ref(text)).map(drop))?;
        let (at_once, together) = timed(|| Ok(encode(&texts)?))?;
        let (each, alone) = timed(|| {
            let one = |text| Ok(encode(std::slice::from_ref(text))?.swap_remove(0));
            texts.iter().map(one).collect()
        })?;
        assert_eq!(together, alone, "a text does not depend on its company");
        let n_tokens: usize = texts.iter().map(Vec::len).sum();
        println!(
            "{}, {}: {N_TEXTS} texts, {n_tokens} tokens: one call {:.2} s, a call each {:.2} s, {:.1} times as long",
            gpu.info().name,
            folder.display(),
            at_once.as_secs_f64(),
            each.as_secs_f64(),
            each.as_secs_f64() / at_once.as_secs_f64()
        );
    }
    Ok(())
}
