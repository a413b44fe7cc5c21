use core::arch::asm;
use core::ffi::c_void;

use crate::clone3::CloneArgs;

/// One system call: its result, or minus the error number.
///
/// # Safety
/// The arguments must be what system call `number` asks for: every pointer valid for what the kernel reads or writes there.
pub(crate) unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> isize {
    let [arg0, arg1, arg2, arg3, arg4, arg5] = args;
    let result: isize;
    // SAFETY: the kernel's convention for AArch64: arguments in x0 to x5, number in x8, result in x0, nothing else overwritten, the stack
    // untouched. What the call does to memory is the caller's promise.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") arg0 => result,
            in("x1") arg1, in("x2") arg2, in("x3") arg3, in("x4") arg4, in("x5") arg5,
            options(nostack)
        );
    }
    result
}

/// clone3 with a stack of its own for the child, which begins (and ends) in `entry(argument)`. The child's pid, or minus the error number.
///
/// # Safety
/// `arguments` must be whole and ask for a stack that is the child's alone; every pointer in it must be valid for what its flags make of it. `entry`
/// must be fit to run there on `argument`, on memory that it shares with this process, with the thread pointer of this thread.
pub(crate) unsafe fn clone3_on_stack(arguments: &CloneArgs, entry: extern "C" fn(*const c_void) -> !, argument: *const c_void) -> isize {
    let result: isize;
    // SAFETY: as for `syscall6` in the parent, which comes back with its own stack. In the child the kernel has put the end of the new stack,
    // a multiple of 16, into sp and 0 into x0 and left every other register as it was, so the two inputs are still there; frame pointer and link
    // register are cleared, where a backtrace ends, and `entry` does not come back. The rest is the caller's promise.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            in("x8") libc::SYS_clone3,
            inlateout("x0") core::ptr::from_ref(arguments) => result,
            in("x1") size_of::<CloneArgs>(),
            // The child alone overwrites it, but the compiler is to know.
            out("x30") _,
        );
    }
    result
}
