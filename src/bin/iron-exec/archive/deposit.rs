//! One file on its way into the storage, until it is certain that it is there.
//!
//! The file is read once to know what the object will be, and, if that is larger than a part, once more to send it. So the object's checksum is known
//! before anything is sent, an object that is there already is not sent again, and a file that changes meanwhile gives itself away.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use object_store::PutPayload;
use object_store::path::Path;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

use crate::archive::source::{Digests, PackError, Packer, Source};
use crate::archive::store::{Failure, Look, Object, Store, Upload};
use crate::archive::target::{Packing, Target};

/// Bytes of an object that are sent at a time, and held in memory for each file under way.
const PART_BYTES: usize = 8 << 20;

/// The most parts that S3 takes: larger objects (from 78 GiB) have larger parts.
const PARTS_MAX: u64 = 10_000;

/// The largest object that S3 takes.
const OBJECT_BYTES_MAX: u64 = 5 << 40;

/// Why a file is not stored when we were told to stop.
pub(crate) const STOPPED: &str = "stopped by a signal before it was stored";

/// Longer than anybody waits for a file; clocks end later.
const TIMEOUT_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// How files are stored.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) packing: Packing,
    /// Objects up to this size are read back; for larger ones the server's own SHA-256 will do, if it has one.
    pub(crate) read_back_bytes_max: u64,
    /// How long one file may take in all.
    pub(crate) timeout: Duration,
    /// Becomes `true` when everything shall end.
    pub(crate) stopped: watch::Receiver<bool>,
}

/// A file that is stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Deposited {
    pub(crate) digests: Digests,
    /// The object's key; whether it is another one than the name says.
    pub(crate) key: String,
    pub(crate) is_second_key: bool,
}

/// What is known of an object before it is sent.
struct Survey {
    digests: Digests,
    /// All of it, if it is not larger than a part.
    payload: Option<PutPayload>,
    /// What a server that checks SHA-256 says of it.
    attested: String,
}

/// How long a file is worked at.
struct Limit {
    deadline: Instant,
    stopped: watch::Receiver<bool>,
}

impl Limit {
    /// Waits for `work` until the time is up, or everything shall end.
    async fn within<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let mut stopped = self.stopped.clone();
        let mut stop = pin!(stopped.wait_for(|stopped| *stopped));
        let mut work = pin!(timeout_at(self.deadline.into(), work));
        poll_fn(|context| match stop.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(Err(Failure::new(STOPPED))),
            Poll::Pending => work.as_mut().poll(context).map(|result| {
                result
                    .unwrap_or_else(|_| Err(Failure::new("the time was up before it was stored: try again later, or give more --timeout")))
            }),
        })
        .await
    }
}

/// Stores a file; returns when that is certain.
///
/// # Errors
/// It is not certain. Nothing that was stored before was changed.
pub(crate) async fn deposit(store: &Store, plan: &Plan, source: &Source) -> Result<Deposited, Failure> {
    let limit = Limit { deadline: Instant::now() + plan.timeout.min(TIMEOUT_MAX), stopped: plan.stopped.clone() };
    let survey = survey(source, plan.packing, &limit).await?;
    if survey.digests.stored_bytes > OBJECT_BYTES_MAX {
        return Err(Failure::new(format!("it is too large: S3 takes {OBJECT_BYTES_MAX} bytes at most")));
    }
    for is_second_key in [false, true] {
        let suffix = is_second_key.then_some(survey.digests.stored_sha256.as_str());
        let key = plan.target.key(source.name(), plan.packing, suffix).map_err(Failure::new)?;
        let path = Path::parse(&key).map_err(|error| Failure::new(format!("its key is none for S3: {error}")))?;
        if place(store, plan, source, &path, &survey, &limit).await? {
            // What was read is stored. Whether it is what there is now is the last question.
            return if source.is_unchanged() {
                Ok(Deposited { digests: survey.digests, key, is_second_key })
            } else {
                Err(Failure::new(PackError::Changed.reason()))
            };
        }
    }
    Err(Failure::new(
        "other objects have its key, and the one that it would have instead: see what they are, and remove them or use another PREFIX",
    ))
}

/// Puts the object at a key, if nothing is there. `false`: something else is there.
async fn place(store: &Store, plan: &Plan, source: &Source, key: &Path, survey: &Survey, limit: &Limit) -> Result<bool, Failure> {
    match limit.within(store.look(key)).await? {
        Look::There(object) => return holds(store, plan, key, &object, survey, limit).await,
        Look::NotThere => {}
        // A small object may be sent all the same: it replaces nothing, and the refusal says more than this one.
        Look::Denied(_) if survey.payload.is_some() && store.never_replaces() => {}
        Look::Denied(failure) => return Err(failure),
    }
    let upload = match &survey.payload {
        Some(payload) => limit.within(store.put(key, payload.clone(), plan.packing, &survey.digests)).await?,
        None => send_parts(store, plan.packing, source, key, &survey.digests, limit).await?,
    };
    match (limit.within(store.look(key)).await?, upload) {
        (Look::There(object), Upload::Taken) => holds(store, plan, key, &object, survey, limit).await,
        (Look::There(object), Upload::Done) => {
            if holds(store, plan, key, &object, survey, limit).await? {
                return Ok(true);
            }
            let (sent, held) = (survey.digests.stored_bytes, object.bytes);
            Err(Failure::new(format!(
                "the server holds other bytes than it was sent ({held} bytes, sent were {sent}): do not trust it; the damaged object is left at {key}"
            )))
        }
        (Look::NotThere, _) => Err(Failure::new("the server took it, but does not have it: do not trust it")),
        (Look::Denied(failure), _) => Err(failure),
    }
}

/// Whether an object holds exactly what it should.
async fn holds(store: &Store, plan: &Plan, key: &Path, object: &Object, survey: &Survey, limit: &Limit) -> Result<bool, Failure> {
    let digests = &survey.digests;
    if object.bytes != digests.stored_bytes {
        return Ok(false);
    }
    if object.bytes > plan.read_back_bytes_max && object.attested.as_ref() == Some(&survey.attested) {
        return Ok(true);
    }
    let read = limit.within(store.read_back(key, object.bytes)).await?;
    Ok(read.as_ref() == Some(&digests.stored_sha256))
}

/// Reads the file to know what the object will be.
async fn survey(source: &Source, packing: Packing, limit: &Limit) -> Result<Survey, Failure> {
    let mut packer = packer(source, packing)?;
    let deadline = limit.deadline;
    let work = move || {
        let mut only = None;
        let mut hashes = Vec::new();
        loop {
            let chunk = packer.next(PART_BYTES, deadline)?;
            if chunk.is_empty() && !hashes.is_empty() {
                break;
            }
            hashes.push(Sha256::digest(&chunk));
            let is_last = chunk.len() < PART_BYTES;
            only = (hashes.len() == 1).then_some(chunk);
            if is_last {
                break;
            }
        }
        let attested = match hashes.as_slice() {
            [hash] => BASE64_STANDARD.encode(hash),
            parts => {
                let of_all = parts.iter().fold(Sha256::new(), Sha256::chain_update);
                format!("{}-{}", BASE64_STANDARD.encode(of_all.finalize()), parts.len())
            }
        };
        Ok(Survey { digests: packer.digests(), payload: only.map(PutPayload::from), attested })
    };
    limit.within(blocking(work)).await?.map_err(|error: PackError| Failure::new(error.reason()))
}

/// Sends the object in parts. An upload that is not finished is removed.
async fn send_parts(
    store: &Store,
    packing: Packing,
    source: &Source,
    key: &Path,
    digests: &Digests,
    limit: &Limit,
) -> Result<Upload, Failure> {
    let upload = limit.within(store.begin_parts(key, packing, digests)).await?;
    let sent = limit.within(send_each_part(store, packing, source, key, &upload, digests, limit)).await;
    match sent {
        Ok(Upload::Done) => Ok(Upload::Done),
        unfinished => match (store.abort_parts(key, &upload).await, unfinished) {
            (Err(()), Err(failure)) => {
                let reason =
                    format!("{}; what was sent of it could not be removed: let a lifecycle rule of the bucket do that", failure.reason);
                Err(Failure { reason, ..failure })
            }
            (_, unfinished) => unfinished,
        },
    }
}

async fn send_each_part(
    store: &Store,
    packing: Packing,
    source: &Source,
    key: &Path,
    upload: &String,
    digests: &Digests,
    limit: &Limit,
) -> Result<Upload, Failure> {
    let part_bytes = part_bytes(digests.stored_bytes);
    let mut packer = packer(source, packing)?;
    let deadline = limit.deadline;
    let mut parts = Vec::new();
    loop {
        let work = move || {
            let chunk = packer.next(part_bytes, deadline);
            (packer, chunk)
        };
        let (same, chunk) = blocking(work).await?;
        packer = same;
        let chunk = chunk.map_err(|error| Failure::new(error.reason()))?;
        if chunk.is_empty() {
            break;
        }
        parts.push(store.put_part(key, upload, parts.len(), chunk).await?);
    }
    if packer.digests() != *digests || !source.is_unchanged() {
        return Err(Failure::new(PackError::Changed.reason()));
    }
    store.end_parts(key, upload, parts).await
}

/// The size of each part, but the last, of an object.
fn part_bytes(object_bytes: u64) -> usize {
    PART_BYTES.max(usize::try_from(object_bytes.div_ceil(PARTS_MAX)).unwrap_or(usize::MAX))
}

fn packer(source: &Source, packing: Packing) -> Result<Packer, Failure> {
    source.packer(packing).map_err(|error| Failure::new(format!("making a compressor failed: {error}")))
}

/// Does work that waits for the disk, or computes, while others go on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    spawn_blocking(work).await.map_err(|error| Failure::new(format!("reading it failed: {error}")))
}

/// What is shared by all files under way.
pub(crate) type Shared = Arc<(Store, Plan)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_never_more_parts_than_s3_takes() {
        for bytes in [0, 1, PART_BYTES as u64, 78 << 30, 79 << 30, OBJECT_BYTES_MAX] {
            let part = part_bytes(bytes);
            assert!(part >= PART_BYTES && bytes.div_ceil(part as u64) <= PARTS_MAX, "{bytes}");
        }
        assert!(part_bytes(OBJECT_BYTES_MAX) < 5 << 30, "the largest part that S3 takes");
    }
}
