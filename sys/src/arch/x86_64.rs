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

/// clone3 with a stack of its own for the child, which begins (and ends) in `entry(argument)`. The child's pid, or minus the error number.
///
/// # Safety
/// `arguments` must be whole and ask for a stack that is the child's alone; every pointer in it must be valid for what its flags make of it. `entry`
/// must be fit to run there on `argument`, on memory that it shares with this process, with the thread pointer of this thread.
pub(crate) unsafe fn clone3_on_stack(arguments: &CloneArgs, entry: extern "C" fn(*const c_void) -> !, argument: *const c_void) -> isize {
    let result: isize;
    // SAFETY: as for `syscall6` in the parent, which comes back with its own stack. In the child the kernel has put the end of the new stack,
    // a multiple of 16, into rsp and 0 into rax and left every other register as it was, so the two inputs are still there; the call pushes its
    // return address onto that stack, as the C convention wants it, and does not come back. The rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") core::ptr::from_ref(arguments), in("rsi") size_of::<CloneArgs>(),
            // Not late: the inputs must not stand where the kernel overwrites.
            out("rcx") _, out("r11") _,
        );
    }
    result
}
