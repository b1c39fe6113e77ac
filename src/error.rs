//! The crate's error: one variant a layer, each layer's own enum inside.

/// Anything a user, a file or a device can get wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Tokenizers and chat templates.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
}

/// `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
