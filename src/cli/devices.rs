//! `wginfer devices`: the adapters and their capabilities.

use std::io::Write;

use serde_json::{Value, json};
use wginfer::gpu::{AdapterSummary, Gpu, GpuError, Quirk};

use super::failure::Failure;
use super::{format, json};

/// List the GPUs and their capabilities, without those that WGINFER_DISABLE names
#[derive(clap::Args)]
pub struct Args {
    /// Write an array of objects
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let adapters = Gpu::adapters();
    if adapters.is_empty() {
        return Err(GpuError::NoAdapter.into());
    }
    if args.json {
        let all: Vec<Value> = adapters.iter().map(object).collect::<Result<_, GpuError>>()?;
        return json::write(&all, out);
    }
    adapters.iter().try_for_each(|adapter| write(out, adapter))
}

fn object(adapter: &AdapterSummary) -> Result<Value, GpuError> {
    let (info, caps) = (&adapter.info, adapter.caps()?);
    Ok(json!({
        "index": adapter.index,
        "name": info.name,
        "type": adapter.kind(),
        "backend": info.backend.to_str(),
        "driver": info.driver,
        "driver_info": info.driver_info,
        "f16": caps.f16,
        "int64": caps.int64,
        "subgroups": caps.subgroups.as_ref().map(|s| json!({ "min": s.min, "max": s.max })),
        "timestamps": caps.timestamps,
        "pipeline_cache": caps.pipeline_cache,
        "cooperative_matrices": caps.cooperative_matrices,
        "quirks": adapter.quirks().iter().map(|quirk| quirk_object(quirk)).collect::<Vec<_>>(),
        "max_binding_bytes": caps.max_binding_bytes,
        "max_buffer_bytes": caps.max_buffer_bytes,
        "max_workgroup_bytes": caps.max_workgroup_bytes,
        "max_workgroup_size": caps.max_workgroup_size,
        "max_workgroups": caps.max_workgroups,
    }))
}

/// A quirk, as `devices` and `doctor` print it.
pub fn quirk_object(quirk: &Quirk) -> Value {
    json!({ "what": quirk.what, "avoided": quirk.avoids, "link": quirk.link })
}

fn write(out: &mut dyn Write, adapter: &AdapterSummary) -> Result<(), Failure> {
    let (info, caps) = (&adapter.info, adapter.caps()?);
    writeln!(out, "{}  {}", adapter.index, format::escaped(&adapter.to_string()))?;
    let mut row = |name: &str, value: String| writeln!(out, "   {name:<22} {}", format::escaped(&value));
    let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
    let driver = format!("{} {}", info.driver, info.driver_info);
    row("driver", if driver.trim().is_empty() { "unknown".into() } else { driver.trim().into() })?;
    row("f16 arithmetic", yes(caps.f16))?;
    row("64-bit integers", yes(caps.int64))?;
    row("subgroups", caps.subgroups.as_ref().map_or("no".into(), |subgroups| subgroups.to_string()))?;
    row("timestamps", yes(caps.timestamps))?;
    row("pipeline cache", yes(caps.pipeline_cache))?;
    let tiles: Vec<String> =
        caps.cooperative_matrices.iter().map(|(m, n, k)| format!("{m}×{n}×{k}")).collect();
    row("cooperative matrices", if tiles.is_empty() { "no".into() } else { tiles.join(", ") })?;
    row("largest binding", format::bytes(caps.max_binding_bytes))?;
    row("largest buffer", format::bytes(caps.max_buffer_bytes))?;
    row("workgroup memory", format::bytes(u64::from(caps.max_workgroup_bytes)))?;
    row("workgroup size", caps.max_workgroup_size.to_string())?;
    for quirk in adapter.quirks() {
        row("quirk", format!("{}; not used: {} ({})", quirk.what, quirk.avoids, quirk.link))?;
    }
    Ok(())
}
