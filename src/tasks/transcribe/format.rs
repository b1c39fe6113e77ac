//! Formats of transcripts: those of `whisper/utils.py`, and the `verbose_json` of OpenAI's API.

use std::io::{self, Write};

use serde::Serialize;

use super::{Segment, SpeechTask, Word, language_name};

/// The format of a transcript.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranscriptFormat {
    /// One line per segment.
    Text,
    /// SubRip.
    Srt,
    /// WebVTT.
    Vtt,
    /// OpenAI's `verbose_json`, written at the end.
    Json,
    /// Start and end in milliseconds and the text, separated by tabs.
    Tsv,
}

impl TranscriptFormat {
    /// The extension of its files.
    pub fn extension(self) -> &'static str {
        match self {
            TranscriptFormat::Text => "txt",
            TranscriptFormat::Srt => "srt",
            TranscriptFormat::Vtt => "vtt",
            TranscriptFormat::Json => "json",
            TranscriptFormat::Tsv => "tsv",
        }
    }
}

/// The transcript of a recording.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    /// Transcribed or translated.
    pub task: SpeechTask,
    /// The code of the language, if there was any speech.
    pub language: Option<String>,
    /// Seconds.
    pub duration: f64,
    /// In order of time.
    pub segments: Vec<Segment>,
}

/// [`Transcript`] in the format of OpenAI's API.
#[derive(Serialize)]
struct VerboseJson<'a> {
    task: &'static str,
    language: Option<&'a str>,
    duration: f64,
    text: String,
    segments: &'a [Segment],
    #[serde(skip_serializing_if = "Option::is_none")]
    words: Option<Vec<&'a Word>>,
}

impl Transcript {
    /// The text without times.
    pub fn text(&self) -> String {
        let text: String = self.segments.iter().map(|segment| segment.text.as_str()).collect();
        text.trim().to_string()
    }
}

impl Serialize for Transcript {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let has_words = self.segments.iter().any(|segment| segment.words.is_some());
        VerboseJson {
            task: self.task.as_str(),
            language: self.language.as_deref().map(language_name),
            duration: self.duration,
            text: self.text(),
            segments: &self.segments,
            words: has_words
                .then(|| self.segments.iter().filter_map(|s| s.words.as_ref()).flatten().collect()),
        }
        .serialize(serializer)
    }
}

/// Writes a transcript segment by segment. The output is a valid file after each segment, except in
/// [`TranscriptFormat::Json`], which is written at the end.
pub struct TranscriptWriter<W: Write> {
    out: W,
    format: TranscriptFormat,
    n_segments: usize,
}

impl<W: Write> TranscriptWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W, format: TranscriptFormat) -> io::Result<Self> {
        match format {
            TranscriptFormat::Vtt => write!(out, "WEBVTT\n\n")?,
            TranscriptFormat::Tsv => writeln!(out, "start\tend\ttext")?,
            TranscriptFormat::Text | TranscriptFormat::Srt | TranscriptFormat::Json => {}
        }
        out.flush()?;
        Ok(TranscriptWriter { out, format, n_segments: 0 })
    }

    /// Writes the next segment, and flushes it.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn segment(&mut self, segment: &Segment) -> io::Result<()> {
        self.n_segments += 1;
        // A line break would end the cue or record.
        let text = segment.text.trim().replace(['\r', '\n'], " ");
        let (start, end) = (segment.start, segment.end);
        let out = &mut self.out;
        match self.format {
            TranscriptFormat::Text => writeln!(out, "{text}")?,
            TranscriptFormat::Srt => {
                let (start, end) = (time(start, true, ','), time(end, true, ','));
                write!(out, "{}\n{start} --> {end}\n{}\n\n", self.n_segments, text.replace("-->", "->"))?;
            }
            TranscriptFormat::Vtt => {
                let (start, end) = (time(start, false, '.'), time(end, false, '.'));
                // Cues are markup, so the text is escaped.
                let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                write!(out, "{start} --> {end}\n{text}\n\n")?;
            }
            TranscriptFormat::Tsv => {
                writeln!(out, "{}\t{}\t{}", milliseconds(start), milliseconds(end), text.replace('\t', " "))?;
            }
            TranscriptFormat::Json => {}
        }
        out.flush()
    }

    /// Writes the end; for JSON, everything. Returns the output.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self, transcript: &Transcript) -> io::Result<W> {
        if self.format == TranscriptFormat::Json {
            serde_json::to_writer_pretty(&mut self.out, transcript)?;
            writeln!(self.out)?;
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}

/// `01:02:03,450`. Omits hours if they are zero, unless `hours`.
fn time(seconds: f64, hours: bool, mark: char) -> String {
    let ms = milliseconds(seconds);
    let (h, m, s, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    let prefix = if hours || h > 0 { format!("{h:02}:") } else { String::new() };
    format!("{prefix}{m:02}:{s:02}{mark}{ms:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: f64, end: f64, text: &str) -> Segment {
        Segment { start, end, text: text.into(), ..Segment::default() }
    }

    fn written(format: TranscriptFormat, segments: &[Segment]) -> String {
        let mut out = Vec::new();
        let mut writer = TranscriptWriter::new(&mut out, format).expect("memory");
        segments.iter().for_each(|segment| writer.segment(segment).expect("memory"));
        let transcript = Transcript { segments: segments.to_vec(), duration: 12.5, ..Transcript::default() };
        writer.finish(&transcript).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn times_carry() {
        assert_eq!(time(0.0, false, '.'), "00:00.000");
        assert_eq!(time(59.9996, false, '.'), "01:00.000");
        assert_eq!(time(3599.9999, false, '.'), "01:00:00.000");
        assert_eq!(time(3723.45, true, ','), "01:02:03,450");
        assert_eq!(time(360_000.0, true, ','), "100:00:00,000");
    }

    #[test]
    fn every_format() {
        let segments =
            [segment(0.0, 1.5, " One --> <two> & three."), segment(3661.0, 3662.25, " A\ttab\nand a line.")];
        assert_eq!(
            written(TranscriptFormat::Text, &segments),
            "One --> <two> & three.\nA\ttab and a line.\n"
        );
        assert_eq!(
            written(TranscriptFormat::Srt, &segments),
            "1\n00:00:00,000 --> 00:00:01,500\nOne -> <two> & three.\n\n\
             2\n01:01:01,000 --> 01:01:02,250\nA\ttab and a line.\n\n"
        );
        assert_eq!(
            written(TranscriptFormat::Vtt, &segments),
            "WEBVTT\n\n00:00.000 --> 00:01.500\nOne --&gt; &lt;two&gt; &amp; three.\n\n\
             01:01:01.000 --> 01:01:02.250\nA\ttab and a line.\n\n"
        );
        assert_eq!(
            written(TranscriptFormat::Tsv, &segments),
            "start\tend\ttext\n0\t1500\tOne --> <two> & three.\n3661000\t3662250\tA tab and a line.\n"
        );
    }

    #[test]
    fn json_has_the_fields_of_the_api() {
        let json = written(TranscriptFormat::Json, &[segment(0.0, 1.5, " One."), segment(2.0, 3.0, " Two.")]);
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["task"], "transcribe");
        assert_eq!(value["duration"], 12.5);
        assert_eq!(value["text"], "One. Two.");
        assert!(value.get("words").is_none());
        let keys: Vec<&String> = value["segments"][0].as_object().expect("an object").keys().collect();
        let expected = [
            "id",
            "seek",
            "start",
            "end",
            "text",
            "tokens",
            "temperature",
            "avg_logprob",
            "compression_ratio",
            "no_speech_prob",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn an_empty_transcript_is_a_valid_file() {
        assert_eq!(written(TranscriptFormat::Text, &[]), "");
        assert_eq!(written(TranscriptFormat::Srt, &[]), "");
        assert_eq!(written(TranscriptFormat::Vtt, &[]), "WEBVTT\n\n");
        assert_eq!(written(TranscriptFormat::Tsv, &[]), "start\tend\ttext\n");
        let value: serde_json::Value =
            serde_json::from_str(&written(TranscriptFormat::Json, &[])).expect("JSON");
        assert_eq!((&value["text"], value["segments"].as_array().map(Vec::len)), (&"".into(), Some(0)));
    }
}
