//! The command-line tool, built from this very tree.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

/// Builds the tool, with the profile that this program has, and returns where it is; or takes that which `IRON_EXEC_BIN` names.
///
/// # Errors
/// If cargo cannot be started, or the build fails.
pub fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("IRON_EXEC_BIN") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--package", "iron-exec", "--bin", "iron-exec", "--features", "cli"]);
    command.args(["--message-format", "json-render-diagnostics"]).arg("--manifest-path").arg(manifest);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let built =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(|error| format!("cargo cannot be started: {error}"))?;
    if !built.status.success() {
        return Err(format!("building iron-exec: {}", built.status).into());
    }
    // One message a line; the one that is wanted names an executable.
    let messages = built.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    let executable = messages.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?))).next_back();
    executable.ok_or_else(|| "cargo names no executable".into())
}
