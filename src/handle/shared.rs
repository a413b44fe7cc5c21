//! What a worker and its handles share: the queue of requests, and who is who.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use crate::handle::bell::Bell;
use crate::model::error::HandleError;
use crate::worker::Worker;

/// Something that the loop is to do, on its thread.
pub(crate) type Request = Box<dyn FnOnce(&mut Worker) + Send>;

/// How long the thread that turned the worker last may wait for an answer: it may have given the worker to another one, which has not turned it yet.
const OWN_THREAD_PATIENCE: Duration = Duration::from_secs(5);

/// What a worker and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    requests: mpsc::Sender<Request>,
    /// The loop's; it goes with the loop.
    waker: Weak<mio::Waker>,
    /// Tells the loop that there are requests.
    bell: Bell,
    handles: AtomicUsize,
    /// Whether the worker takes no more requests; those that come at this moment are dropped with the queue.
    is_closed: AtomicBool,
    /// The loop's own note that it does requests.
    is_serving: AtomicBool,
    turner: Mutex<Turner>,
}

/// Who turns the worker.
#[derive(Debug)]
struct Turner {
    /// The thread that had the worker last.
    thread: ThreadId,
    /// Whether it is in a turn, or in [`Worker::run`].
    is_inside: bool,
}

impl Shared {
    /// The thread that calls this has the worker.
    pub(crate) fn new(requests: mpsc::Sender<Request>, waker: Weak<mio::Waker>) -> Self {
        let turner = Mutex::new(Turner { thread: thread::current().id(), is_inside: false });
        Self {
            requests,
            waker,
            bell: Bell::new(),
            handles: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            is_serving: AtomicBool::new(false),
            turner,
        }
    }

    /// There is one handle more.
    pub(crate) fn enter(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// There is one handle less; the loop hears of the last.
    pub(crate) fn leave(&self) {
        if self.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.announce();
        }
    }

    /// Whether the loop may still be asked for something, or was and has not looked yet.
    pub(crate) fn is_open(&self) -> bool {
        self.handles.load(Ordering::Acquire) > 0 || self.bell.has_rung()
    }

    /// Nothing more is put into the queue: the worker ends.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Has the loop do something. After the worker's end it is dropped instead.
    pub(crate) fn ask(&self, request: Request) {
        if !self.is_closed.load(Ordering::Relaxed) && self.requests.send(request).is_ok() {
            self.announce();
        }
    }

    /// Sees to it that the loop looks for requests.
    pub(crate) fn announce(&self) {
        if self.bell.ring()
            && let Some(waker) = self.waker.upgrade()
        {
            // An eventfd cannot fail to be written.
            let _ = waker.wake();
        }
    }

    /// Whether the loop is to look for requests, which it does now.
    pub(crate) fn hear(&self) -> bool {
        self.bell.hear()
    }

    /// Requests are being done, until what is returned is dropped; `None` if they are already: one of them turns the loop.
    pub(crate) fn serve(self: &Arc<Self>) -> Option<Serving> {
        let was_serving = self.is_serving.swap(true, Ordering::Relaxed);
        (!was_serving).then(|| Serving { shared: Arc::clone(self) })
    }

    /// This thread has the worker and turns it, until what is returned is dropped.
    pub(crate) fn turn(self: &Arc<Self>) -> Inside {
        let mut turner = self.turner();
        turner.thread = thread::current().id();
        let was_inside = std::mem::replace(&mut turner.is_inside, true);
        drop(turner);
        Inside { shared: Arc::clone(self), was_inside }
    }

    /// Waits, on this thread, until a future is ready, or the deadline has come: then `None`.
    pub(crate) fn wait_for<F: Future + Unpin>(&self, future: &mut F, deadline: Option<Instant>) -> Result<Option<F::Output>, HandleError> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        let impatient = Instant::now() + OWN_THREAD_PATIENCE;
        loop {
            if let Poll::Ready(output) = Pin::new(&mut *future).poll(&mut cx) {
                return Ok(Some(output));
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Ok(None);
            }
            let until = match *self.turner() {
                Turner { thread, .. } if thread != thread::current().id() => deadline,
                Turner { is_inside: true, .. } => return Err(HandleError::OwnThread),
                Turner { .. } if now >= impatient => return Err(HandleError::OwnThread),
                Turner { .. } => Some(deadline.map_or(impatient, |deadline| deadline.min(impatient))),
            };
            match until {
                Some(until) => thread::park_timeout(until.saturating_duration_since(now)),
                None => thread::park(),
            }
        }
    }

    fn turner(&self) -> MutexGuard<'_, Turner> {
        self.turner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn that goes on.
#[derive(Debug)]
pub(crate) struct Inside {
    shared: Arc<Shared>,
    was_inside: bool,
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.shared.turner().is_inside = self.was_inside;
    }
}

/// Requests are being done.
#[derive(Debug)]
pub(crate) struct Serving {
    shared: Arc<Shared>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.shared.is_serving.store(false, Ordering::Relaxed);
    }
}

/// Lets a thread go on that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
