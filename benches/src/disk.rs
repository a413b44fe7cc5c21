//! Where the files of a benchmark are: on a disk, as logs are.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::Result;

/// A directory of the benchmark's own below `parent`, which goes with the value, and the type of the file system that it is on. `parent` is to be
/// `env!("CARGO_TARGET_TMPDIR")`: what is below /tmp may be in memory.
///
/// # Errors
/// If it cannot be made, or nobody knows what it is on.
pub fn directory(parent: &str) -> Result<(TempDir, String)> {
    fs::create_dir_all(parent)?;
    let directory = tempfile::Builder::new().prefix("iron-exec-bench-").tempdir_in(parent)?;
    let kind = file_system(directory.path())?;
    Ok((directory, kind))
}

/// The type of the file system of `path`; see proc_pid_mounts(5).
fn file_system(path: &Path) -> Result<String> {
    let (path, mounts) = (path.canonicalize()?, fs::read_to_string("/proc/self/mounts")?);
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let (place, kind) = (fields.nth(1)?.to_owned(), fields.next()?.to_owned());
        path.starts_with(&place).then_some((place.len(), kind))
    };
    // The longest is the innermost; of two at one place, the later hides the other.
    let innermost = mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length);
    Ok(innermost.ok_or("nothing is mounted")?.1)
}
