//! [conmon](https://github.com/containers/conmon), which writes the logs of podman's and CRI-O's containers, with a stand-in for the container runtime.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Result;
use crate::sink::{Done, Job, cpu_time_of};

/// Why it cannot be had.
pub(crate) fn missing() -> Option<String> {
    let version = Command::new("conmon").arg("--version").stdout(Stdio::null()).status();
    version.err().map(|error| format!("{error} (Debian: apt-get install conmon)"))
}

/// conmon calls `runtime create … --pid-file FILE ID`, and takes the outputs of that for the container's. The job is not held back until a `start`, of which
/// conmon knows nothing.
pub(crate) fn run(job: &Job, directory: &Path) -> Result<Done> {
    let (runtime, bundle, file) = (directory.join("runtime"), directory.join("bundle"), directory.join("log"));
    fs::create_dir(&bundle)?;
    let command: Vec<String> = job.command.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    let script = format!(
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --pid-file ] && pid_file=$2; shift; done\n{} &\necho $! > \"$pid_file\"\n",
        command.join(" ")
    );
    OpenOptions::new().write(true).create_new(true).mode(0o755).open(&runtime)?.write_all(script.as_bytes())?;
    let mut conmon = Command::new("conmon");
    // It stays our child, its sockets stay here, it does not sync, and does not wait for ever.
    conmon.args(["--sync", "--full-attach", "--no-sync-log", "--timeout", "60", "--cid", "job", "--cuuid", "job", "--name", "job"]);
    conmon.arg("--runtime").arg(&runtime).arg("--bundle").arg(&bundle).arg("--container-pidfile").arg(directory.join("pid"));
    conmon.arg("--socket-dir-path").arg(directory).arg("--exit-dir").arg(directory);
    conmon.arg("--log-path").arg(format!("k8s-file:{}", file.display())).stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let cpu_time = cpu_time_of(conmon.spawn()?)?;
    Ok(Done { time: began.elapsed(), cpu_time, file })
}
