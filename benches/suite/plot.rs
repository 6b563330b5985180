//! A plot of the rows of one group: ours and the floor, with the spread of the rounds.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::report::{Figure, quantile};

/// Of a row, and of the frame.
const ROW: u32 = 46;
const FRAME: u32 = 60;
const WIDTH: u32 = 900;
/// Where the bars begin.
const LABELS: i32 = 420;
const OURS: RGBColor = RGBColor(0x1b, 0x6c, 0xa8);
const FLOOR: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);

/// Writes it as SVG. Rows are of several units, so each is drawn to a scale of its own, and says its
/// numbers.
pub fn group(path: &Path, figures: &[Figure]) -> Result<()> {
    draw(path, figures).map_err(|error| anyhow!("draw {}: {error}", path.display()))
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
