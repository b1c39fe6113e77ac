//! GGUF files.

mod common;

use common::Rng;
use common::reference::quant;
use wginfer::dtype::Dtype;
use wginfer::weights::ggml::{self, GgmlType};

/// A row on the device has the values of the stored one.
#[test]
fn rows_keep_their_values() {
    let mut rng = Rng::new(1);
    for dtype in Dtype::WEIGHTS.into_iter().filter(|dtype| dtype.is_quantised()) {
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
