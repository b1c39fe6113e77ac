//! Panels and text as rectangles: letters are drawn once into a texture.

use std::collections::HashMap;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};
use bytemuck::{Pod, Zeroable};

/// Sides of the texture of letters, in pixels.
pub const LETTERS: u32 = 512;

/// A rectangle of the overlay, as `shaders/overlay.wgsl` reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Quad {
    rect: [f32; 4],
    uv: [f32; 4],
    color: [f32; 4],
    radius: f32,
}

/// A letter in the texture.
struct Letter {
    uv: [f32; 4],
    size: [f32; 2],
    /// From the pen on the base line to the upper left corner.
    offset: [f32; 2],
}

/// One font in one size.
pub struct Letters {
    font: FontRef<'static>,
    scale: PxScale,
    letters: HashMap<char, Letter>,
    /// The texture: `[LETTERS, LETTERS]`, a byte a pixel.
    pub pixels: Vec<u8>,
}

impl Letters {
    /// Draws all letters of Latin scripts.
    pub fn new(size: f32) -> Letters {
        let font = FontRef::try_from_slice(epaint_default_fonts::UBUNTU_LIGHT).expect("the font is one");
        let scale = PxScale::from(size);
        let (mut letters, mut pixels) = (HashMap::new(), vec![0; (LETTERS * LETTERS) as usize]);
        let [mut left, mut top, mut height] = [0; 3];
        for letter in (' '..='~').chain('\u{a0}'..='\u{17f}').chain("–—‘’“”…".chars()) {
            let Some(outline) = font.outline_glyph(font.glyph_id(letter).with_scale(scale)) else { continue };
            let bounds = outline.px_bounds();
            let [w, h] = [bounds.width(), bounds.height()].map(|side| side.ceil() as u32);
            if left + w > LETTERS {
                (left, top, height) = (0, top + height + 1, 0);
            }
            if top + h > LETTERS {
                break;
            }
            outline.draw(|x, y, cover| {
                // A little more weight than the light font has: it is read over a moving picture.
                let ink = (cover.powf(0.7) * 255.0) as u8;
                pixels[((top + y) * LETTERS + left + x) as usize] = ink;
            });
            let uv = [left, top, left + w, top + h].map(|side| side as f32 / LETTERS as f32);
            let offset = [bounds.min.x, bounds.min.y];
            letters.insert(letter, Letter { uv, size: [w as f32, h as f32], offset });
            (left, height) = (left + w + 1, height.max(h));
        }
        Letters { font, scale, letters, pixels }
    }

    /// From one base line to the next, in pixels.
    pub fn line(&self) -> f32 {
        (self.scale.y * 1.28).round()
    }

    fn advance(&self, letter: char) -> f32 {
        self.font.as_scaled(self.scale).h_advance(self.font.glyph_id(letter))
    }

    /// The width of a text in pixels.
    pub fn width(&self, text: &str) -> f32 {
        text.chars().map(|letter| self.advance(letter)).sum()
    }

    /// Breaks a text into lines of at most `width` pixels.
    pub fn wrap(&self, text: &str, width: f32) -> Vec<String> {
        let mut lines = Vec::new();
        for paragraph in text.lines() {
            let mut line = String::new();
            for word in paragraph.split_whitespace() {
                let longer = if line.is_empty() { word.to_string() } else { format!("{line} {word}") };
                if self.width(&longer) <= width || line.is_empty() {
                    line = longer;
                } else {
                    lines.push(std::mem::replace(&mut line, word.to_string()));
                }
            }
            lines.push(line);
        }
        lines
    }

    /// Adds the letters of a line whose upper left corner is at `at`.
    pub fn write(&self, quads: &mut Vec<Quad>, text: &str, at: [f32; 2], color: [f32; 4]) {
        let mut pen = at[0];
        let base = (at[1] + self.scale.y * 0.84).round();
        for letter in text.chars() {
            if let Some(Letter { uv, size, offset }) = self.letters.get(&letter) {
                let rect = [(pen + offset[0]).round(), (base + offset[1]).round(), size[0], size[1]];
                quads.push(Quad { rect, uv: *uv, color, radius: -1.0 });
            }
            pen += self.advance(letter);
        }
    }
}

/// Adds a panel with round corners: left, top, width, height in pixels.
pub fn panel(quads: &mut Vec<Quad>, rect: [f32; 4], color: [f32; 4], radius: f32) {
    quads.push(Quad { rect, uv: [0.0; 4], color, radius });
}
