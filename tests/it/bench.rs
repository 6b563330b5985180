//! The suite of `make bench`, each scenario in its smallest form: it cannot rot. Its figures are not
//! looked at.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use kube_consul_stack::install_provider;

// What only the command line of the suite uses.
#[allow(dead_code)]
#[path = "../../benches/suite/mod.rs"]
mod suite;

use self::suite::report::{Report, split};
use self::suite::{Scale, Suite};

#[tokio::test]
async fn each_scenario_of_make_bench_gives_its_rows() -> Result<()> {
    install_provider();
    let suite = Suite::new(Scale::smallest(env!("CARGO_BIN_EXE_kube-consul").into()), "");
    let report = suite.run().await?;
    let folder = tempfile::tempdir()?;
    report.write(folder.path())?;
    ensure!(report.failures.is_empty(), "{:?}", report.failures);
    Ok(())
}

/// Both are written by `make bench`.
#[test]
fn the_page_of_performance_has_the_table_of_its_run() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = fs::read_to_string(docs.join("performance.md"))?;
    let json = docs.join("performance/bench.json");
    let table = if json.exists() {
        serde_json::from_slice::<Report>(&fs::read(json)?)?.table()
    } else {
        "Not measured yet.\n".to_owned()
    };
    let (_, found, _) = split(&page)?;
    ensure!(found == table, "docs/performance.md has another table than the JSON beside it");
    Ok(())
}
