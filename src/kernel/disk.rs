//! Disks, by number: the kernel limits the I/O of whole ones.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::logic::kernel_text;
use crate::model::limits::{DiskMax, IoDevice, IoMax};

/// Where the kernel lists whole disks, by name.
const DISKS: &str = "/sys/block";

/// Where it lists block devices, by number.
const DEVICES: &str = "/sys/dev/block";

/// A device whose disk was not found.
#[derive(Debug)]
pub(crate) struct DiskFault {
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
    pub(crate) advice: &'static str,
}

/// What is said about I/O, disk by disk: what holds for all of them first.
pub(crate) fn resolve(io_max: &[(IoDevice, IoMax)]) -> Result<Vec<DiskMax>, DiskFault> {
    let mut resolved = Vec::new();
    for (_, max) in io_max.iter().filter(|(device, _)| *device == IoDevice::All) {
        let failed = |error| DiskFault { path: DISKS.into(), error, advice: "sysfs has to be mounted at /sys" };
        let disks = whole_disks().map_err(failed)?;
        resolved.extend(disks.into_iter().map(|(major, minor)| DiskMax { major, minor, max: *max, is_named: false }));
    }
    for (device, max) in io_max {
        let (major, minor) = match device {
            IoDevice::All => continue,
            IoDevice::Number { major, minor } => disk_of(*major, *minor, &PathBuf::from(format!("{DEVICES}/{major}:{minor}")))?,
            IoDevice::Path(path) => {
                let metadata = fs::metadata(path).map_err(|error| DiskFault {
                    path: path.clone(),
                    error,
                    advice: "name a device, or a file on it",
                })?;
                let number = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
                disk_of(rustix::fs::major(number), rustix::fs::minor(number), path)?
            }
        };
        resolved.push(DiskMax { major, minor, max: *max, is_named: true });
    }
    Ok(resolved)
}

/// The number of the whole disk that a block device is, or is a partition of. `asked` is what was asked for.
fn disk_of(major: u32, minor: u32, asked: &Path) -> Result<(u32, u32), DiskFault> {
    let fault = |error, advice| DiskFault { path: asked.to_owned(), error, advice };
    let not_a_disk =
        "it is no disk, nor stored on a single one (a tmpfs, overlay, network or multi-disk file system is not): name the disk";
    let device = PathBuf::from(format!("{DEVICES}/{major}:{minor}"));
    match fs::exists(device.join("partition")) {
        _ if !fs::exists(&device).unwrap_or(false) => Err(fault(Errno::NODEV.into(), not_a_disk)),
        Ok(false) => Ok((major, minor)),
        Ok(true) => {
            // The directory is a link; what is above what it leads to is the disk.
            let number = fs::read(device.join("../dev")).map_err(|error| fault(error, not_a_disk))?;
            kernel_text::device_number(&number).ok_or_else(|| fault(Errno::NODEV.into(), not_a_disk))
        }
        Err(error) => Err(fault(error, not_a_disk)),
    }
}

fn whole_disks() -> io::Result<Vec<(u32, u32)>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(DISKS)? {
        // One that is gone in between is not limited; a path of a multipath disk has no number of its own.
        let number = fs::read(entry?.path().join("dev")).ok();
        disks.extend(number.as_deref().and_then(kernel_text::device_number));
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_no_disk_has_none_and_says_so() {
        for path in ["/proc/self/status", "/dev/null", "/no/such/device"] {
            let fault = resolve(&[(IoDevice::Path(path.into()), IoMax::new())]).unwrap_err();
            assert_eq!(fault.path, Path::new(path));
        }
        let fault = resolve(&[(IoDevice::Number { major: 4095, minor: 1 }, IoMax::new())]).unwrap_err();
        assert_eq!(Errno::from_io_error(&fault.error), Some(Errno::NODEV));
    }

    #[test]
    fn every_whole_disk_is_one() {
        for (major, minor) in whole_disks().unwrap() {
            assert_eq!(disk_of(major, minor, Path::new("")).unwrap(), (major, minor));
        }
    }
}
