//! The program in a real window: what it prints, and what can be seen. Needs a display (`xvfb-run -a cargo test`).

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A picture: RGB, row by row.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn read(path: &Path) -> Picture {
        let file =
            BufReader::new(File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
        let mut bytes = vec![0; reader.output_buffer_size().expect("it fits")];
        let info = reader.next_frame(&mut bytes).expect("a picture");
        assert_eq!(info.color_type, png::ColorType::Rgb);
        let pixels = bytes[..info.buffer_size()].chunks(3).map(|p| [p[0], p[1], p[2]]).collect();
        Picture { width: info.width as usize, height: info.height as usize, pixels }
    }

    /// The pixels of a part: left, top, right, bottom, from 0 to 1.
    fn part(&self, [left, top, right, bottom]: [f64; 4]) -> Vec<[u8; 3]> {
        let at = |part: f64, whole: usize| (part * whole as f64) as usize;
        let rows = at(top, self.height)..at(bottom, self.height);
        let row = |y| &self.pixels[y * self.width..][at(left, self.width)..at(right, self.width)];
        rows.flat_map(row).copied().collect()
    }
}

fn count(pixels: &[[u8; 3]], is: impl Fn([u8; 3]) -> bool) -> usize {
    pixels.iter().filter(|pixel| is(**pixel)).count()
}

fn is_near(color: [u8; 3]) -> impl Fn([u8; 3]) -> bool {
    move |pixel| pixel.iter().zip(color).all(|(a, b)| a.abs_diff(b) <= 3)
}

/// Runs the program, and returns what it prints and its pictures: of the middle and of the end.
fn run(name: &str, args: &[&str]) -> (String, [Picture; 2]) {
    let has_display = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    assert!(has_display, "no display: `xvfb-run -a cargo test`");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/window");
    let files: [PathBuf; 2] = ["halfway", "last"].map(|when| folder.join(format!("{name}-{when}.png")));
    let mut command = Command::new(env!("CARGO_BIN_EXE_scene"));
    command.args(args).arg("--halfway").arg(&files[0]).arg("--screenshot").arg(&files[1]);
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (text, files.map(|file| Picture::read(&file)))
}

/// The number after a word.
fn number(text: &str, word: &str) -> f64 {
    let (_, rest) = text.split_once(word).unwrap_or_else(|| panic!("no `{word}` in {text}"));
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|_| panic!("no number after `{word}` in {text}"))
}

/// The colours of the bars in `shaders/bars.wgsl`.
const BARS: [[u8; 3]; 4] = [[255, 204, 77], [89, 153, 255], [179, 115, 242], [255, 89, 77]];
/// Where the fox's words stand, and where the bars are.
const BUBBLE: [f64; 4] = [0.0, 0.12, 0.7, 0.5];
const CORNER: [f64; 4] = [0.74, 0.0, 1.0, 0.33];
/// The sea and the fire, over which nothing is written.
const WATER: [f64; 4] = [0.05, 0.52, 0.35, 0.68];
const FIRE: [f64; 4] = [0.52, 0.55, 0.62, 0.78];

fn moved(a: &Picture, b: &Picture, part: [f64; 4]) -> f64 {
    let (a, b) = (a.part(part), b.part(part));
    let differ = |(a, b): &(&[u8; 3], &[u8; 3])| a.iter().zip(*b).any(|(a, b)| a.abs_diff(*b) > 6);
    a.iter().zip(&b).filter(differ).count() as f64 / a.len() as f64
}

#[test]
fn the_scene_moves_and_the_fox_talks() {
    let (text, [halfway, last]) = run("fox", &["--frames", "300", "--budget", "8"]);
    assert_eq!(number(&text, "frames: "), 300.0);
    assert!(number(&text, "tokens: ") > 20.0 && number(&text, "answers: ") >= 1.0, "{text}");
    assert!(number(&text, "transcripts: ") >= 1.0 && text.contains("One two three. Four five."), "{text}");

    for (what, part) in [("water", WATER), ("fire", FIRE)] {
        let moved = moved(&halfway, &last, part);
        assert!(moved > 0.03, "{:.1} % of the {what} moved", 100.0 * moved);
    }
    for picture in [&halfway, &last] {
        let bubble = picture.part(BUBBLE);
        let paper = count(&bubble, |pixel| pixel.iter().all(|c| *c > 225));
        let ink = count(&bubble, |pixel| pixel.iter().all(|c| *c < 90));
        assert!(paper > 2_000 && ink > 100, "{paper} pixels of the bubble are light, {ink} dark");
    }
    // Each label has its bar, and one stands out.
    let corner = last.part(CORNER);
    let bars = BARS.map(|color| count(&corner, is_near(color)));
    assert!(bars.iter().all(|n| *n > 10), "{bars:?}");
    let most = bars.iter().max().expect("four");
    assert!(*most > 400 && bars.iter().filter(|n| 2 * **n < *most).count() >= 2, "{bars:?}");
}

#[test]
fn the_scene_is_there_without_the_guest() {
    let (text, [halfway, last]) = run("alone", &["--frames", "60", "--no-guest", "--detail", "0.2"]);
    assert!(!text.contains("tokens"), "{text}");
    assert!(moved(&halfway, &last, WATER) > 0.03);
    assert_eq!(count(&last.part(CORNER), is_near(BARS[0])), 0);
}

#[test]
fn a_wrong_option_is_named() {
    for (args, expected) in
        [(&["--budget", "0"][..], "`0`"), (&["--frames"], "`--frames`"), (&["--fox"], "`--fox`")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_scene")).args(args).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains(expected), "{text}");
    }
}
