//! `wginfer logits`: what people compare with another implementation.

use std::io::Write;

use serde::Serialize;
use wginfer::engine::{Engine, EngineError, EngineOptions, Event, Logits, Request};

use super::args::LogitsArgs;
use super::failure::Failure;
use super::{format, model, prompt};

#[derive(Serialize)]
struct LogitsJson<'a, T: Serialize> {
    token_ids: &'a [u32],
    logits: T,
}

pub fn run(args: &LogitsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let checkpoint = args.model.open()?;
    let ids = match (&args.token_ids, &args.text) {
        (Some(ids), _) => ids.clone(),
        (None, text) => prompt::encode(&checkpoint, text.as_deref().unwrap_or_default())?,
    };
    let ids = prompt::check(ids)?;
    let options = EngineOptions {
        // So many positions get their logits at a time.
        max_seqs: if args.all { 8 } else { 1 },
        kv_tokens: Some(ids.len()),
        logits: true,
        ..EngineOptions::default()
    };
    let mut engine = args.device.load(checkpoint, options)?;
    let wanted = if args.all { Logits::All } else { Logits::Last };
    let request = engine.submit(Request { logits: Some(wanted), ..Request::new(ids.clone()) })?;
    let mut rows: Vec<(usize, Vec<f32>)> = Vec::new();
    model::drive(&mut engine, &[request], |event| match event {
        Event::Logits { position, values, .. } if values.iter().all(|v| v.is_finite()) => {
            rows.push((position, values));
            Ok(())
        }
        Event::Logits { position, .. } => Err(EngineError::NotFinite { position }.into()),
        Event::Failed { error, .. } => Err(error.into()),
        _ => Ok(()),
    })?;
    rows.sort_by_key(|(position, _)| *position);

    if args.json {
        let values: Vec<&[f32]> = rows.iter().map(|(_, values)| &values[..]).collect();
        match &values[..] {
            [last] if !args.all => {
                serde_json::to_writer(&mut *out, &LogitsJson { token_ids: &ids, logits: last })?;
            }
            all => serde_json::to_writer(&mut *out, &LogitsJson { token_ids: &ids, logits: all })?,
        }
        return Ok(writeln!(out)?);
    }
    for (i, (position, values)) in rows.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        table(out, &engine, args.top, ids[*position], *position, values)?;
    }
    Ok(())
}

/// The best tokens after one position.
fn table(
    out: &mut dyn Write,
    engine: &Engine,
    n_top: usize,
    token: u32,
    position: usize,
    values: &[f32],
) -> Result<(), Failure> {
    let text = format::token(engine.tokenizer(), token);
    writeln!(out, "after position {position}, token {token} {text}")?;
    writeln!(out, "{:>7}  {:<16} {:>10} {:>12}", "id", "text", "logit", "probability")?;
    let largest = values.iter().copied().fold(f32::MIN, f32::max);
    let share = |logit: f32| (f64::from(logit) - f64::from(largest)).exp();
    let sum: f64 = values.iter().map(|v| share(*v)).sum();
    let mut best: Vec<usize> = (0..values.len()).collect();
    best.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    for id in best.into_iter().take(n_top) {
        let text = format::token(engine.tokenizer(), id as u32);
        let p = 100.0 * share(values[id]) / sum;
        writeln!(out, "{id:>7}  {text:<16} {:>10.4} {p:>10.3} %", values[id])?;
    }
    Ok(())
}
