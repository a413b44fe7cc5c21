use core::arch::asm;

/// One system call: its result, or minus the error number.
///
/// # Safety
/// The arguments must be what system call `number` asks for: every pointer valid for what the kernel reads or writes there.
pub(crate) unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: the kernel's convention for AArch64: arguments in x0 to x5, number in x8, result in x0, nothing else overwritten, the stack
    // untouched. What the call does to memory is the caller's promise.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    result
}
