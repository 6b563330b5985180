//! `install`: copies this program into a shared volume, for images that have no `cp`.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::run::Error;

/// The name under which lifecycle hooks call the registration hook.
pub const HOOK_NAME: &str = "consul-registration-hook";
/// The name of the program whose work `import` does.
pub const CONSUL8S_NAME: &str = "consul8s";
/// The name of katalog-sync's daemon, whose work `node` does.
pub const DAEMON_NAME: &str = "katalog-sync-daemon";
/// The name of katalog-sync's sidecar, whose work `sidecar` does.
pub const SIDECAR_NAME: &str = "katalog-sync-sidecar";
/// The names of the programs that this one replaces: called by one, it takes its command line.
const OLD_NAMES: [&str; 4] = [HOOK_NAME, CONSUL8S_NAME, DAEMON_NAME, SIDECAR_NAME];
/// The program's own name.
const PROGRAM_NAME: &str = "kube-consul";
/// Everybody may run it: the application's user is not ours.
const MODE: u32 = 0o755;

/// Copies the running program to `directory/kube-consul`, with the names of the programs that it
/// replaces as links to it. Whoever runs an older copy, or the program that had this name before, keeps it: the new one
/// takes its place whole.
pub fn main(directory: &Path) -> Result<(), Error> {
    let failed = |what: &str, error: &io::Error| {
        Error::Failed(format!("{what} {}: {error}", directory.display()))
    };
    let program =
        std::env::current_exe().map_err(|error| failed("cannot find this program for", &error))?;
    let draft = directory.join(format!(".kube-consul.{}", std::process::id()));
    place(&program, &draft, directory).map_err(|error| {
        // It may not even be there.
        let _ = fs::remove_file(&draft);
        failed("cannot copy this program to", &error)
    })
}

/// Each file is a draft first, which then takes its name.
fn place(program: &Path, draft: &Path, directory: &Path) -> io::Result<()> {
    fs::copy(program, draft)?;
    fs::set_permissions(draft, fs::Permissions::from_mode(MODE))?;
    fs::rename(draft, directory.join(PROGRAM_NAME))?;
    for name in OLD_NAMES {
        symlink(PROGRAM_NAME, draft)?;
        fs::rename(draft, directory.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_copied_and_linked_and_that_can_be_repeated() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(HOOK_NAME), "the old hook").unwrap();
        for _ in 0..2 {
            main(directory.path()).unwrap();
            let copy = fs::metadata(directory.path().join(PROGRAM_NAME)).unwrap();
            assert_eq!(copy.len(), fs::metadata(std::env::current_exe().unwrap()).unwrap().len());
            assert_eq!(copy.permissions().mode() & 0o777, MODE);
            for name in OLD_NAMES {
                let link = fs::read_link(directory.path().join(name)).unwrap();
                assert_eq!(link, Path::new(PROGRAM_NAME));
            }
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1 + OLD_NAMES.len());
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = main(Path::new("/nonexistent/bin")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/bin"), "{error}");
    }
}
