//! A plot of the rows of one group: ours and the floor, with the spread of the rounds.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::figure::{Figure, quantile};

/// Of a row, and of the frame.
const ROW: u32 = 46;
const FRAME: u32 = 60;
const WIDTH: u32 = 900;
/// Of a curve.
const HEIGHT: u32 = 400;
/// Where the bars begin.
const LABELS: i32 = 420;
const OURS: RGBColor = RGBColor(0x1b, 0x6c, 0xa8);
const FLOOR: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);

/// Writes it as SVG. Rows are of several units, so each is drawn to a scale of its own, and says its
/// numbers.
pub fn group(path: &Path, figures: &[Figure]) -> Result<()> {
    let points: Option<Vec<_>> = figures.iter().map(|it| it.at.map(|at| (at, it))).collect();
    let drawn = match points {
        Some(points) => curve(path, &points),
        None => draw(path, figures),
    };
    drawn.map_err(|error| anyhow!("draw {}: {error}", path.display()))
}

fn draw(path: &Path, figures: &[Figure]) -> Result<(), Box<dyn std::error::Error>> {
    let rows = u32::try_from(figures.len())?;
    let height = FRAME + ROW * rows;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = ("sans-serif", 13).into_font();
    let name = figures.first().map_or("", |figure| &figure.group);
    let title =
        format!("{name}: ours (blue) and the floor (grey), median and spread of the rounds");
    area.draw(&Text::new(title, (10, 12), ("sans-serif", 16).into_font()))?;
    for (place, figure) in figures.iter().enumerate() {
        let top = i32::try_from(FRAME + ROW * u32::try_from(place)?)? - 20;
        let label = format!("{} ({})", figure.row, figure.unit);
        area.draw(&Text::new(label, (10, top + 8), text.clone()))?;
        let most = figure.ours.iter().chain(&figure.floor).copied().fold(0.0, f64::max);
        for (values, color, top) in [(&figure.ours, OURS, top), (&figure.floor, FLOOR, top + 17)] {
            if !values.is_empty() && most > 0.0 {
                bar(&area, values, most, color, top)?;
            }
        }
    }
    area.present()?;
    Ok(())
}

/// One figure against another, on a logarithmic axis: median and spread.
fn curve(path: &Path, points: &[(f64, &Figure)]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let (name, unit) = points.first().map_or(("", ""), |(_, it)| (&it.group, &it.unit));
    let all = points.iter().flat_map(|(_, figure)| figure.ours.iter().copied());
    let most = all.fold(0.0, f64::max);
    let lower = points.iter().map(|(at, _)| *at).fold(f64::MAX, f64::min);
    let upper = points.iter().map(|(at, _)| *at).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{name}: median and spread of the rounds"), ("sans-serif", 16))
        .margin(20)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((lower * 0.8..upper * 1.2).log_scale(), 0.0..most * 1.2)?;
    chart.configure_mesh().x_desc("Services resident").y_desc(unit).draw()?;
    let medians = points.iter().map(|(at, figure)| (*at, quantile(&figure.ours, 0.5)));
    chart.draw_series(LineSeries::new(medians, OURS.stroke_width(2)))?;
    chart.draw_series(points.iter().map(|(at, figure)| {
        let [least, median, greatest] = [0.0, 0.5, 1.0].map(|it| quantile(&figure.ours, it));
        ErrorBar::new_vertical(*at, least, median, greatest, OURS.filled(), 8)
    }))?;
    area.present()?;
    Ok(())
}

fn bar<DB: DrawingBackend>(
    area: &DrawingArea<DB, plotters::coord::Shift>,
    values: &[f64],
    most: f64,
    color: RGBColor,
    top: i32,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let room = f64::from(i32::try_from(WIDTH).unwrap_or(i32::MAX) - LABELS - 90);
    #[expect(clippy::cast_possible_truncation, reason = "a place within the picture")]
    let place = |value: f64| LABELS + (value.max(0.0) / most * room) as i32;
    let [least, median, greatest] = [0.0, 0.5, 1.0].map(|it| quantile(values, it));
    let corners = [(LABELS, top), (place(median), top + 14)];
    area.draw(&Rectangle::new(corners, color.filled()))?;
    let spread = [(place(least), top + 7), (place(greatest), top + 7)];
    area.draw(&PathElement::new(spread.to_vec(), BLACK.stroke_width(1)))?;
    let text = format!("{median:.2}");
    let font = ("sans-serif", 12).into_font();
    area.draw(&Text::new(text, (place(greatest) + 6, top + 1), font))
}
