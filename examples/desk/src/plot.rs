//! A small graph of values over time.

use std::collections::VecDeque;

use eframe::egui::{Align2, Color32, FontId, Pos2, Rect, Sense, Stroke, Ui, pos2, vec2};

/// The last values, oldest first.
pub struct Plot {
    name: &'static str,
    unit: &'static str,
    color: Color32,
    values: VecDeque<f32>,
    most: usize,
}

impl Plot {
    /// A graph of the last `most` values.
    pub fn new(name: &'static str, unit: &'static str, color: Color32, most: usize) -> Plot {
        Plot { name, unit, color, values: VecDeque::new(), most }
    }

    pub fn push(&mut self, value: f32) {
        if self.values.len() == self.most {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    /// Draws it, as wide as there is room.
    pub fn show(&self, ui: &mut Ui, height: f32) {
        let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), height), Sense::hover());
        let painter = ui.painter_at(rect);
        painter.rect_filled(rect, 4.0, ui.visuals().extreme_bg_color);
        let top = self.values.iter().copied().fold(0.0, f32::max).max(1e-3) * 1.15;
        let inside = Rect::from_min_max(rect.min + vec2(4.0, 20.0), rect.max - vec2(4.0, 4.0));
        let step = inside.width() / (self.most - 1) as f32;
        let point = |(i, value): (usize, &f32)| -> Pos2 {
            let x = inside.right() - (self.values.len() - 1 - i) as f32 * step;
            pos2(x, inside.bottom() - value / top * inside.height())
        };
        let points: Vec<Pos2> = self.values.iter().enumerate().map(point).collect();
        painter.line(points, Stroke::new(1.5, self.color));
        let last = self.values.back().map_or("–".to_string(), |value| format!("{value:.1} {}", self.unit));
        let (font, text) = (FontId::proportional(12.0), ui.visuals().text_color());
        painter.text(rect.min + vec2(6.0, 3.0), Align2::LEFT_TOP, self.name, font.clone(), text);
        painter.text(rect.right_top() + vec2(-6.0, 3.0), Align2::RIGHT_TOP, last, font, self.color);
    }
}
