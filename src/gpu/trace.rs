//! The text of a recording.

use super::{Access, Tensor, Variant, View};

/// Lines of text: two for a dispatch, one for anything else.
#[derive(Default)]
pub(super) struct Trace(pub String);

impl Trace {
    /// The variant and its workgroups, and on a second line the rows of the tensors that it reads and, after the arrow,
    /// of those that it writes.
    pub fn dispatch(&mut self, variant: &Variant, bindings: &[View], [x, y, z]: [u32; 3]) {
        let names = |is_written: bool| {
            let access = variant.kernel.bindings.iter().zip(bindings);
            let views = access.filter(|(access, _)| (**access == Access::ReadWrite) == is_written);
            let names = views.map(|(_, view)| format!("{} {:?}", view.tensor.label(), view.rows));
            names.collect::<Vec<_>>().join(", ")
        };
        self.line(&format!("{} @ {x} {y} {z}", variant.label()));
        self.line(&format!("    {} -> {}", names(false), names(true)));
    }

    pub fn copy(&mut self, from: &Tensor, from_offset: u64, to: &Tensor, to_offset: u64, size: u64) {
        let (from, to) = (from.label(), to.label());
        self.line(&format!("copy {size} bytes: {from} +{from_offset} -> {to} +{to_offset}"));
    }

    pub fn clear(&mut self, tensor: &Tensor, offset: u64, size: u64) {
        self.line(&format!("clear {size} bytes: {} +{offset}", tensor.label()));
    }

    pub fn read(&mut self, (tensor, offset, size): (&Tensor, u64, u64)) {
        self.line(&format!("read {size} bytes: {} +{offset}", tensor.label()));
    }

    /// The end of a command buffer.
    pub fn finish(&mut self) {
        self.line("finish");
    }

    fn line(&mut self, line: &str) {
        self.0 += line;
        self.0.push('\n');
    }
}
