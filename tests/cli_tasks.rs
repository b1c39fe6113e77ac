//! The commands over documents, labels and scores, with the model in the binary.

mod common;
#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};

use program::wginfer;
use serde_json::{Value, json};
use tempfile::TempDir;

const MIA: &str = "Mia had a red ball that she loved very much.\nOne sunny day, Mia lost her red ball in the park.\nMia felt \
                   sad. Her friend Tom came to help.\nThen Tom found the ball under a bench. Mia jumped for joy.\n";
const OLGA: &str = "Olga was a lonely girl. One afternoon, Olga was alone in the meadow. Suddenly she heard a strange \
                    voice. She wanted to run, but her legs did not move. Olga felt afraid and did not make a sound.\n";

/// A file of a temporary folder.
fn file(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).expect("it can be written");
    path
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

#[test]
fn help_has_examples() {
    for line in ["answer --help", "summarize --help", "classify --help", "score --help"] {
        assert!(wginfer(line).out().contains("Examples:"), "{line}");
    }
}

#[test]
fn answers_come_with_their_passage() {
    if common::gpu().is_none() {
        return;
    }
    let dir = folder();
    let path = file(&dir, "mia.txt", MIA);
    let done = wginfer("answer -f").arg(&path).arg("Where was the ball found?").succeeds();
    assert_eq!(
        done.out,
        "The ball was under a bench.\n\n> Then Tom found the ball under a bench.\n(line 4)\n"
    );
    assert!(
        done.err.contains("round 1: 1 piece, ") && done.err.contains("1 of 1 pieces asked, 1 with an answer")
    );

    // Standard input, with `-` and without, and a document of two stories.
    let both = format!("{MIA}\n{OLGA}");
    for line in ["answer --json -f -", "answer --json"] {
        let found = wginfer(line).arg("What did Olga hear?").stdin(both.as_bytes()).json();
        assert_eq!(found["found"], true);
        assert!(found["answer"].as_str().expect("a text").contains("strange voice"), "{found}");
        assert_eq!(found["quote"]["lines"], json!([6, 6]));
        let [from, to] = [0, 1].map(|i| found["quote"]["bytes"][i].as_u64().expect("a place") as usize);
        assert_eq!(found["quote"]["text"], both[from..to]);
        assert_eq!(found["pieces"].as_array().expect("a list").len(), 2);
        assert!(found["usage"]["prompt_tokens"].as_u64().expect("a count") > 200);
    }
    let found = wginfer("answer --json").arg("What did Mia want?").stdin(MIA.as_bytes()).json();
    assert_eq!((&found["found"], &found["quote"]), (&Value::Bool(false), &Value::Null));
}

#[test]
fn summaries_have_as_many_words_as_asked() {
    if common::gpu().is_none() {
        return;
    }
    let found = wginfer("summarize --json").stdin(format!("{MIA}\n{OLGA}").as_bytes()).json();
    let summary = found["summary"].as_str().expect("a text");
    assert!(summary.contains("Mia") && summary.contains("Olga"), "{summary}");
    assert_eq!(found["rounds"], json!([2]));
    let done = wginfer("summarize --words 3").stdin(MIA.as_bytes()).succeeds();
    assert!(done.out.contains("Mia") && done.err.contains("expected at most 3"), "{}", done.err);
    assert_eq!(wginfer("summarize -q").stdin(MIA.as_bytes()).succeeds().err, "");
}

#[test]
fn documents_that_are_none() {
    if common::gpu().is_none() {
        return;
    }
    let dir = folder();
    for command in ["answer Who? -f", "summarize -f", "score -f"] {
        wginfer(command).arg(file(&dir, "empty.txt", " \n\n")).fails(1, "empty.txt` is empty");
        wginfer(command).arg(file(&dir, "latin.txt", b"caf\xe9")).fails(1, "byte 3 is `0xe9`");
        wginfer(command).arg("./not/there.txt").fails(1, "./not/there.txt");
    }
    for command in ["answer Who? -f", "summarize -f"] {
        wginfer(command).arg(file(&dir, "binary", b"PK\0\0")).fails(1, "byte 2 is `0x00`");
    }
    wginfer("answer").arg(" ").stdin(b"A text.").fails(1, "the question is empty");
    wginfer("summarize --words 0").fails_to_parse();
    wginfer("summarize --max-tokens 0").stdin(b"A text.").fails(2, "`max_tokens` is 0");
    wginfer("summarize --piece-tokens 5").stdin(b"A text.").fails(2, "`piece_tokens` is 5");
    wginfer("summarize --temperature -1").stdin(b"A text.").fails(2, "`temperature` is -1");
    wginfer("summarize --ctx 32").stdin(b"A text.").fails(1, "no room");
}

#[test]
fn labels_for_texts_from_everywhere() {
    if common::gpu().is_none() {
        return;
    }
    let labels = "--labels happy,sad,afraid,angry";
    let one = wginfer(&format!("classify {labels}")).arg(OLGA).out();
    let lines: Vec<&str> = one.lines().collect();
    assert_eq!(lines.len(), 4, "all labels of one text");
    assert!(lines[0].starts_with("afraid\t"), "{one}");

    let dir = folder();
    let mia = MIA.replace('\n', " ");
    let texts = file(&dir, "texts.txt", format!("{mia}\n\n{OLGA}"));
    let objects = [&mia[..], OLGA].map(|text| json!({ "text": text, "other": 1 }).to_string()).join("\n");
    let objects = file(&dir, "texts.jsonl", objects);
    let list = file(&dir, "labels.txt", "happy\nsad\n\nafraid\nangry\n");
    let expected: Vec<(String, String)> = [&texts, &objects]
        .map(|path| {
            let out = wginfer(&format!("classify {labels} -f")).arg(path).out();
            let best = |line: &str| line.split('\t').next().unwrap_or_default().to_string();
            let bests: Vec<String> = out.lines().map(best).collect();
            assert_eq!(bests.len(), 2, "the best label of each text: {out}");
            (bests[0].clone(), bests[1].clone())
        })
        .to_vec();
    assert_eq!(expected, [("happy".into(), "afraid".into()), ("happy".into(), "afraid".into())]);

    let all = wginfer("classify --json --labels-file").arg(&list).arg("-f").arg(&texts).json();
    let all = all.as_array().expect("a list");
    assert_eq!((all.len(), all[0]["labels"][0]["label"].as_str()), (2, Some("happy")));
    let sum: f64 =
        all[0]["labels"].as_array().expect("a list").iter().filter_map(|l| l["probability"].as_f64()).sum();
    assert!((sum - 1.0).abs() < 1e-9);
    assert_eq!(all[1]["labels"].as_array().expect("a list").len(), 4);

    let few = wginfer(&format!("classify {labels} --top 2 --threshold 0.5 --json")).arg(OLGA).json();
    assert_eq!(few[0]["labels"].as_array().expect("a list").len(), 1);
    let none = wginfer("classify --labels happy,sad --threshold 1 -q").arg(OLGA).arg(MIA).out();
    assert!(none.lines().all(|line| line.starts_with("-\t-\t") || line.contains("\t1.0000\t")), "{none}");
}

#[test]
fn labels_that_are_none() {
    if common::gpu().is_none() {
        return;
    }
    wginfer("classify a").fails(2, "no labels given");
    wginfer("classify a --labels sad").fails(2, "at least two labels");
    wginfer("classify a --labels sad,happy,sad").fails(2, "label `sad` is there twice");
    wginfer("classify a --labels").arg("sad,").fails(2, "is empty");
    wginfer("classify a --labels a,b --threshold 2").fails(2, "`threshold` is 2");
    wginfer("classify --labels a,b").stdin(b"\n").fails(1, "there is no text in standard input");
    let dir = folder();
    wginfer("classify a --labels-file").arg(file(&dir, "l.txt", "\n")).fails(1, "l.txt` has no labels");
    let bad = [("{\"text\": 3}", "line 1: `text` is 3"), ("\n[]", "line 2"), ("{}", "line 1")];
    for (text, what) in bad {
        wginfer("classify --labels a,b -f").arg(file(&dir, "t.jsonl", text)).fails(1, what);
    }
}

#[test]
fn scores_of_texts_and_answers() {
    if common::gpu().is_none() {
        return;
    }
    let found = wginfer("score --json").stdin(MIA.as_bytes()).json();
    let of = |key: &str| found[key].as_f64().expect("a number");
    assert_eq!(of("scored"), of("tokens") - 1.0);
    assert!((of("perplexity") - (of("nll") / of("scored")).exp()).abs() < 1e-9);
    assert!((of("bits_per_byte") - of("nll") / 2f64.ln() / of("bytes")).abs() < 1e-9);
    let text = wginfer("score --ctx 32 --stride 8").stdin(MIA.as_bytes()).succeeds();
    assert!(
        text.out.starts_with("perplexity     ") && text.err.contains("windows of at most 32 tokens, 8 apart")
    );

    let dir = folder();
    let question = format!("Text:\n{MIA}\nQuestion: Who found the ball?");
    let lines = [
        json!({ "prompt": question, "answer": "tom found ball" }),
        json!({ "prompt": question, "answer": "Mia" }),
        json!({ "text": OLGA, "label": "afraid" }),
        json!({ "prompt": question, "label": "Tom found", "labels": ["Mia found", "Tom found"] }),
    ];
    let lines = file(&dir, "all.jsonl", lines.map(|line| line.to_string()).join("\n"));
    let found = wginfer("score --json --labels happy,sad,afraid,angry -f").arg(&lines).json();
    assert_eq!((&found["exact_match"], &found["items"]), (&json!(0.5), &json!(4)));
    assert_eq!(found["label_accuracy"], 1.0, "{found}");
    assert_eq!(found["results"][0]["found"], "Tom found the ball.");
    assert_eq!(found["results"][3]["line"], 4);
    let text = wginfer("score --labels happy,sad,afraid,angry -f").arg(&lines).out();
    assert_eq!(text, "exact match    0.5000 (1 of 2)\nlabel accuracy 1.0000 (2 of 2)\n");
}

#[test]
fn scores_of_what_is_no_test() {
    if common::gpu().is_none() {
        return;
    }
    wginfer("score --stride 0").stdin(b"A text.").fails(2, "`stride` is 0");
    wginfer("score --ctx 16 --stride 16").stdin(b"A text.").fails(2, "`stride` is 16");
    wginfer("score").stdin(b"a").fails(1, "the text has 1 token, expected at least 2");
    wginfer("score --labels a,b").stdin(b"A text.").fails(2, "`.jsonl`");
    let dir = folder();
    let bad = [
        ("{\"prompt\": \"a\"", "bad.jsonl`, line 1: expected a JSON object"),
        ("{\"prompt\": \"a\"}", "line 1: expected `prompt` with `answer`"),
        ("\n{\"text\": \"a\", \"label\": \"b\"}", "line 2: expected a field `labels`"),
        ("{\"text\": \"a\", \"label\": \"b\", \"labels\": \"b,c\"}", "expected a list of texts"),
        (
            "{\"text\": \"a\", \"label\": \"b\", \"labels\": [\"c\", \"d\"]}",
            "`label` is `b`, which is not among",
        ),
        ("{\"text\": \"a\", \"label\": \"b\", \"labels\": [\"b\", \"c\", \"b\"]}", "`b` is there twice"),
        ("{\"text\": 1, \"label\": \"b\"}", "line 1: `text` is 1, expected a text"),
    ];
    for (text, what) in bad {
        wginfer("score -f").arg(file(&dir, "bad.jsonl", text)).fails(1, what);
    }
    wginfer("score --labels b,b -f").arg(file(&dir, "bad.jsonl", "{}")).fails(2, "`b` is there twice");
}

/// Lines that fail are errors of their own, in texts to classify and in questions to score.
#[test]
fn lines_that_fail_leave_the_others_as_they_are() {
    if common::gpu().is_none() {
        return;
    }
    let dir = folder();
    let long = "Mia ran. ".repeat(1000);
    let texts = file(&dir, "texts.txt", format!("{}\n\n{long}\n{OLGA}", MIA.replace('\n', " ")));
    let done = wginfer("classify --labels happy,afraid -f").arg(&texts).done();
    assert_eq!(done.code, Some(1), "{}", done.err);
    let labels: Vec<&str> = done.out.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(labels, ["happy", "afraid"]);
    assert!(
        done.err.contains("texts.txt`, line 3: the prompt has") && done.err.contains("1 blank line skipped")
    );
    let done = wginfer("classify --json --labels happy,afraid -f").arg(&texts).done();
    let rows: Value = serde_json::from_str(&done.out).expect("JSON");
    let indices: Vec<_> = rows.as_array().expect("a list").iter().map(|row| row["index"].as_u64()).collect();
    assert_eq!(indices, [Some(0), Some(2), Some(3)]);
    assert!(rows[1]["error"].as_str().is_some_and(|e| e.contains("the context holds")), "{rows}");

    let question = format!("Text:\n{MIA}\nQuestion: Who found the ball?");
    let lines = [
        json!({ "prompt": question, "answer": "tom found ball" }).to_string(),
        String::new(),
        json!({ "prompt": long, "answer": "Mia" }).to_string(),
        json!({ "text": OLGA, "label": "afraid", "labels": ["happy", "afraid"] }).to_string(),
        json!({ "text": OLGA, "label": "afraid", "labels": ["afraid", "afraid"] }).to_string(),
        json!({ "text": long, "label": "happy", "labels": ["happy", "afraid"] }).to_string(),
        json!({ "prompt": " ", "answer": "Mia" }).to_string(),
        json!({ "text": OLGA, "label": "happy", "labels": ["happy", long] }).to_string(),
        "{\"prompt\": ".to_string(),
    ];
    let lines = file(&dir, "all.jsonl", format!("\u{feff}{}\r\n", lines.join("\r\n")));
    let done = wginfer("score --json -f").arg(&lines).done();
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert!(done.err.contains("error: 6 of 8 inputs failed"), "{}", done.err);
    let found: Value = serde_json::from_str(&done.out).expect("JSON");
    assert_eq!((&found["items"], &found["failed"], &found["accuracy"]), (&2.into(), &6.into(), &1.0.into()));
    let results = found["results"].as_array().expect("a list");
    let indices: Vec<_> = results.iter().filter_map(|row| row["index"].as_u64()).collect();
    assert_eq!(indices, [0, 2, 3, 4, 5, 6, 7, 8]);
    for row in results {
        let index = row["index"].as_u64().expect("a number");
        assert_eq!(row["line"], index + 1);
        let is_good = row["is_right"] == true && row["error"].is_null();
        let is_bad = row["is_right"].is_null() && row["error"].is_string();
        assert!(if index == 0 || index == 3 { is_good } else { is_bad }, "{row}");
    }
}

/// A byte order mark and the line ends of Windows change nothing.
#[test]
fn files_of_windows_are_read_as_others() {
    if common::gpu().is_none() {
        return;
    }
    let dir = folder();
    let windows = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    let both = format!("{OLGA}\n{MIA}");
    let [plain, other] = [both.clone(), windows(&both)].map(|text| {
        let path = file(&dir, "story.txt", &text);
        let found = wginfer("answer --json -f").arg(&path).arg("Who found the ball?").json();
        let [from, to] = [0, 1].map(|i| found["quote"]["bytes"][i].as_u64().expect("a place") as usize);
        assert_eq!(found["quote"]["text"], text[from..to], "places are those of the file");
        (found["answer"].clone(), found["quote"]["lines"].clone(), found["usage"]["prompt_tokens"].clone())
    });
    assert_eq!(plain, other);
    let lists = ["happy\nafraid\n".to_string(), windows("happy\n\nafraid\n")].map(|list| {
        let list = file(&dir, "labels.txt", list);
        wginfer("classify -q --json --labels-file").arg(list).arg(OLGA).json()[0]["labels"].clone()
    });
    assert_eq!(lists[0], lists[1]);
    let done = wginfer("chat -q").stdin("\u{feff}/exit\r\nHello.\r\n".as_bytes()).succeeds();
    assert_eq!((done.out, done.err), (String::new(), String::new()), "a command of the chat");
    for command in
        ["generate -f", "summarize -f", "classify --labels a,b -f", "score -f", "classify a --labels-file"]
    {
        wginfer(command).arg(file(&dir, "wide.txt", b"\xff\xfea\0")).fails(1, "wide.txt` is UTF-16");
    }
}

/// Runs a command on many inputs, ends it by a signal once some are done, and returns what it left.
#[cfg(unix)]
fn interrupted(
    line: &str,
    arguments: &[&Path],
    (signal, code): (&str, i32),
    left: impl Fn(&program::Done) -> String,
) -> String {
    // Nothing outside shows when the first inputs are done.
    let mut wait = std::time::Duration::from_millis(250);
    loop {
        let run = arguments.iter().fold(wginfer(line), |run, argument| run.arg(argument));
        let child = run.spawn();
        std::thread::sleep(wait);
        program::send(&child, signal);
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let done =
            program::Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert_eq!(done.code, Some(code), "{line}: {}", done.err);
        assert!(done.err.contains(&format!("interrupted by SIG{signal}")), "{}", done.err);
        let left = left(&done);
        if !left.is_empty() {
            return left;
        }
        assert!(wait.as_secs() < 60, "{line}: nothing is ever done");
        wait *= 2;
    }
}

#[test]
#[cfg(unix)]
fn what_is_done_of_many_inputs_survives_a_signal() {
    const N: usize = 20_000;
    if common::gpu().is_none() {
        return;
    }
    let dir = folder();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert-classifier");
    let texts: String = (0..N).map(|i| format!("{} a cat\n\n", i % 100)).collect();
    let texts = file(&dir, "texts.txt", texts);
    let on_stdout = |done: &program::Done| done.out.clone();

    // To a file: beside it, and what it had stays.
    let vectors = file(&dir, "vectors.json", "before");
    let partial = dir.path().join("vectors.json.partial");
    let beside = |done: &program::Done| {
        assert_eq!((&done.out[..], fs::read_to_string(&vectors).expect("a file").as_str()), ("", "before"));
        let hint = format!("hint: what was done is in `{}`\n", partial.display());
        assert_eq!(partial.exists(), done.err.ends_with(&hint), "{}", done.err);
        fs::read_to_string(&partial).unwrap_or_default()
    };
    let arguments: [&Path; 5] = [&model, "-f".as_ref(), &texts, "-o".as_ref(), &vectors];
    let left = interrupted("embed -m", &arguments, program::SIGNALS[0], beside);
    let rows: Vec<Value> = serde_json::from_str(&left).expect("valid JSON");
    assert!((1..N).contains(&rows.len()), "{} rows", rows.len());
    for row in &rows {
        let i = row["index"].as_u64().expect("an index") as usize / 2;
        assert_eq!(row["text"], format!("{} a cat", i % 100));
        assert!(row["embedding"].as_array().is_some_and(|values| !values.is_empty()), "{row}");
    }

    // Row i is that of text i, also where rows are missing.
    let arguments: [&Path; 3] = [&model, "-f".as_ref(), &texts];
    let left = interrupted("embed --format csv -m", &arguments, program::SIGNALS[1], on_stdout);
    let rows: Vec<&str> = left.lines().collect();
    let n_done = rows.iter().filter(|row| !row.contains("NaN")).count();
    assert!(rows.len() == N && (1..N).contains(&n_done), "{n_done} of {} rows", rows.len());

    let left = interrupted("embed --similarity --json -m", &arguments, program::SIGNALS[1], on_stdout);
    let found: Value = serde_json::from_str(&left).expect("valid JSON");
    let [indices, rows] = ["indices", "similarity"].map(|key| found[key].as_array().expect("a list"));
    assert!((1..N).contains(&rows.len()) && indices.len() == rows.len());
    assert!(rows.iter().all(|row| row.as_array().is_some_and(|row| row.len() == rows.len())));

    let left = interrupted("classify --json -m", &arguments, program::SIGNALS[2], on_stdout);
    let rows: Vec<Value> = serde_json::from_str(&left).expect("valid JSON");
    assert!((1..N).contains(&rows.len()) && rows.iter().all(|row| row["labels"].is_array()));

    // A language model takes longer.
    let texts = file(&dir, "few.txt", format!("{OLGA}\n").repeat(1000));
    let line = "classify --labels happy,sad,afraid --json -f";
    let left = interrupted(line, &[&texts], program::SIGNALS[0], on_stdout);
    let rows: Vec<Value> = serde_json::from_str(&left).expect("valid JSON");
    assert!((1..1000).contains(&rows.len()) && rows.iter().all(|row| row["labels"][2].is_object()));

    let lines = (0..1000).map(|i| match i % 2 {
        0 => json!({ "prompt": "Who found the ball?", "answer": "Tom" }).to_string(),
        _ => json!({ "text": MIA, "label": "happy", "labels": ["happy", "sad"] }).to_string(),
    });
    let lines = file(&dir, "items.jsonl", lines.collect::<Vec<_>>().join("\n"));
    let left = interrupted("score --json -f", &[&lines], program::SIGNALS[1], on_stdout);
    let found: Value = serde_json::from_str(&left).expect("valid JSON");
    let n = found["results"].as_array().expect("results").len();
    assert!((1..1000).contains(&n) && found["items"] == n && found["failed"] == 0, "{found}");
}

// --- rerank ---

#[test]
fn rerank_sorts_texts() {
    if common::gpu().is_none() {
        return;
    }
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert-reranker");
    let golden: Value =
        serde_json::from_slice(&std::fs::read(model.join("golden.json")).expect("golden.json"))
            .expect("JSON");
    let documents = golden["documents"].as_array().expect("documents");
    let texts: String =
        documents.iter().map(|d| format!("{}\n\n", d["text"].as_str().expect("a text"))).collect();
    let query = golden["query"].as_str().expect("a query");
    let run = |flags: &[&str]| {
        let mut run = wginfer("rerank");
        run.command.arg(query).args(flags);
        run.model(&model).stdin(texts.as_bytes())
    };
    let json = run(&["--json"]).json();
    let results = json["results"].as_array().expect("results");
    assert_eq!(results.len(), documents.len());
    let score = |result: &Value| result["relevance_score"].as_f64().expect("a score");
    assert!(results.windows(2).all(|pair| score(&pair[0]) >= score(&pair[1])), "{json}");
    for result in results {
        // Every second line is blank.
        let document = &documents[result["index"].as_u64().expect("an index") as usize / 2];
        assert_eq!(result["document"]["text"], document["text"]);
        assert!((score(result) - document["score"].as_f64().expect("a score")).abs() < 1e-3, "{result}");
    }
    assert!(json["usage"]["total_tokens"].as_u64() > Some(100) && json.get("errors").is_none(), "{json}");
    let lines = run(&["--top-n", "2"]).succeeds();
    let first = format!("{:.4}\t{}\t", score(&results[0]), results[0]["index"]);
    assert!(lines.out.starts_with(&first) && lines.out.lines().count() == 2, "{}", lines.out);
    wginfer("rerank q a").fails(1, "the demonstration model in the binary is no reranker");
    let refused = wginfer("rerank q a").model(&model.with_file_name("llama")).done();
    assert!(
        refused.err.contains("is no reranker") && !refused.err.contains("was trained"),
        "{}",
        refused.err
    );
    let accepted = wginfer("rerank q a").model(&model.with_file_name("qwen3-reranker")).succeeds();
    assert!(!accepted.err.contains("was trained"), "{}", accepted.err);
    run(&["--instruction", "x"]).fails(2, "`instruction` is x");
    wginfer("rerank").model(&model).fails_to_parse();
}
