//! The hashes by which the hub names contents.

use std::fmt;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The hash of a file's content, and the name of its blob.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    /// Of a small file: SHA-1 of `blob SIZE\0` and the content, as git names it.
    Git([u8; 20]),
    /// Of a large file (git LFS): SHA-256 of the content.
    Sha256([u8; 32]),
}

impl Hash {
    /// Reads 40 or 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Hash> {
        fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
            let digits = text.as_bytes();
            let is_valid =
                digits.len() == 2 * N && digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f'));
            let byte = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
            let mut out = [0; N];
            is_valid.then_some(())?;
            out.iter_mut().enumerate().try_for_each(|(i, out)| byte(i).map(|byte| *out = byte))?;
            Some(out)
        }
        bytes(text).map(Hash::Git).or_else(|| bytes(text).map(Hash::Sha256))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Hash::Git(bytes) => bytes,
            Hash::Sha256(bytes) => bytes,
        };
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Computes a [`Hash`] piece by piece.
#[derive(Clone)]
pub(super) enum Hasher {
    Git(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    /// For a file of `n_bytes` whose hash is of the kind of `like`.
    pub fn new(like: Hash, n_bytes: u64) -> Hasher {
        match like {
            Hash::Git(_) => Hasher::Git(Sha1::new_with_prefix(format!("blob {n_bytes}\0"))),
            Hash::Sha256(_) => Hasher::Sha256(Sha256::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Git(hasher) => hasher.update(bytes),
            Hasher::Sha256(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> Hash {
        match self {
            Hasher::Git(hasher) => Hash::Git(hasher.finalize().into()),
            Hasher::Sha256(hasher) => Hash::Sha256(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes() {
        let (git, sha) = ("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", "ab".repeat(32));
        assert_eq!(Hash::parse(git).map(|hash| hash.to_string()).as_deref(), Some(git));
        assert_eq!(Hash::parse(&sha).map(|hash| hash.to_string()), Some(sha.clone()));
        for wrong in [
            "",
            "main",
            &git[1..],
            &sha[2..],
            &git.to_uppercase(),
            &"é".repeat(20),
            "../../../../../../../../../../../../../x",
        ] {
            assert_eq!(Hash::parse(wrong), None, "{wrong}");
        }
        // `git hash-object` of an empty file, and of `hello`.
        let empty = Hash::parse(git).expect("a hash");
        assert_eq!(Hasher::new(empty, 0).finish(), empty);
        let hello = Hash::parse("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0").expect("a hash");
        let mut hasher = Hasher::new(hello, 5);
        hasher.update(b"hel");
        hasher.update(b"lo");
        assert_eq!(hasher.finish(), hello);
    }
}
