//! Results as JSON: one object, an array of objects, or one object per line for a stream of results.

use std::io::Write;

use serde::Serialize;

use super::failure::Failure;

/// Writes a whole result.
pub fn write(value: &impl Serialize, out: &mut dyn Write) -> Result<(), Failure> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

/// Writes a result on one line: one of several, or one with many numbers.
pub fn line(value: &impl Serialize, out: &mut dyn Write) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, value)?;
    Ok(writeln!(out)?)
}
