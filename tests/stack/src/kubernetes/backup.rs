//! etcd saved and put back, as an administrator does it who has lost something.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::folder;
use crate::kubernetes::{Kubernetes, KubernetesOptions};

/// Where the cluster keeps them.
const ETCD: usize = 0;
const API_SERVER: usize = 1;

impl Kubernetes {
    /// Copies etcd's data directory as it is now.
    pub async fn back_up(&self) -> Result<PathBuf> {
        let copy = self.folder().join(folder::unique("etcd-backup"));
        // What it has written stays as it is while it stands still.
        self.programs[ETCD].pause().await;
        let copied = copy_folder(&self.etcd_data(), &copy);
        self.programs[ETCD].resume().await;
        copied.map(|()| copy)
    }

    /// Takes the API server and etcd away, puts the copy back and starts them again. Gives the
    /// time at which the API server was ready.
    pub async fn restore(&mut self, backup: &Path) -> Result<Instant> {
        self.programs[API_SERVER].kill().await?;
        self.programs[ETCD].kill().await?;
        let data = self.etcd_data();
        fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
        copy_folder(backup, &data)?;
        let options = KubernetesOptions::default();
        self.programs[ETCD] = self.start_etcd().await?;
        self.programs[API_SERVER] = self.start_apiserver(&options.apiserver_flags).await?;
        self.wait_ready(&options.unready_checks).await?;
        Ok(Instant::now())
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&source, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("copy {}", source.display()))?;
        }
    }
    Ok(())
}
