//! Layer 2: text to token ids and back.
