//! Results for programs: an object, an array of them, or an object a line where they come one after the other.

use std::io::Write;

use serde::Serialize;

use super::failure::Failure;

/// Writes a whole result.
pub fn write(value: &impl Serialize, out: &mut dyn Write) -> Result<(), Failure> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

/// Writes a result in one line: one of several, or one of many numbers.
pub fn line(value: &impl Serialize, out: &mut dyn Write) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, value)?;
    Ok(writeln!(out)?)
}
