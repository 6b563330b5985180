//! `install`: copies this program into a shared volume, for images that have no `cp`.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::Error;

/// The name under which lifecycle hooks call the registration hook.
const HOOK_NAME: &str = "consul-registration-hook";
/// Everybody may run it: the application's user is not ours.
const MODE: u32 = 0o755;

/// Copies the running program to `directory/kube-consul`, with the hook's old name as a link to
/// it. Whoever runs an older copy keeps it: the new one takes its place whole.
pub fn main(directory: &Path) -> Result<(), Error> {
    let failed = |what: &str, error: &io::Error| {
        Error::Failed(format!("{what} {}: {error}", directory.display()))
    };
    let program =
        std::env::current_exe().map_err(|error| failed("cannot find this program for", &error))?;
    let target = directory.join("kube-consul");
    let draft = directory.join(format!(".kube-consul.{}", std::process::id()));
    let copied = fs::copy(&program, &draft)
        .and_then(|_| fs::set_permissions(&draft, fs::Permissions::from_mode(MODE)))
        .and_then(|()| fs::rename(&draft, &target));
    if let Err(error) = copied {
        // The directory may not even exist.
        let _ = fs::remove_file(&draft);
        return Err(failed("cannot copy this program to", &error));
    }
    let link = directory.join(HOOK_NAME);
    match symlink("kube-consul", &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed(&format!("cannot link {HOOK_NAME} in"), &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_copied_and_linked_and_that_can_be_repeated() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            main(directory.path()).unwrap();
            let copy = fs::metadata(directory.path().join("kube-consul")).unwrap();
            assert_eq!(copy.len(), fs::metadata(std::env::current_exe().unwrap()).unwrap().len());
            assert_eq!(copy.permissions().mode() & 0o777, MODE);
            let link = fs::read_link(directory.path().join(HOOK_NAME)).unwrap();
            assert_eq!(link, Path::new("kube-consul"));
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = main(Path::new("/nonexistent/bin")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/bin"), "{error}");
    }
}
