//! `wginfer serve`: models behind OpenAI's API.

use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use wginfer::checkpoint::Source;
use wginfer::engine::{EncoderOptions, EngineOptions};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::interrupt::Serving;
use crate::server::{self, Access, ModelOptions, Options};

const EXAMPLES: &str = "Examples:
  wginfer serve
  wginfer serve -m Qwen/Qwen3-0.6B -m ~/models/whisper-small -m ~/models/all-MiniLM-L6-v2
  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is a tide?\"}]}'
  wginfer serve --host 0.0.0.0 --api-key \"$KEY\"

Endpoints: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank, /v1/audio/transcriptions,
/v1/audio/translations, /v1/models, /tokenize, /detokenize, /apply-template, /health, /metrics, and a page at /. A request
names a model as /v1/models does; without a name it gets one that can do it.

SIGTERM and Ctrl-C let open requests end; a second signal ends the program at once.";

/// Serve models to programs that speak OpenAI's API
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A `.gguf` file, a folder in Hugging Face layout, or a name on the hub; several times for several models. Default:
    /// the demonstration model in the binary
    #[arg(
        long = "model",
        short,
        env = "WGINFER_MODEL",
        value_name = "MODEL",
        help_heading = "Model and device"
    )]
    models: Vec<OsString>,

    /// The address to listen on. One that other machines reach needs `--api-key` or `--no-api-key`
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,

    /// The port; 0 is a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,

    /// The key that requests must have, as `Authorization: Bearer KEY`
    #[arg(
        long,
        env = "WGINFER_API_KEY",
        hide_env_values = true,
        value_name = "KEY",
        conflicts_with = "no_api_key"
    )]
    api_key: Option<String>,

    /// Serve other machines without a key
    #[arg(long)]
    no_api_key: bool,

    /// Let pages of this origin use the server, as `https://example.org`; `*` is all
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,

    /// Requests that a language model answers at once, in one batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,

    /// Requests that each model has at once, running or waiting. Beyond that, the status is 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_queue: u32,

    /// Load models for their first request, not at the start
    #[arg(long)]
    lazy: bool,

    /// Unload a model that had no request for this many seconds. Default: never
    #[arg(long, value_name = "SECONDS")]
    keep_alive: Option<u64>,

    /// Time for open requests to end after a signal, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,

    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(args: &Args, _out: &mut dyn Write) -> Result<(), Failure> {
    let address = address(&args.host, args.port)?;
    let api_key = args.api_key.clone().filter(|key| !key.is_empty());
    if !address.ip().is_loopback() && api_key.is_none() && !args.no_api_key {
        let message = format!("`--host {}` lets other machines in, and there is no key", args.host);
        let hint = "`--api-key KEY` asks for one, `--no-api-key` lets everybody in";
        return Err(Failure::usage(message).with_hint(hint));
    }
    let names: Vec<&OsString> = args.models.iter().filter(|name| !name.is_empty()).collect();
    let mut sources = Vec::new();
    for name in &names {
        let model = ModelArg { model: Some((*name).clone()) };
        // Models of the hub are downloaded now, with their progress on the terminal.
        model.open_any()?;
        sources.push(Source::parse(name)?);
    }
    if sources.is_empty() {
        ModelArg { model: None }.open_any()?;
        sources.push(Source::Demo);
    }
    let gpu = args.device.open()?;
    let engine =
        args.device.options(EngineOptions { max_seqs: args.parallel.into(), ..EngineOptions::default() });
    let options = Options {
        address,
        access: Access { api_key, origins: args.cors.clone(), ..Access::default() },
        grace: Duration::from_secs(args.grace),
        models: ModelOptions {
            engine,
            encoder: args.device.encoder_options(EncoderOptions::default()),
            max_open: args.max_queue as usize,
            keep_alive: args.keep_alive.map(Duration::from_secs),
        },
        preload: !args.lazy,
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let _serving = Serving::begin(move || {
        log::info!("waiting for open requests to end");
        let _ = stop.send(());
    });
    let stopped = async move {
        let _ = stopped.await;
    };
    server::run(&gpu, sources, options, stopped, |address, names| {
        log::info!("serving {} on http://{address}", names.join(", "));
    })
    .map_err(|error| match error {
        server::Error::Model(error) => error.into(),
        error => Failure::failed(error.to_string()),
    })
}

/// The address of a host and a port.
fn address(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let found = (host, port).to_socket_addrs().ok().and_then(|mut all| all.next());
    found.ok_or_else(|| Failure::usage(format!("`--host {host}` is no address of this machine")))
}
