//! One row of the table.

use anstyle::{AnsiColor, Style};
use serde::{Deserialize, Serialize};

/// What a figure is to be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At most so many times the floor.
    Ratio(f64),
    /// At most this.
    Most(f64),
}

/// One row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// The scenario that it is of.
    pub group: String,
    /// What was measured.
    pub row: String,
    /// In what.
    pub unit: String,
    /// One value a round.
    pub ours: Vec<f64>,
    /// What the floor was in the same rounds; empty: there is none.
    pub floor: Vec<f64>,
    /// What it is to be.
    pub goal: Option<Goal>,
    /// Where it is on the axis of a curve; none: it is a bar.
    pub at: Option<f64>,
}

// === impl Figure ===

impl Figure {
    /// A figure without a floor and a goal.
    pub fn new(row: impl Into<String>, unit: &str, ours: impl IntoIterator<Item = f64>) -> Self {
        let (row, unit) = (row.into(), unit.to_owned());
        let ours = ours.into_iter().collect();
        Self { group: String::new(), row, unit, ours, floor: Vec::new(), goal: None, at: None }
    }

    /// The same with a goal.
    #[must_use]
    pub fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// The same with these values of the floor.
    #[must_use]
    pub fn floor(self, floor: impl IntoIterator<Item = f64>) -> Self {
        Self { floor: floor.into_iter().collect(), ..self }
    }

    /// The same as a point of a curve.
    #[must_use]
    pub fn at(self, place: f64) -> Self {
        Self { at: Some(place), ..self }
    }

    /// The median of the rounds' ratios to the floor.
    pub fn ratio(&self) -> Option<f64> {
        let pairs = self.ours.iter().zip(&self.floor);
        let ratios: Vec<f64> = pairs.map(|(ours, floor)| ours / floor).collect();
        (!ratios.is_empty()).then(|| quantile(&ratios, 0.5))
    }

    fn is_reached(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::Ratio(most) => self.ratio()? <= most,
            Goal::Most(most) => quantile(&self.ours, 0.5) <= most,
        })
    }

    /// The row of the table.
    pub fn line(&self) -> String {
        let ratio = self.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let goal = match self.goal {
            None => String::new(),
            Some(Goal::Ratio(most)) => format!("{most} ×"),
            Some(Goal::Most(most)) => format!("{most} {}", self.unit),
        };
        let reached = match self.is_reached() {
            None => "",
            Some(true) => "yes",
            Some(false) => "no",
        };
        let (row, unit) = (&self.row, &self.unit);
        let (ours, floor) = (spread(&self.ours), spread(&self.floor));
        format!("| {row} | {ours} {unit} | {floor} | {ratio} | {goal} | {reached} |")
    }

    /// Prints it, coloured by whether the goal is reached.
    pub fn show(&self) {
        let color = match self.is_reached() {
            None => Style::new(),
            Some(true) => AnsiColor::Green.on_default(),
            Some(false) => AnsiColor::Yellow.on_default(),
        };
        anstream::println!("{color}{}{color:#}", self.line());
    }
}

/// A quantile of some values, the lower of two; 0 of none.
pub fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list of thousands"
    )]
    let place = (sorted.len().saturating_sub(1) as f64 * quantile) as usize;
    sorted.get(place).copied().unwrap_or_default()
}

fn spread(values: &[f64]) -> String {
    let show = |it: f64| {
        let digits = usize::from(it < 1000.0) + usize::from(it < 10.0);
        format!("{it:.digits$}")
    };
    match values {
        [] => String::new(),
        [one] => show(*one),
        all => {
            let [least, median, most] = [0.0, 0.5, 1.0].map(|it| show(quantile(all, it)));
            format!("{median} ({least} to {most})")
        }
    }
}
