use core::arch::asm;

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
