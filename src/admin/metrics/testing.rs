//! What is served, and what a page says of it.

use std::collections::{BTreeMap, BTreeSet};

/// Each metric that has a sample, with its labels, as a query names it; histograms by their
/// name alone.
pub(crate) fn served(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut types = BTreeMap::new();
    let mut metrics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').unwrap();
            types.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let end = line.find(['{', ' ']).unwrap();
            let is_histogram =
                |name: &&str| types.get(*name).is_some_and(|kind| kind == "histogram");
            let endings = ["_bucket", "_sum", "_count"];
            let name = endings.iter().filter_map(|it| line[..end].strip_suffix(it));
            let name = name.clone().find(is_histogram).unwrap_or(&line[..end]);
            let labels =
                line.split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap());
            let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0));
            let labels = labels.filter(|label| *label != "le").map(str::to_owned);
            metrics.entry(name.to_owned()).or_default().extend(labels);
        }
    }
    metrics
}

/// The words in backticks.
pub(crate) fn words(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The metrics that the page explains, with their labels.
pub(crate) fn documented(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let is_metric = |name: &str| name.contains('_') && !name.contains([' ', '-', '.']);
    let rows = rows.filter(|row| is_metric(row.split('`').next().unwrap()));
    let row = |row: &str| {
        let mut cells = row.split('|');
        let names = words(&format!("`{}", cells.next().unwrap()));
        let labels = words(cells.next().unwrap());
        names.into_iter().map(move |name| (name, labels.clone())).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
}
