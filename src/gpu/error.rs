//! Errors of devices.

use super::DISABLE_ENV;

/// An error of a device.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// There is no adapter.
    #[error("no GPU adapter found")]
    NoAdapter,
    /// No adapter has this name or index.
    #[error("no adapter matches `{wanted}`, found {found}")]
    NoSuchAdapter {
        /// The name or index.
        wanted: String,
        /// The adapters of the system.
        found: String,
    },
    /// The driver refused to open a device.
    #[error("adapter `{adapter}` cannot open a device: {message}")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// The driver's words.
        message: String,
    },
    /// An adopted device lacks what the kernels need.
    #[error("the device is too small: `{limit}` is {found}, expected at least {expected}")]
    LimitTooSmall {
        /// Name of the limit.
        limit: &'static str,
        /// The minimum that the kernels need.
        expected: u64,
        /// What the device has.
        found: u64,
    },
    /// The adapter that came with an adopted device is not the one that it was made of.
    #[error("the device was made of `{expected}`, but the adapter is `{found}`")]
    OtherAdapter {
        /// Name and backend of the device's adapter.
        expected: String,
        /// Name and backend of the adapter that came with it.
        found: String,
    },
    /// A call that submits or waits, on a device that its owner submits to.
    #[error("the device is adopted: only its owner submits and waits")]
    Adopted,
    /// A buffer or binding is larger than this device allows.
    #[error("`{what}` needs {bytes} bytes in one piece, this device allows {limit_bytes}")]
    TooLarge {
        /// Name of the tensor.
        what: String,
        /// Bytes it needs.
        bytes: u64,
        /// Bytes the device allows.
        limit_bytes: u64,
    },
    /// The device has no memory left.
    #[error(
        "out of device memory: `{what}` needs {bytes} bytes, {allocated_bytes} are in use by this program"
    )]
    OutOfMemory {
        /// Name of the tensor.
        what: String,
        /// Bytes it needs.
        bytes: u64,
        /// Bytes that this `Gpu` had allocated before.
        allocated_bytes: u64,
    },
    /// A kernel did not compile on this driver.
    #[error("kernel `{kernel}` does not compile on this device: {message}")]
    Compile {
        /// Name, parts and overrides.
        kernel: String,
        /// The compiler's words.
        message: String,
    },
    /// The driver reset or removed the device.
    #[error("the device was lost: {message}")]
    Lost {
        /// The driver's words.
        message: String,
    },
    /// On an adopted device, the host dropped a command buffer instead of submitting it.
    #[error("{n} of the command buffers that `advance` returned were dropped instead of submitted")]
    Dropped {
        /// How many.
        n: usize,
    },
    /// An error that `wgpu` reports outside any scope: a bug of ours or of a driver.
    #[error("the device reports: {message}")]
    Device {
        /// wgpu's words.
        message: String,
    },
    /// The environment variable that disables capabilities names an unknown one.
    #[error(
        "`{DISABLE_ENV}` names `{found}`, known are `f16`, `int64`, `subgroups`, `subgroup-probe`, `timestamps`, `pipeline-cache`, `cooperative-matrices`, `tuning`, `software`, `limits`"
    )]
    UnknownCapability {
        /// The name.
        found: String,
    },
}

impl GpuError {
    /// Whether the device is lost: another one can be put in its place.
    pub fn is_loss(&self) -> bool {
        matches!(self, GpuError::Lost { .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            GpuError::NoAdapter if cfg!(target_os = "linux") => {
                "install a Vulkan driver; Mesa's software one is in Debian's and Ubuntu's package `mesa-vulkan-drivers`"
            }
            GpuError::NoAdapter => "install the graphics driver of your card",
            GpuError::NoSuchAdapter { .. } => "`Gpu::adapters` lists names and indices",
            GpuError::LimitTooSmall { .. } => {
                "create the device with the limits that `Gpu::required` gives for its adapter"
            }
            GpuError::Adopted => "submit what `advance` returns, and read `events`: neither of them waits",
            GpuError::Dropped { .. } => {
                "submit every command buffer that `advance` returns, in order, also in a frame that draws nothing: later ones \
                 depend on them"
            }
            GpuError::TooLarge { .. } | GpuError::OutOfMemory { .. } => {
                "a shorter context, fewer sequences or a smaller model needs less memory"
            }
            GpuError::Lost { .. } => "the driver's log says why; a smaller batch makes shorter dispatches",
            _ => return None,
        };
        Some(hint.to_string())
    }
}
