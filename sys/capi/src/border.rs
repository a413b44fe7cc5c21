//! Where pointers become references, and panics become codes.
//!
//! What the caller of every function of the interface promises, and what each SAFETY comment of this crate calls "the caller's promise": a pointer is NULL, or
//! - a handle that the library gave and that was not freed, and that no other thread uses in the meantime;
//! - a place of the type and size that the function asks for, which nobody else uses in the meantime, and which does not overlap with another one of the call;
//! - a string with a NUL byte at its end, which nobody changes in the meantime.
//!
//! Everything else (integers, enumerations, what stands in a string) is checked.

use std::any::Any;
use std::ffi::{CStr, OsStr, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Fault, ResultCode};

/// What a setter changes: it keeps the first thing that was wrong, for the call that uses it.
pub(crate) trait Draft {
    /// Where that is kept.
    fn fault(&mut self) -> &mut Option<Fault>;
}

/// Runs the body of a function. What goes wrong, a panic included, is put into `error`, and becomes the code.
///
/// # Safety
/// The caller's promise for `error`.
pub(crate) unsafe fn call(error: *mut Error, body: impl FnOnce() -> Result<ResultCode, Fault>) -> ResultCode {
    let answer = catch(body);
    // SAFETY: the caller's promise: NULL, or a live handle that nobody else uses.
    let error = unsafe { error.as_mut() };
    let (code, fault) = match answer {
        Ok(code) => (code, None),
        Err(fault) => (fault.code, Some(fault)),
    };
    if let Some(error) = error {
        error.set(fault);
    }
    code
}

/// Runs the body of a setter. What goes wrong is kept in the draft.
///
/// # Safety
/// The caller's promise for `draft`.
pub(crate) unsafe fn edit<T: Draft>(draft: *mut T, change: impl FnOnce(&mut T) -> Result<(), Fault>) -> ResultCode {
    // SAFETY: the caller's promise: NULL, or a live handle that nobody else uses.
    let Some(draft) = (unsafe { draft.as_mut() }) else { return ResultCode::InvalidArgument };
    match catch(|| change(draft)) {
        Ok(()) => ResultCode::Ok,
        Err(fault) => {
            let code = fault.code;
            draft.fault().get_or_insert(fault);
            code
        }
    }
}

/// Makes something that cannot fail but by a bug; NULL then.
pub(crate) fn make<T>(build: impl FnOnce() -> T) -> *mut T {
    catch(|| Ok(Box::into_raw(Box::new(build())))).unwrap_or(std::ptr::null_mut())
}

/// Frees what `handle` points to, if anything, and sets it to NULL: a second time does nothing.
///
/// # Safety
/// The caller's promise for `handle`, and for what it points to: made by [`make`] or another `Box::into_raw`.
pub(crate) unsafe fn free<T>(handle: *mut *mut T) {
    // SAFETY: the caller's promise: NULL, or the place of a pointer.
    let Some(place) = (unsafe { handle.as_mut() }) else { return };
    let pointer = std::mem::replace(place, std::ptr::null_mut());
    if pointer.is_null() {
        return;
    }
    // SAFETY: the caller's promise: a live handle, which was made from a box; nobody has it from here on.
    let owned = unsafe { Box::from_raw(pointer) };
    // There is nobody to tell.
    let _ = catch(|| {
        drop(owned);
        Ok(())
    });
}

/// A handle, or a place that is read.
///
/// # Safety
/// The caller's promise for `pointer`.
pub(crate) unsafe fn shared<'a, T>(pointer: *const T, what: &'static str) -> Result<&'a T, Fault> {
    // SAFETY: the caller's promise: NULL, or live and unchanged in the meantime.
    unsafe { pointer.as_ref() }.ok_or_else(|| Fault::null(what))
}

/// A handle that is changed.
///
/// # Safety
/// The caller's promise for `pointer`.
pub(crate) unsafe fn exclusive<'a, T>(pointer: *mut T, what: &'static str) -> Result<&'a mut T, Fault> {
    // SAFETY: the caller's promise: NULL, or live and used by nobody else in the meantime.
    unsafe { pointer.as_mut() }.ok_or_else(|| Fault::null(what))
}

/// A place for an answer, whatever is in it.
///
/// # Safety
/// The caller's promise for `pointer`.
pub(crate) unsafe fn place<'a, T>(pointer: *mut T, what: &'static str) -> Result<&'a mut MaybeUninit<T>, Fault> {
    // SAFETY: the caller's promise: NULL, or a place for a T that nobody else uses; it need not hold one yet.
    unsafe { pointer.cast::<MaybeUninit<T>>().as_mut() }.ok_or_else(|| Fault::null(what))
}

/// A place for an answer, with what stands there if there is none.
///
/// # Safety
/// The caller's promise for `pointer`.
pub(crate) unsafe fn place_with<'a, T>(pointer: *mut T, nothing: T, what: &'static str) -> Result<&'a mut T, Fault> {
    // SAFETY: the caller's promise.
    unsafe { place(pointer, what) }.map(|place| place.write(nothing))
}

/// Places for answers, whatever is in them. No places need no pointer.
///
/// # Safety
/// The caller's promise for `pointer`: `count` places.
pub(crate) unsafe fn places<'a, T>(pointer: *mut T, count: usize, what: &'static str) -> Result<&'a mut [MaybeUninit<T>], Fault> {
    if count == 0 {
        return Ok(&mut []);
    }
    if pointer.is_null() {
        return Err(Fault::null(what));
    }
    if count.checked_mul(size_of::<T>()).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(Fault::invalid(format!("{what}: nothing has room for {count}")));
    }
    // SAFETY: the caller's promise: `count` places that nobody else uses; not NULL, and not larger than memory can be, as was just seen.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer.cast::<MaybeUninit<T>>(), count) })
}

/// A string.
///
/// # Safety
/// The caller's promise for `pointer`.
pub(crate) unsafe fn string<'a>(pointer: *const c_char, what: &'static str) -> Result<&'a OsStr, Fault> {
    if pointer.is_null() {
        return Err(Fault::null(what));
    }
    // SAFETY: the caller's promise: a string with a NUL byte at its end; it is not NULL, as was just seen.
    let string = unsafe { CStr::from_ptr(pointer) };
    Ok(OsStr::from_bytes(string.to_bytes()))
}

/// A string that must be UTF-8.
pub(crate) fn utf8<'a>(string: &'a OsStr, what: &'static str) -> Result<&'a str, Fault> {
    string.to_str().ok_or_else(|| Fault::invalid(format!("{what} is not UTF-8: {}", string.display())))
}

/// Yes (1) or no (0).
pub(crate) fn flag(value: i32, what: &'static str) -> Result<bool, Fault> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Fault::invalid(format!("{what} is {value}: neither 0 nor 1"))),
    }
}

/// The number of a signal.
pub(crate) fn signal(number: i32) -> Result<iron_exec::Signal, Fault> {
    iron_exec::Signal::new(number).ok_or_else(|| Fault::invalid(format!("the signal is {number}, outside 1 to 64")))
}

/// Copies a text, with a NUL byte at its end, to a buffer, and tells its length without that byte, also where there is not enough room.
pub(crate) fn copy_text(text: &[u8], buffer: &mut [MaybeUninit<u8>], length: &mut usize) -> Result<ResultCode, Fault> {
    *length = text.len();
    let Some((last, rest)) = buffer.get_mut(..=text.len()).and_then(<[_]>::split_last_mut) else {
        return Err(Fault::new(ResultCode::BufferTooSmall, 0, format!("the text and its NUL byte need {} bytes", text.len() + 1)));
    };
    last.write(0);
    for (place, byte) in rest.iter_mut().zip(text) {
        place.write(*byte);
    }
    Ok(ResultCode::Ok)
}

/// Runs `body`; a panic is a fault. What `body` had its hands on may be half done then: handles that matter say so (see `Worker`).
pub(crate) fn catch<T>(body: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(Fault::panicked(panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&'static str>().copied()).unwrap_or("without a word")
}
