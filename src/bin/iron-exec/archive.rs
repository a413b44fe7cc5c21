//! `iron-exec archive`: sealed logs into S3-compatible storage, each reported as stored only when that is certain.
//!
//! - [`target`]: where files go: the bucket and the keys.
//! - [`source`]: a file: opened, read, looked at again.
//! - [`store`]: the storage: what is asked of it, and what its answers mean.
//! - [`deposit`]: one file on its way.
//! - [`ledger`]: the report.

mod deposit;
mod ledger;
mod source;
mod store;
mod target;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::future::poll_fn;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::args::{ArchiveArgs, CompressName};
use crate::report::{Fault, complain, exit, quoted, quoted_path};
use crate::signals::StopRequests;

use self::deposit::{Deposited, Plan, STOPPED, Shared, deposit};
use self::ledger::{Fate, Ledger, one_line};
use self::source::Source;
use self::store::{Failure, Store};
use self::target::Packing;

pub(crate) use self::target::Target;

/// Files under way at a time: enough to hide the server's latency; each holds one part in memory.
const FILES_AT_A_TIME: usize = 4;

/// The most that is read of a list of names.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// Stores the files; returns the exit code.
pub(crate) fn run(args: &ArchiveArgs) -> Result<u8, Fault> {
    let ledger = Ledger::open(args.report_fd)?;
    let directory = source::open_directory(&args.directory).map_err(|errno| {
        Fault::new(format!("opening the directory {} failed: {}", quoted_path(&args.directory), io::Error::from(errno)))
    })?;
    let mut names: VecDeque<OsString> = args.files.iter().cloned().collect();
    if args.files0_from.is_some() {
        names.extend(read_names(&mut io::stdin().lock())?);
    }
    let (stop, stopped) = watch::channel(false);
    let plan = Plan {
        target: args.to.clone(),
        packing: match args.compress {
            CompressName::Zstd => Packing::Zstd,
            CompressName::None => Packing::Plain,
        },
        read_back_bytes_max: args.read_back_max,
        timeout: args.timeout,
        stopped,
    };
    let store = Store::from_env(&args.to, args.retries, args.timeout)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2 * FILES_AT_A_TIME)
        .build()
        .map_err(|error| Fault::caused("setting up the event loop failed", &error))?;
    let requests = StopRequests::listen().map_err(|error| Fault::caused("listening for signals failed", &error))?;
    let code = runtime.block_on(async {
        let stopper = Stopper::new(&requests, stop).map_err(|error| Fault::caused("listening for signals failed", &error))?;
        if !names.is_empty() {
            store.check_credentials().await?;
        }
        store_all(&Arc::new((store, plan)), &directory, names, &ledger, &stopper).await
    });
    // A disk or a name server that does not answer holds up nobody.
    runtime.shutdown_background();
    code
}

/// Stores file after file, a few at a time.
async fn store_all(
    shared: &Shared,
    directory: &Arc<OwnedFd>,
    mut names: VecDeque<OsString>,
    ledger: &Ledger,
    stopper: &Stopper,
) -> Result<u8, Fault> {
    let mut under_way = JoinSet::new();
    let mut code = exit::SUCCESS;
    // What every file would meet.
    let mut general: Option<String> = None;
    let mut not_tried: usize = 0;
    loop {
        while under_way.len() < FILES_AT_A_TIME
            && let Some(name) = names.pop_front()
        {
            if let Some(reason) = &general {
                not_tried += 1;
                code = exit::NOT_ALL_WELL;
                if let Err(end) = ledger.write(&Fate::Failed(format!("not tried: {reason}")), &name) {
                    return end;
                }
                continue;
            }
            match open(directory, &name) {
                Ok(source) => {
                    let shared = Arc::clone(shared);
                    under_way.spawn(async move {
                        let (store, plan) = &*shared;
                        (deposit(store, plan, &source).await, name)
                    });
                }
                Err(reason) => {
                    code = exit::NOT_ALL_WELL;
                    if let Err(end) = on_failure(ledger, &name, reason, true) {
                        return end;
                    }
                }
            }
        }
        let joined = match stopper.next(&mut under_way).await {
            Wake::Joined(Some(joined)) => joined,
            Wake::Joined(None) => break,
            Wake::Stop if *stopper.stop.borrow() => {
                complain("told twice to stop: what was under way is given up, and nothing is known of it");
                return Ok(exit::NOT_ALL_WELL);
            }
            Wake::Stop => {
                // Uploads that are not finished are removed first.
                stopper.stop.send_replace(true);
                general.get_or_insert_with(|| STOPPED.to_owned());
                complain("told to stop: what is not stored yet will not be");
                continue;
            }
        };
        let (result, name): (Result<Deposited, Failure>, OsString) =
            joined.map_err(|error| Fault::caused("storing a file failed", &error))?;
        match result {
            Ok(deposited) => {
                if deposited.is_second_key {
                    complain(&format!(
                        "{}: another object has its key, so it is {}",
                        quoted(name.as_bytes()),
                        quoted(deposited.key.as_bytes())
                    ));
                }
                let fate = Fate::Stored { bytes: deposited.digests.stored_bytes, sha256: deposited.digests.stored_sha256 };
                if let Err(end) = ledger.write(&fate, &name) {
                    return end;
                }
            }
            Err(failure) => {
                code = exit::NOT_ALL_WELL;
                let is_news = general.is_none();
                if failure.is_general {
                    general.get_or_insert_with(|| failure.reason.clone());
                }
                if let Err(end) = on_failure(ledger, &name, failure.reason, is_news) {
                    return end;
                }
            }
        }
    }
    if not_tried > 0 {
        complain(&format!("for the same reason, files that were not tried: {not_tried}"));
    }
    Ok(code)
}

/// Requests to stop, from us to whatever is under way.
struct Stopper {
    listener: UnixStream,
    stop: watch::Sender<bool>,
}

/// What there is to be done.
enum Wake<T> {
    /// A file has come to its end; `None`: there is none.
    Joined(Option<Result<T, JoinError>>),
    /// We were told to stop.
    Stop,
}

impl Stopper {
    fn new(requests: &StopRequests, stop: watch::Sender<bool>) -> io::Result<Self> {
        let socket = net::UnixStream::from(requests.as_fd().try_clone_to_owned()?);
        Ok(Self { listener: UnixStream::from_std(socket)?, stop })
    }

    /// Waits until there is something to be done.
    async fn next<T: 'static>(&self, under_way: &mut JoinSet<T>) -> Wake<T> {
        poll_fn(|context| {
            while self.listener.poll_read_ready(context).is_ready() {
                match self.listener.try_read(&mut [0]) {
                    Ok(_) => return Poll::Ready(Wake::Stop),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // Nothing can be wrong with a socket whose other end we hold.
                    Err(_) => break,
                }
            }
            under_way.poll_join_next(context).map(Wake::Joined)
        })
        .await
    }
}

/// Reports a failure, to people only if they do not know it yet.
fn on_failure(ledger: &Ledger, name: &OsStr, reason: String, is_news: bool) -> Result<(), Result<u8, Fault>> {
    if is_news {
        complain(&format!("storing {} failed: {}", quoted(name.as_bytes()), one_line(&reason)));
    }
    ledger.write(&Fate::Failed(reason), name)
}

/// Opens a file to be stored: in `directory`, or, if it is given with a path, in the directory that its path says from there.
fn open(directory: &Arc<OwnedFd>, name: &OsStr) -> Result<Source, String> {
    if name.as_bytes().contains(&b'\n') {
        return Err("its name holds a line feed, which the report cannot: rename it".to_owned());
    }
    let path = Path::new(name);
    let (Some(parent), Some(file_name)) = (path.parent().filter(|parent| !parent.as_os_str().is_empty()), path.file_name()) else {
        return Source::open(directory, name);
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(directory, parent, flags, Mode::empty())
        .map_err(|errno| format!("opening its directory failed: {}", io::Error::from(errno)))?;
    Source::open(&Arc::new(parent), file_name)
}

/// The names of a list, each with a NUL after it.
fn read_names(list: &mut dyn Read) -> Result<Vec<OsString>, Fault> {
    let mut bytes = Vec::new();
    list.take(LIST_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Fault::caused("reading the list of files from stdin failed", &error))?;
    if bytes.len() as u64 > LIST_BYTES_MAX {
        return Err(Fault::new(format!("the list of files has more than {LIST_BYTES_MAX} bytes: give it in pieces")));
    }
    let names = bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names: Vec<OsString> = names.map(|name| OsString::from_vec(name.to_vec())).collect();
    match names.iter().find(|name| name.as_bytes().contains(&b'/')) {
        Some(name) => Err(Fault::new(format!("the list of files holds {}: give plain names, and --directory", quoted(name.as_bytes())))),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_names_has_a_nul_after_each() {
        let names = |list: &[u8]| read_names(&mut &list[..]);
        assert_eq!(names(b"").unwrap(), Vec::<OsString>::new());
        assert_eq!(names(b"a b\0\xff\n\0c").unwrap(), ["a b".into(), OsString::from_vec(b"\xff\n".to_vec()), "c".into()]);
        assert!(names(b"a\0../b\0").is_err());
        assert!(read_names(&mut io::repeat(b'x')).is_err());
    }
}
