//! GGUF files.

mod common;

use common::Rng;
use common::reference::quant;
use wginfer::dtype::Dtype;
use wginfer::weights::ggml::{self, GgmlType};

fn quantised() -> impl Iterator<Item = Dtype> {
    Dtype::WEIGHTS.into_iter().filter(|dtype| dtype.is_quantised())
}

/// A row on the device has the values of the stored one.
#[test]
fn rows_keep_their_values() {
    let mut rng = Rng::new(1);
    for dtype in quantised() {
        let kind = GgmlType::from_name(dtype.name()).expect("a type of ggml");
        assert_eq!(kind.dtype(), Some(dtype));
        for n_blocks in [1, 2, 3, 7, 8, 9, 17, 40] {
            let n = n_blocks * kind.block;
            let row: Vec<u8> = (0..n_blocks * kind.block_bytes).map(|_| rng.bits() as u8).collect();
            let mut packed = vec![0; dtype.bytes(n)];
            ggml::repack(dtype, &row, &mut packed);
            let (got, want) = (quant::decode(dtype.name(), &packed, n), quant::stored(dtype.name(), &row));
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert_eq!(got.len(), want.len(), "{dtype}");
            assert!(got.iter().zip(&want).all(same), "{dtype}, {n_blocks} blocks");
        }
    }
}

/// The reference decodes blocks as the Python package `gguf` does. `tests/golden_blocks.py` wrote the file.
#[test]
fn blocks_are_decoded_as_ggml_does() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/blocks.json")).expect("JSON");
    let bytes = |hex: &serde_json::Value| -> Vec<u8> {
        let hex = hex.as_str().expect("a string");
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
    };
    for dtype in quantised() {
        let blocks = bytes(&golden[dtype.name()]["blocks"]);
        let want: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes(&golden[dtype.name()]["values"]));
        let got: Vec<u32> = quant::stored(dtype.name(), &blocks).iter().map(|x| x.to_bits()).collect();
        assert!(!want.is_empty() && got == want, "{dtype}");
    }
}

/// A row takes the bytes that ggml's takes, and at most what completes its planes, of which there are five.
#[test]
fn rows_take_no_more_bytes_than_ggmls() {
    for dtype in quantised() {
        let kind = GgmlType::from_name(dtype.name()).expect("a type of ggml");
        for n_blocks in 1..200 {
            let (ours, theirs) = (dtype.bytes(n_blocks * kind.block), n_blocks * kind.block_bytes);
            assert!(ours >= theirs && ours <= theirs + 5 * 15, "{dtype}: {ours} bytes for {n_blocks} blocks");
        }
        // Rows of 4,096 elements need no padding.
        assert_eq!(dtype.bytes(4096), 4096 / kind.block * kind.block_bytes, "{dtype}");
    }
}
