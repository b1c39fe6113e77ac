//! Names of models on the hub, as arguments.

use wginfer::hub::HubName;

use super::failure::Failure;

/// What `pull` and `rm` take.
#[derive(clap::Args)]
pub struct Names {
    /// `owner/name`, `owner/name:QUANT` or `owner/name:FILE.gguf`, as `wginfer list` prints them
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    /// Write one object per line
    #[arg(long)]
    pub json: bool,
}

impl Names {
    /// Parses all names, before anything is done with the first.
    pub fn parse(&self) -> Result<Vec<HubName>, Failure> {
        let parse = |name: &String| {
            HubName::parse(name).ok_or_else(|| {
                Failure::usage(format!("`{name}` is not a name on the hub"))
                    .with_hint("it has the form `owner/name`, `owner/name:QUANT` or `owner/name:FILE.gguf`")
            })
        };
        self.names.iter().map(parse).collect()
    }
}
