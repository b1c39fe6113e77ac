//! `/v1/audio/transcriptions` and `/v1/audio/translations`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Multipart, State};
use axum::http::header;
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use wginfer::audio::AudioReader;
use wginfer::checkpoint::Ability;
use wginfer::tasks::transcribe::{
    Segment, SpeechTask, TranscribeOptions, Transcript, TranscriptEvent, TranscriptFormat, TranscriptWriter,
    Transcription,
};

use super::Server;
use super::error::ApiError;
use super::http::in_time;
use super::model::{Message, Running};
use super::stream;

/// The fields of a form.
#[derive(Default)]
struct Form {
    file: Option<Vec<u8>>,
    model: Option<String>,
    language: Option<String>,
    prompt: Option<String>,
    response_format: Option<String>,
    temperature: Option<f32>,
    granularities: Vec<String>,
    stream: bool,
}

impl Form {
    async fn read(mut fields: Multipart) -> Result<Form, ApiError> {
        let broken = |error: axum::extract::multipart::MultipartError| {
            ApiError::new(error.status(), format!("the form cannot be read: {}", error.body_text()))
        };
        let mut form = Form::default();
        while let Some(mut field) = in_time(fields.next_field()).await?.map_err(broken)? {
            let name = field.name().unwrap_or_default().to_string();
            if name == "file" {
                let file = form.file.insert(Vec::new());
                while let Some(chunk) = in_time(field.chunk()).await?.map_err(broken)? {
                    file.extend_from_slice(&chunk);
                }
                continue;
            }
            let value = in_time(field.text()).await?.map_err(broken)?;
            let text = (!value.is_empty()).then(|| value.clone());
            match name.as_str() {
                "model" => form.model = text,
                "language" => form.language = text,
                "prompt" => form.prompt = text,
                "response_format" => form.response_format = text,
                "temperature" => {
                    let parsed = value.parse().map_err(|_| {
                        ApiError::field(
                            "temperature",
                            format!("`temperature` is `{value}`, expected a number"),
                        )
                    });
                    form.temperature = Some(parsed?);
                }
                "timestamp_granularities[]" | "timestamp_granularities" => form.granularities.push(value),
                "stream" => form.stream = value == "true" || value == "1",
                _ => {}
            }
        }
        Ok(form)
    }

    fn options(&self, task: SpeechTask) -> Result<TranscribeOptions, ApiError> {
        if let Some(found) = self.granularities.iter().find(|g| !["segment", "word"].contains(&g.as_str())) {
            let message = format!("`timestamp_granularities` has `{found}`, expected `segment` or `word`");
            return Err(ApiError::field("timestamp_granularities", message));
        }
        let mut options = TranscribeOptions {
            language: self.language.clone(),
            initial_prompt: self.prompt.clone(),
            word_timestamps: self.granularities.iter().any(|g| g == "word"),
            task,
            ..TranscribeOptions::default()
        };
        // 0 is OpenAI's default: the temperature rises by itself if a text is bad.
        if let Some(temperature) = self.temperature.filter(|t| *t != 0.0) {
            options.temperatures = vec![temperature];
        }
        options.check()?;
        Ok(options)
    }
}

/// The form of an answer.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Json,
    Text,
    Srt,
    Vtt,
    VerboseJson,
}

impl Format {
    fn of(name: Option<&str>) -> Result<Format, ApiError> {
        Ok(match name {
            None | Some("json") => Format::Json,
            Some("text") => Format::Text,
            Some("srt") => Format::Srt,
            Some("vtt") => Format::Vtt,
            Some("verbose_json") => Format::VerboseJson,
            Some(found) => {
                let message = format!(
                    "`response_format` is `{found}`, expected `json`, `text`, `srt`, `vtt` or `verbose_json`"
                );
                return Err(ApiError::field("response_format", message));
            }
        })
    }
}

/// Transcribes a recording.
pub async fn transcriptions(state: State<Arc<Server>>, form: Multipart) -> Result<Response, ApiError> {
    answer(state, form, SpeechTask::Transcribe).await
}

/// Translates a recording into English.
pub async fn translations(state: State<Arc<Server>>, form: Multipart) -> Result<Response, ApiError> {
    answer(state, form, SpeechTask::Translate).await
}

async fn answer(
    State(server): State<Arc<Server>>,
    form: Multipart,
    task: SpeechTask,
) -> Result<Response, ApiError> {
    let mut form = Form::read(form).await?;
    let model = server.model(form.model.as_deref(), Ability::Transcribe)?;
    let format = Format::of(form.response_format.as_deref())?;
    let options = form.options(task)?;
    let with_segments =
        !options.word_timestamps || form.granularities.iter().any(|granularity| granularity == "segment");
    let bytes = form.file.take().ok_or_else(|| ApiError::field("file", "`file` is missing"))?;
    // The container is read here; samples are decoded as they are needed.
    let audio = tokio::task::spawn_blocking(move || AudioReader::decode(bytes))
        .await
        .map_err(|_| ApiError::field("file", "the recording cannot be read"))?
        .map_err(|error| ApiError::field("file", error.to_string()))?;
    let transcriber = model.transcriber(options)?;
    let running = model.run(move |loaded| Ok(transcriber.begin(loaded.language()?, audio)?))?;
    if form.stream {
        return Ok(streamed(running));
    }
    let mut segments = Vec::new();
    let on = |event| {
        if let TranscriptEvent::Segment(segment) = event {
            segments.push(segment);
        }
    };
    let done = running.finish(on).await?;
    let transcript = Transcript { segments, ..done };
    Ok(match format {
        Format::Json => {
            let usage = json!({ "type": "duration", "seconds": transcript.duration.ceil() });
            Json(json!({ "text": transcript.text(), "usage": usage })).into_response()
        }
        Format::VerboseJson => {
            let mut value = json!(transcript);
            if let (Value::Object(fields), false) = (&mut value, with_segments) {
                fields.remove("segments");
            }
            Json(value).into_response()
        }
        Format::Text => plain(&transcript.text()),
        Format::Srt => plain(&written(&transcript, TranscriptFormat::Srt)?),
        Format::Vtt => plain(&written(&transcript, TranscriptFormat::Vtt)?),
    })
}

fn written(transcript: &Transcript, format: TranscriptFormat) -> Result<String, ApiError> {
    let write = || -> std::io::Result<Vec<u8>> {
        let mut writer = TranscriptWriter::new(Vec::new(), format)?;
        transcript.segments.iter().try_for_each(|segment| writer.segment(segment))?;
        writer.finish(transcript)
    };
    let bytes = write().map_err(|error| ApiError::internal(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| ApiError::internal(error.to_string()))
}

fn plain(text: &str) -> Response {
    let text = format!("{}\n", text.trim_end());
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// Streams the transcript with the events of OpenAI's API: a text for each segment, then the whole.
fn streamed(running: Running<Transcription>) -> Response {
    let event = |value: Value| SseEvent::default().data(value.to_string());
    stream::respond(VecDeque::new(), (running, String::new()), move |(mut running, mut text)| async move {
        let events = match running.next().await? {
            Message::Progress(TranscriptEvent::Segment(segment)) => {
                let Segment { id, start, end, text: part, .. } = segment;
                let part = if text.is_empty() { part.trim_start().to_string() } else { part };
                text += &part;
                vec![
                    event(json!({ "type": "transcript.text.delta", "delta": part })),
                    event(json!({
                        "type": "transcript.text.segment", "id": id.to_string(), "start": start, "end": end, "text": part,
                    })),
                ]
            }
            Message::Progress(_) => Vec::new(),
            Message::Done(transcript) => {
                let usage = json!({ "type": "duration", "seconds": transcript.duration.ceil() });
                let done = json!({ "type": "transcript.text.done", "text": text.trim(), "usage": usage });
                return Ok((vec![event(done)], None));
            }
        };
        Ok((events, Some((running, text))))
    })
}
