//! The widths of a device's subgroups: the range that the driver reports, and what a probe made certain.

/// Subgroups per workgroup of the kernels on cooperative matrices. Workgroups of other sizes are not probed, so no
/// such kernel runs in them unless the width is fixed.
pub(crate) const MATRIX_SUBGROUPS: [u32; 5] = [1, 2, 3, 4, 8];

/// The range of subgroup widths of a device. A driver with a range chooses the width when it compiles a kernel, by the
/// size of the workgroup and by what the kernel uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subgroups {
    /// Smallest width.
    pub min: u32,
    /// Largest width.
    pub max: u32,
    /// What probes found; empty if the width is fixed, and on adopted devices, where nothing may be probed.
    pub probed: Vec<Probed>,
}

/// What a probe found: the width of subgroups in kernels with workgroups of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Invocations per workgroup.
    pub workgroup: u32,
    /// Whether the kernel used cooperative matrices.
    pub matrices: bool,
    /// Width of its subgroups.
    pub width: u32,
}

impl Subgroups {
    /// Subgroups of a fixed width: certain without a probe.
    pub fn fixed(width: u32) -> Subgroups {
        Subgroups::range(width, width)
    }

    /// Subgroups of `min` to `max` invocations, of which nothing is certain yet.
    pub fn range(min: u32, max: u32) -> Subgroups {
        Subgroups { min, max, probed: Vec::new() }
    }

    /// The same range with what `probe` finds in workgroups of a size, without cooperative matrices or with them.
    /// `None`: no certain width. Asks nothing if the width is fixed.
    #[must_use]
    pub fn probed(
        mut self,
        max_workgroup_size: u32,
        mut probe: impl FnMut(u32, bool) -> Option<u32>,
    ) -> Subgroups {
        self.probed.clear();
        for (workgroup, matrices) in self.unknown(max_workgroup_size) {
            if let Some(width) = probe(workgroup, matrices) {
                self.probed.push(Probed { workgroup, matrices, width });
            }
        }
        self
    }

    /// The workgroups that kernels could have on this device if the widths in them were certain, without cooperative
    /// matrices and with them. Empty if the width is fixed.
    pub(super) fn unknown(&self, max_workgroup_size: u32) -> Vec<(u32, bool)> {
        if self.min == self.max { Vec::new() } else { self.workgroups(max_workgroup_size) }
    }

    /// The workgroups that kernels could have on a device with these widths, without cooperative matrices and with them.
    pub(super) fn workgroups(&self, max_workgroup_size: u32) -> Vec<(u32, bool)> {
        let plain = self.widths().map(|width| (width, false));
        let with_matrices =
            self.widths().flat_map(|width| MATRIX_SUBGROUPS.map(|n_subgroups| (n_subgroups * width, true)));
        let mut all: Vec<_> = plain.chain(with_matrices).collect();
        all.retain(|(size, _)| *size <= max_workgroup_size);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The width of subgroups in kernels with workgroups of `workgroup` invocations, with cooperative matrices or
    /// without. `None` if nobody knows: then no kernel that needs an exact width may run.
    pub fn width(&self, workgroup: u32, matrices: bool) -> Option<u32> {
        if self.min == self.max {
            return Some(self.min);
        }
        let found = self.probed.iter().find(|p| (p.workgroup, p.matrices) == (workgroup, matrices));
        found.map(|p| p.width).filter(|width| (self.min..=self.max).contains(width))
    }

    /// The width at which a workgroup of `n_subgroups` times as many invocations certainly has that many subgroups.
    /// Several widths may be; 32 is preferred, which more cards are made for than for any other, then the largest.
    pub fn certain(&self, n_subgroups: u32, matrices: bool) -> Option<u32> {
        let is_certain = |width: &u32| self.width(n_subgroups * width, matrices) == Some(*width);
        let widths: Vec<u32> = self.widths().filter(is_certain).collect();
        widths.iter().find(|width| **width == 32).or(widths.last()).copied()
    }

    /// The widths that may occur, in ascending order: powers of two.
    fn widths(&self) -> impl Iterator<Item = u32> + use<> {
        let (min, max) = (self.min.max(1), self.max);
        (0..8).map(|log| 1 << log).filter(move |width| (min..=max).contains(width))
    }
}

impl std::fmt::Display for Subgroups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.min == self.max {
            true => write!(f, "of {}", self.min),
            false => write!(f, "of {} to {}", self.min, self.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What RADV does on RDNA: workgroups of at most 32 invocations have subgroups of 32, larger ones of 64.
    fn radv(workgroup: u32, _: bool) -> Option<u32> {
        Some(if workgroup <= 32 { 32 } else { 64 })
    }

    #[test]
    fn a_fixed_width_is_certain_without_a_probe() {
        let fixed = Subgroups::fixed(8).probed(1024, |_, _| unreachable!("nothing is asked"));
        assert_eq!(
            (fixed.certain(1, false), fixed.certain(4, true), fixed.width(24, true)),
            (Some(8), Some(8), Some(8))
        );
        // 0..0: what wgpu reports if the driver reports nothing.
        assert_eq!(Subgroups::fixed(0).certain(1, false), None);
    }

    #[test]
    fn a_range_is_not_certain_until_it_is_probed() {
        let range = Subgroups::range(32, 64);
        assert!((1..=8).all(|n| range.certain(n, false).is_none() && range.certain(n, true).is_none()));
        let rdna = range.clone().probed(1024, radv);
        assert_eq!(rdna.certain(1, false), Some(32));
        // 64 invocations are one subgroup there, not two.
        assert_eq!([1, 2, 3, 4, 8].map(|n| rdna.certain(n, true)), [32, 64, 64, 64, 64].map(Some));
        assert_eq!((rdna.certain(5, true), rdna.certain(2, false)), (None, None), "not probed");
        assert_eq!(range.probed(256, radv).certain(8, true), None, "workgroups of 512 are too large");
    }

    #[test]
    fn matrices_are_probed_by_themselves() {
        let both = Subgroups::range(8, 32).probed(1024, |_, matrices| Some(if matrices { 16 } else { 32 }));
        assert_eq!((both.certain(1, false), both.certain(1, true)), (Some(32), Some(16)));
        let apart = Subgroups::range(8, 32).probed(1024, |_, matrices| (!matrices).then_some(16));
        assert_eq!((apart.certain(1, false), apart.certain(1, true)), (Some(16), None));
    }

    #[test]
    fn a_width_outside_the_range_is_not_believed() {
        let lies = Subgroups::range(16, 32).probed(1024, |_, _| Some(8));
        assert_eq!((lies.width(16, false), lies.certain(1, false)), (None, None));
    }
}
