//! The suite of `make bench`, each scenario in its smallest form: it cannot rot. Its figures are not
//! looked at.

use anyhow::{Result, ensure};
use kube_consul_stack::install_provider;

// What only the command line of the suite uses.
#[allow(dead_code)]
#[path = "../../benches/suite/mod.rs"]
mod suite;

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
