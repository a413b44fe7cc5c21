//! Promise: no request of a handle is ever overlooked. The file that says so to the loop runs here in every order in which its steps can be taken (loom); the
//! queue beside it is the standard library's, and is modelled by loom's own.

/// What the file needs, of loom.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering};
}

#[allow(dead_code, reason = "whether it has rung is asked only where nobody rings any more")]
#[path = "../src/handle/bell.rs"]
mod bell;

use atomic::Ordering;
use bell::Bell;
use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, mpsc};
use loom::thread;

/// What the loop and its handles share.
struct Line {
    bell: Bell,
    /// Counts up when it is written, and down to nothing when it is read.
    eventfd: AtomicUsize,
}

/// Two handles put in a request each, while the loop, where it was woken, looks by `look`. In the end it sleeps, and has seen them all.
fn every_order(look: fn(&Line, &mut dyn FnMut())) {
    loom::model(move || {
        let line = Arc::new(Line { bell: Bell::new(), eventfd: AtomicUsize::new(0) });
        let (sender, receiver) = mpsc::channel();
        let mut handles = Vec::new();
        for _ in 0..2 {
            let (line, sender) = (Arc::clone(&line), sender.clone());
            handles.push(thread::spawn(move || {
                sender.send(()).unwrap();
                if line.bell.ring() {
                    line.eventfd.fetch_add(1, Ordering::AcqRel);
                }
            }));
        }
        let mut taken = 0;
        let mut turn = || {
            let was_woken = line.eventfd.swap(0, Ordering::AcqRel) > 0;
            if was_woken {
                look(&line, &mut || {
                    while receiver.try_recv().is_ok() {
                        taken += 1;
                    }
                });
            }
            was_woken
        };
        turn();
        turn();
        for handle in handles {
            handle.join().unwrap();
        }
        while turn() {}
        assert_eq!(taken, 2, "a request is overlooked");
    });
}

#[test]
fn no_request_is_overlooked_in_whatever_order_it_comes() {
    every_order(|line, take_all| {
        if line.bell.hear() {
            take_all();
        }
    });
}

#[test]
fn nor_where_a_request_turns_the_loop_itself() {
    every_order(|line, take_all| {
        if line.bell.hear() {
            take_all();
            // The turn inside hears, and does nothing: what has come is done after it.
            line.eventfd.swap(0, Ordering::AcqRel);
            line.bell.hear();
            take_all();
        }
    });
}

#[test]
#[should_panic(expected = "a request is overlooked")]
fn the_model_sees_what_is_overlooked_where_the_look_comes_first() {
    every_order(|line, take_all| {
        take_all();
        line.bell.hear();
    });
}
