//! Finds the programs of the cluster.

use std::path::{Path, PathBuf};

use anyhow::bail;

/// The path of a program: what its variable names (`KUBE_APISERVER` for
/// `kube-apiserver`), what `make tools` put into `.tools/bin`, or what PATH has.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let variable = name.to_uppercase().replace('-', "_");
    if let Some(path) = std::env::var_os(&variable).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!(
                "{variable} names {}, which is not a file: name a program or unset it",
                path.display()
            );
        }
        return Ok(path);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let tools = root.unwrap_or(Path::new(".")).join(".tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools)
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .map_or_else(
            || {
                bail!(
                    "'{name}' is neither in .tools/bin nor on PATH, and {variable} is not set: \
                     run 'make tools'"
                )
            },
            Ok,
        )
}
