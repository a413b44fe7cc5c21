use core::arch::asm;

/// One system call: its result, or minus the error number.
///
/// # Safety
/// The arguments must be what system call `number` asks for: every pointer valid for what the kernel reads or writes there.
pub(crate) unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> isize {
    let [arg0, arg1, arg2, arg3, arg4, arg5] = args;
    let result: isize;
    // SAFETY: the kernel's convention for x86-64: arguments in rdi, rsi, rdx, r10, r8, r9, result in rax, rcx and r11 overwritten, the stack
    // untouched. What the call does to memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") arg0, in("rsi") arg1, in("rdx") arg2, in("r10") arg3, in("r8") arg4, in("r9") arg5,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}
