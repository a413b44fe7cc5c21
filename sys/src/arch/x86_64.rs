use core::arch::asm;

/// One system call: its result, or minus the error number.
///
/// # Safety
/// The arguments must be what system call `number` asks for: every pointer valid for what the kernel reads or writes there.
pub(crate) unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: the kernel's convention for x86-64: arguments in rdi, rsi, rdx, r10, r8, r9, result in rax, rcx and r11 overwritten, the stack
    // untouched. What the call does to memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}
