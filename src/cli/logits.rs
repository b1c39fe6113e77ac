//! `wginfer logits`: what people compare with another implementation.
//!
//! Of a language model the logits after a position, of a classifier those of its labels.

use std::io::Write;

use serde::Serialize;
use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Engine, EngineError, EngineOptions, Event, Logits, Output, Request};
use wginfer::models::ModelKind;
use wginfer::tasks;

use super::args::LogitsArgs;
use super::failure::Failure;
use super::model;
use super::{format, prompt};

#[derive(Serialize)]
struct LogitsJson<'a, T: Serialize> {
    token_ids: &'a [u32],
    logits: T,
}

pub fn run(args: &LogitsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let checkpoint = args.model.open_any()?;
    match checkpoint.kind() {
        ModelKind::Decoder => of_tokens(args, checkpoint, out),
        ModelKind::Encoder => of_labels(args, checkpoint, out),
    }
}

fn of_labels(args: &LogitsArgs, checkpoint: ModelFiles, out: &mut dyn Write) -> Result<(), Failure> {
    if args.all {
        return Err(Failure::usage("`--all` is for language models: a classifier has one row of logits"));
    }
    if checkpoint.labels.is_none() {
        let message = format!("`{}` has no classification head", checkpoint.name);
        return Err(Failure::failed(message).with_hint("`wginfer embed` gives its embeddings"));
    }
    let mut encoder = args.device.load_encoder(checkpoint)?;
    let (ids, n_cut) = match (&args.token_ids, &args.text) {
        (Some(ids), _) => (ids.clone(), 0),
        (None, text) => encoder.tokenize(text.as_deref().unwrap_or_default())?,
    };
    if n_cut > 0 {
        log::warn!("the text was cut to {} tokens, {n_cut} tokens lost", encoder.ctx());
    }
    let ids = prompt::check(ids)?;
    let logits = tasks::encode_tokens(&mut encoder, vec![ids.clone()], Output::Logits, &mut |_| {})?;
    let (Some(logits), Some(labels)) = (logits.first(), encoder.labels()) else { return Ok(()) };
    if args.json {
        serde_json::to_writer(&mut *out, &LogitsJson { token_ids: &ids, logits })?;
        return Ok(writeln!(out)?);
    }
    let probabilities = labels.probabilities(logits);
    let last = if probabilities.is_some() { "probability" } else { "" };
    writeln!(out, "{}", format!("{:<24} {:>10} {last:>12}", "label", "logit").trim_end())?;
    let mut best: Vec<usize> = (0..logits.len()).collect();
    best.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    for i in best.into_iter().take(args.top) {
        let p = probabilities.as_ref().map_or(String::new(), |p| format!(" {:>10.3} %", 100.0 * p[i]));
        writeln!(out, "{:<24} {:>10.4}{p}", labels.names[i], logits[i])?;
    }
    Ok(())
}

fn of_tokens(args: &LogitsArgs, checkpoint: ModelFiles, out: &mut dyn Write) -> Result<(), Failure> {
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
