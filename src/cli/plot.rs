//! Plots of reports, as SVG.

use plotters::prelude::*;
use wginfer::bench::{Comparison, KernelReport, KernelRow, ModelReport};

use super::failure::Failure;
use super::output::Target;

/// Writes a plot to a file.
pub fn save(target: &Target, svg: &str) -> Result<(), Failure> {
    target.write(|out| Ok(out.write_all(svg.as_bytes())?))
}

/// An error of the plotting library.
fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("the plot cannot be drawn: {error}"))
}

const FONT: &str = "sans-serif";
/// One colour per operation: those that colour-blind readers can distinguish (Okabe & Ito 2008), then others.
const COLOURS: [RGBColor; 14] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(180, 170, 20),
    RGBColor(120, 120, 120),
    RGBColor(70, 30, 130),
    RGBColor(130, 80, 30),
    RGBColor(0, 60, 60),
    RGBColor(250, 130, 160),
    RGBColor(120, 220, 120),
    RGBColor(0, 0, 0),
];

fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

/// The style of a point: hollow if no model runs the variant.
fn point(i: usize, is_default: bool) -> ShapeStyle {
    if is_default { colour(i).mix(0.8).filled() } else { colour(i).stroke_width(1) }
}

/// The roofline plot (Williams et al. 2009). Each kernel is a point: x is operations per byte, y operations per second.
pub fn roofline(report: &KernelReport) -> Result<String, Failure> {
    // Kernels that do no arithmetic have no place in this plot.
    let rows: Vec<&KernelRow> = report.rows.iter().filter(|row| row.gflops > 0.0 && row.gbps > 0.0).collect();
    let place = |row: &KernelRow| (row.gflops / row.gbps, row.gflops);
    let limits = &report.limits;
    let ridge = limits.fma_gflops / limits.copy_gbps;
    let span = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        (low / 2.0, high * 2.0)
    };
    let (x0, x1) = span(&mut rows.iter().map(|row| place(row).0).chain([ridge, ridge * 4.0]));
    let (y0, y1) = span(&mut rows.iter().map(|row| place(row).1).chain([limits.fma_gflops]));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (960, 640)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let title = format!(
            "{}: {:.0} GB/s, {:.0} GFLOP/s",
            report.meta.adapter, limits.copy_gbps, limits.fma_gflops
        );
        let mut chart = ChartBuilder::on(&root)
            .caption(title, (FONT, 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d((x0..x1).log_scale(), (y0..y1).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("operations a byte")
            .y_desc("GFLOP/s")
            .draw()
            .map_err(failed)?;
        let roof = |x: f64| (x, limits.fma_gflops.min(x * limits.copy_gbps));
        let line = PathElement::new(vec![roof(x0), roof(ridge), roof(x1)], BLACK.stroke_width(2));
        chart.draw_series([line]).map_err(failed)?;
        let mut kernels: Vec<&str> = rows.iter().map(|row| row.kernel.as_str()).collect();
        kernels.dedup();
        for (i, kernel) in kernels.into_iter().enumerate() {
            let of_kernel = rows.iter().filter(|row| row.kernel == kernel && row.is_right);
            let points = of_kernel.map(|row| Circle::new(place(row), 4, point(i, row.is_default)));
            let drawn = chart.draw_series(points).map_err(failed)?;
            drawn.label(kernel).legend(move |at| Circle::new(at, 4, point(i, true)));
        }
        let wrong: Vec<_> = rows.iter().filter(|row| !row.is_right).collect();
        if !wrong.is_empty() {
            let cross = |at| Cross::new(at, 6, RED.stroke_width(2));
            let drawn = chart.draw_series(wrong.into_iter().map(|row| cross(place(row)))).map_err(failed)?;
            drawn.label("wrong").legend(|at| Cross::new(at, 5, RED.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, 13))
            .draw()
            .map_err(failed)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// A bar: its label, its value and the ends of its spread.
struct Bar {
    colour: RGBColor,
    text: String,
    value: f64,
    low: f64,
    high: f64,
}

/// Tokens per second of each test.
pub fn model_bars(report: &ModelReport) -> Result<String, Failure> {
    let title =
        format!("{} {}, {}: tokens a second", report.model.name, report.model.dtype, report.meta.adapter);
    let bar = |row: &wginfer::bench::ModelRow| {
        let (value, sigma) = (row.tokens_per_second, row.sigma);
        let text = format!("{value:.1} ± {sigma:.1}");
        (row.label(), vec![Bar { colour: colour(0), text, value, low: value - sigma, high: value + sigma }])
    };
    bars(&title, &[], report.rows.iter().map(bar).collect())
}

/// Speedups over the first run, where they are known.
pub fn comparison_bars(comparison: &Comparison) -> Result<String, Failure> {
    let title = format!("times faster than {}", comparison.names.first().map_or("", String::as_str));
    let group = |row: &wginfer::bench::ComparedRow| {
        let bar = |(i, value): (usize, &Option<wginfer::bench::Value>)| {
            let speedup = value.as_ref()?.speedup?;
            let mark = if value.as_ref()?.is_outside { " *" } else { "" };
            let text = format!("{speedup:.2}{mark}");
            Some(Bar { colour: colour(i), text, value: speedup, low: speedup, high: speedup })
        };
        let bars: Vec<Bar> = row.values.iter().enumerate().filter_map(bar).collect();
        (row.label.clone(), bars)
    };
    let groups = comparison.rows.iter().map(group).filter(|(_, bars)| !bars.is_empty()).collect();
    let legend: Vec<(String, RGBColor)> =
        comparison.names.iter().enumerate().skip(1).map(|(i, name)| (name.clone(), colour(i))).collect();
    bars(&title, &legend, groups)
}

/// Horizontal bars in groups, one below the other.
fn bars(
    title: &str,
    legend: &[(String, RGBColor)],
    groups: Vec<(String, Vec<Bar>)>,
) -> Result<String, Failure> {
    // In pixels; a letter is about 7 wide.
    const WIDTH: i32 = 960;
    const HEIGHT: i32 = 18;
    const GAP: i32 = 8;
    const LETTER: i32 = 7;
    let longest = groups.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0) as i32;
    let left = (longest * LETTER + 24).min(WIDTH * 2 / 3);
    let room = WIDTH - left - 140;
    let top = 44 + legend.len() as i32 * HEIGHT;
    let n_bars: i32 = groups.iter().map(|(_, bars)| bars.len() as i32).sum();
    let height = top + n_bars * HEIGHT + groups.len() as i32 * GAP + 16;
    let largest = groups.iter().flat_map(|(_, bars)| bars).fold(f64::MIN_POSITIVE, |m, bar| m.max(bar.high));
    let at = |value: f64| left + (value.max(0.0) / largest * f64::from(room)) as i32;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let text = |text: &str, x: i32, y: i32, size: i32| {
            root.draw(&Text::new(text.to_string(), (x, y), (FONT, size))).map_err(failed)
        };
        text(title, 12, 12, 18)?;
        for (i, (name, colour)) in legend.iter().enumerate() {
            let y = 40 + i as i32 * HEIGHT;
            root.draw(&Rectangle::new([(12, y), (24, y + 12)], colour.filled())).map_err(failed)?;
            text(name, 32, y, 13)?;
        }
        let mut y = top;
        for (label, bars) in &groups {
            text(label, 12, y + 3, 13)?;
            for bar in bars {
                let corners = [(left, y), (at(bar.value), y + HEIGHT - 4)];
                root.draw(&Rectangle::new(corners, bar.colour.filled())).map_err(failed)?;
                let middle = y + (HEIGHT - 4) / 2;
                let spread = vec![(at(bar.low), middle), (at(bar.high), middle)];
                root.draw(&PathElement::new(spread, BLACK.stroke_width(1))).map_err(failed)?;
                text(&bar.text, at(bar.high) + 8, y + 2, 13)?;
                y += HEIGHT;
            }
            y += GAP;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}
