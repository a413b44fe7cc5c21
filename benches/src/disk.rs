//! Where the files of a benchmark are: on a disk, as logs are, or in memory, where a disk would hide what is measured.

use std::fs;
use std::path::Path;

use rustix::fs::statvfs;
use tempfile::{Builder, TempDir};

use crate::Result;

const MEMORY_FILES: &str = "/dev/shm";
const PREFIX: &str = "iron-exec-bench-";

/// A directory of the benchmark's own below `parent`, which goes with the value, and the type of the file system that it is on. `parent` is to be
/// `env!("CARGO_TARGET_TMPDIR")`: what is below /tmp may be in memory.
///
/// # Errors
/// If it cannot be made, or nobody knows what it is on.
pub fn directory(parent: &str) -> Result<(TempDir, String)> {
    fs::create_dir_all(parent)?;
    let directory = Builder::new().prefix(PREFIX).tempdir_in(parent)?;
    let kind = file_system(directory.path())?;
    Ok((directory, kind))
}

/// A directory as [`directory`] makes it, but in memory if so many bytes can be written there, and otherwise where temporary files are.
///
/// # Errors
/// As [`directory`].
pub fn memory(bytes: u64) -> Result<(TempDir, String)> {
    let has_room = statvfs(MEMORY_FILES).is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) >= bytes);
    let in_memory = if has_room { Builder::new().prefix(PREFIX).tempdir_in(MEMORY_FILES).ok() } else { None };
    let directory = in_memory.map_or_else(|| Builder::new().prefix(PREFIX).tempdir(), Ok)?;
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{MEMORY_FILES, memory};
    use crate::Result;

    #[test]
    fn what_does_not_fit_into_memory_is_not_there() -> Result<()> {
        let (directory, _) = memory(u64::MAX)?;
        assert!(directory.path().is_dir() && directory.path().parent() != Some(Path::new(MEMORY_FILES)));
        Ok(())
    }
}
