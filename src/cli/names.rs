//! Names of models on the hub, as arguments.

use wginfer::hub::HubName;

use super::failure::Failure;

/// Parses all names, before anything is done with the first.
pub fn parse(names: &[String]) -> Result<Vec<HubName>, Failure> {
    let parse = |name: &String| {
        HubName::parse(name).ok_or_else(|| {
            Failure::usage(format!("`{name}` is not a name on the hub"))
                .with_hint("it has the form `owner/name`, `owner/name:QUANT` or `owner/name:FILE.gguf`")
        })
    };
    names.iter().map(parse).collect()
}
