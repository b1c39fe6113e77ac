//! The report of [`doctor`](super::doctor).

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::super::check::Worst;
use super::super::report::Meta;
use super::families;
use crate::gpu::{Caps, Gpu};

/// What came of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Within the tolerance in every case.
    Ok,
    /// The device cannot run it.
    NotSupported,
    /// The driver refuses it.
    DoesNotCompile,
    /// Beyond the tolerance, no number, or the device failed.
    Wrong,
}

impl Verdict {
    /// `ok`, `not supported`, `does not compile`, `wrong`.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::NotSupported => "not supported",
            Verdict::DoesNotCompile => "does not compile",
            Verdict::Wrong => "wrong",
        }
    }
}

/// One variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoctorRow {
    /// The kernel.
    pub kernel: String,
    /// Parts by which the device's capabilities choose among variants; empty if they do not.
    pub family: String,
    /// The kernel with parts and overrides.
    pub variant: String,
    /// Whether this device runs it by default.
    pub is_chosen: bool,
    /// Types of weights and caches of its cases; F32 if there are only activations.
    pub dtypes: Vec<String>,
    /// Cases that were compared with the reference.
    pub n_cases: usize,
    /// What came of it.
    pub verdict: Verdict,
    /// Largest error in units of the tolerance; `None` if it is not finite or nothing was compared.
    pub error: Option<f64>,
    /// Where it is wrong, the driver's words, or what the device lacks.
    pub message: String,
}

impl DoctorRow {
    pub(super) fn new(kernel: &str, variant: &str) -> DoctorRow {
        DoctorRow {
            kernel: kernel.into(),
            family: String::new(),
            variant: variant.into(),
            is_chosen: false,
            dtypes: Vec::new(),
            n_cases: 0,
            verdict: Verdict::Ok,
            error: None,
            message: String::new(),
        }
    }

    pub(super) fn does_not_compile(&mut self, message: &str) {
        self.verdict = self.verdict.max(Verdict::DoesNotCompile);
        self.message = message.trim().to_string();
    }

    /// Notes the worst value of a case that `others` took part in.
    pub(super) fn checked(&mut self, worst: &Worst, case: &str, others: &[&str]) {
        self.n_cases += 1;
        let is_wrong = worst.error > 1.0;
        if self.verdict == Verdict::Wrong && (!is_wrong || self.error.is_none_or(|e| e >= worst.error)) {
            return;
        }
        if is_wrong {
            self.verdict = Verdict::Wrong;
            self.error = Some(worst.error).filter(|error| error.is_finite());
            self.message = format!("{worst} in {}", place(case, others));
        } else {
            self.error = Some(self.error.map_or(worst.error, |error| error.max(worst.error)));
        }
    }

    /// Notes that the device failed in a case.
    pub(super) fn failed(&mut self, message: &str, case: &str, others: &[&str]) {
        self.n_cases += 1;
        self.verdict = Verdict::Wrong;
        self.error = None;
        self.message = format!("{message} in {}", place(case, others));
    }
}

fn place(case: &str, others: &[&str]) -> String {
    let case = case.split_whitespace().collect::<Vec<_>>().join(" ");
    if others.is_empty() { format!("`{case}`") } else { format!("`{case}` with {}", others.join(", ")) }
}

/// The device, as a bug report should describe it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoctorDevice {
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: String,
    /// PCI's numbers of vendor and device.
    pub ids: [u32; 2],
    /// Range of subgroup widths; `None` without subgroups.
    pub subgroups: Option<[u32; 2]>,
    /// What a probe found, if the range has several widths: invocations per workgroup, whether the kernel used
    /// cooperative matrices, width.
    pub probed_widths: Vec<(u32, bool, u32)>,
    /// The width of a workgroup that is one subgroup, if one is certain.
    pub certain_width: Option<u32>,
    /// Shaders may compute in f16.
    pub f16: bool,
    /// Shaders may use 64-bit integers.
    pub int64: bool,
    /// Shapes of cooperative matrices with f16 inputs and f32 sums.
    pub cooperative_matrices: Vec<(u32, u32, u32)>,
    /// Passes can write timestamps.
    pub timestamps: bool,
    /// Largest binding and largest buffer in bytes.
    pub max_bytes: [u64; 2],
    /// Bytes of workgroup memory, invocations per workgroup, storage buffers per kernel, workgroups per dimension.
    pub max_workgroup: [u32; 4],
    /// Capabilities that are switched off, by their names in [`DISABLE_ENV`](crate::gpu::DISABLE_ENV).
    pub disabled: String,
    /// The driver's known quirks: what it does, what is not used, where that is written.
    pub quirks: Vec<[String; 3]>,
    /// What the device lacks, each with its cost.
    pub lost: Vec<String>,
}

impl DoctorDevice {
    pub(super) fn new(gpu: &Gpu) -> DoctorDevice {
        let (info, caps) = (gpu.info(), gpu.caps());
        let subgroups = caps.subgroups.as_ref();
        let probed = subgroups.map(|s| s.probed.clone()).unwrap_or_default();
        DoctorDevice {
            kind: gpu.kind().into(),
            ids: [info.vendor, info.device],
            subgroups: subgroups.map(|s| [s.min, s.max]),
            probed_widths: probed.iter().map(|p| (p.workgroup, p.matrices, p.width)).collect(),
            certain_width: caps.one_subgroup(),
            f16: caps.f16,
            int64: caps.int64,
            cooperative_matrices: caps.cooperative_matrices.clone(),
            timestamps: caps.timestamps,
            max_bytes: [caps.max_binding_bytes, caps.max_buffer_bytes],
            max_workgroup: [
                caps.max_workgroup_bytes,
                caps.max_workgroup_size,
                caps.max_storage_buffers,
                caps.max_workgroups,
            ],
            disabled: std::env::var(crate::gpu::DISABLE_ENV).unwrap_or_default(),
            quirks: gpu.quirks().iter().map(|q| [q.what, q.avoids, q.link].map(str::to_string)).collect(),
            lost: caps.lost().into_iter().map(str::to_string).collect(),
        }
    }
}

/// A device, and every kernel variant that it can run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// Circumstances.
    pub meta: Meta,
    /// The device.
    pub device: DoctorDevice,
    /// Variants, by kernel and family.
    pub variants: Vec<DoctorRow>,
}

impl DoctorReport {
    pub(super) fn new(meta: Meta, device: DoctorDevice) -> DoctorReport {
        DoctorReport { meta, device, variants: Vec::new() }
    }

    /// Adds the rows, and one for each family of kernels of these operations that none of these capabilities can run.
    pub(super) fn with_rows(
        mut self,
        rows: Vec<DoctorRow>,
        operations: &HashSet<&str>,
        devices: &[Caps],
    ) -> DoctorReport {
        self.variants = rows;
        // Only of what was checked: a filter leaves the rest out.
        let is_checked = |kernel: &str| operations.iter().any(|operation| kernel.starts_with(operation));
        for (kernel, family, lacks) in families::SPECIAL.iter().filter(|(kernel, ..)| is_checked(kernel)) {
            // The device's own capabilities come first: what they lack is what it lacks.
            let reasons: Option<Vec<String>> = devices.iter().map(*lacks).collect();
            if let Some(reason) = reasons.and_then(|reasons| reasons.into_iter().next()) {
                self.variants.push(DoctorRow {
                    family: family.to_string(),
                    verdict: Verdict::NotSupported,
                    message: reason,
                    ..DoctorRow::new(kernel, kernel)
                });
            }
        }
        self.variants.sort_by(|a, b| (&a.kernel, &a.family).cmp(&(&b.kernel, &b.family)));
        self
    }

    /// The variants that this device would run although they are wrong or do not compile.
    pub fn faults(&self) -> Vec<&DoctorRow> {
        self.variants.iter().filter(|row| row.is_chosen && row.verdict != Verdict::Ok).collect()
    }
}
