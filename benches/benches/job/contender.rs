//! Those that are compared.

use std::path::{Path, PathBuf};

use iron_exec::Timestamp;
use iron_exec::framing::cri::{self, Stamp};
use iron_exec::framing::{Ending, Piece};
use iron_exec_benches::Result;
use tempfile::TempDir;

use crate::floor::Bare;
use crate::heat::Heat;
use crate::iron::IronExec;
use crate::peer::{Entry, Tokio};

pub(crate) const FLOOR: &str = "floor";
pub(crate) const OURS: &str = "iron-exec";
pub(crate) const UNCONFIRMED: &str = "iron-exec, unconfirmed";
pub(crate) const PEER: &str = "tokio + cgroup.procs";
pub(crate) const HOOKED: &str = "tokio + pre_exec";
const PEER_ALONE: &str = "tokio, no cgroup";

/// All rows of the tables.
pub(crate) const ROWS: [&str; 6] = [FLOOR, OURS, UNCONFIRMED, PEER, HOOKED, PEER_ALONE];

/// Whether what goes wrong with it is no fault of ours.
pub(crate) fn is_peer(row: &str) -> bool {
    matches!(row, PEER | HOOKED | PEER_ALONE)
}

/// One way to run jobs.
pub(crate) trait Contender {
    /// Runs jobs as long as the heat wants more, then the rest to their end.
    fn run(&mut self, heat: &mut Heat) -> Result<()>;
}

/// What a contender has to itself.
#[derive(Debug)]
pub(crate) struct Place {
    /// What is started.
    pub(crate) program: PathBuf,
    pub(crate) logs: TempDir,
    /// In which it makes those of its jobs, as all do, in turn; none where there are no cgroups.
    pub(crate) cgroup: Option<PathBuf>,
}

impl Place {
    /// With a directory for its logs below that one.
    pub(crate) fn new(program: &Path, logs: &Path, cgroup: Option<&Path>) -> Result<Self> {
        let logs = tempfile::Builder::new().prefix("jobs_").tempdir_in(logs)?;
        Ok(Self { program: program.to_owned(), logs, cgroup: cgroup.map(Path::to_owned) })
    }

    /// What the names of its jobs begin with: nobody else's do, so that a cgroup that one has left is not in the way of another.
    pub(crate) fn prefix(&self) -> String {
        self.logs.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The contender of that row; `None` if it cannot be had without cgroups.
pub(crate) fn of(row: &str, place: &Place, in_flight_max: usize) -> Result<Option<Box<dyn Contender>>> {
    let boxed: Box<dyn Contender> = match row {
        FLOOR => Box::new(Bare::new(place, in_flight_max)?),
        OURS => Box::new(IronExec::new(place, true)?),
        UNCONFIRMED => Box::new(IronExec::new(place, false)?),
        PEER | HOOKED if place.cgroup.is_none() => return Ok(None),
        PEER => Box::new(Tokio::new(place, Some(Entry::Moved))?),
        HOOKED => Box::new(Tokio::new(place, Some(Entry::Hook))?),
        _ => Box::new(Tokio::new(place, None)?),
    };
    Ok(Some(boxed))
}

/// Writes records: the same for all who have no log format of their own.
pub(crate) struct Records(Stamp);

impl Records {
    pub(crate) fn new() -> Self {
        Self(Stamp::new())
    }

    /// Appends the record of a line, which comes without its line feed, as of now.
    pub(crate) fn encode(&mut self, out: &mut Vec<u8>, stream: iron_exec::OutputStream, line: &[u8]) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let nanos = u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default();
        let piece = Piece { bytes: line, ending: Ending::Newline };
        cri::encode(out, self.0.at(Timestamp::from_unix_nanos(nanos)), stream, piece);
    }
}
