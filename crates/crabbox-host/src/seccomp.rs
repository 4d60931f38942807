//! A system call filter under which a process cannot start another process, but can start threads.
//!
//! A limit on processes (`RLIMIT_NPROC`) counts threads too, and e2fsck reads a large file system with
//! several. It is installed between fork and exec: nothing here may allocate.

use std::io;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, CLONE_THREAD, EPERM,
    PR_SET_SECCOMP, SECCOMP_MODE_FILTER, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS,
    sock_filter, sock_fprog,
};

/// `AUDIT_ARCH_X86_64` (`linux/audit.h`): other call tables, such as that of 32-bit programs, have other
/// numbers.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
/// `AUDIT_ARCH_AARCH64`.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// The calls that always start a process. The second table of `x86_64` (x32) starts at [`OTHER_TABLE`].
#[cfg(target_arch = "x86_64")]
const FORKS: [i64; 2] = [libc::SYS_fork, libc::SYS_vfork];
/// Only `clone` exists.
#[cfg(target_arch = "aarch64")]
const FORKS: [i64; 2] = [libc::SYS_clone3, libc::SYS_clone3];

/// `__X32_SYSCALL_BIT`.
const OTHER_TABLE: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data` of the call's number, its table, and the lower half of its first
/// argument.
const NUMBER: u32 = 0;
const TABLE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const REFUSED: u32 = SECCOMP_RET_ERRNO | EPERM.cast_unsigned();
/// The C libraries then fall back to `clone`, whose flags a filter can inspect.
const UNKNOWN: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

const LENGTH: u16 = 14;

/// Jump distances count the skipped instructions.
const FILTER: [sock_filter; LENGTH as usize] = [
    load(TABLE),
    jump(BPF_JEQ, ARCHITECTURE, 0, 10),
    load(NUMBER),
    jump(BPF_JGE, OTHER_TABLE, 7, 0),
    jump(BPF_JEQ, number(libc::SYS_clone3), 8, 0),
    jump(BPF_JEQ, number(FORKS[0]), 5, 0),
    jump(BPF_JEQ, number(FORKS[1]), 4, 0),
    jump(BPF_JEQ, number(libc::SYS_clone), 0, 2),
    load(FIRST_ARGUMENT),
    jump(BPF_JSET, CLONE_THREAD.cast_unsigned(), 0, 1),
    give(SECCOMP_RET_ALLOW),
    give(REFUSED),
    give(SECCOMP_RET_KILL_PROCESS),
    give(UNKNOWN),
];

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of calls are small, and the kernel's own field has 32 bits"
)]
const fn number(call: i64) -> u32 {
    call as u32
}

const fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

const fn jump(condition: u32, value: u32, if_so: u8, if_not: u8) -> sock_filter {
    instruction(BPF_JMP | condition | BPF_K, value, if_so, if_not)
}

const fn give(verdict: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, verdict, 0, 0)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "codes are made of bits below the 16th"
)]
const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// From here on this thread and its successors can start threads but no process. `no_new_privs` must be set
/// already.
#[expect(unsafe_code, reason = "rustix has no call for it")]
pub(crate) fn start_no_process() -> io::Result<()> {
    let filter = FILTER;
    let program = sock_fprog {
        len: LENGTH,
        // The kernel only reads it.
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program and its instructions live until the call has copied them.
    let done = unsafe { libc::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &raw const program) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of `call` in a thread under the filter.
    fn held<T: Send + 'static>(call: fn() -> T) -> T {
        let inside = move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            start_no_process().unwrap();
            call()
        };
        std::thread::spawn(inside).join().unwrap()
    }

    #[test]
    fn a_thread_starts_and_no_process_by_whatever_call() {
        assert_eq!(held(|| std::thread::spawn(|| 7).join().unwrap()), 7);
        let calls: [(fn() -> i64, i32); 4] = [
            (|| started(libc::SYS_fork, 0), EPERM),
            (|| started(libc::SYS_vfork, 0), EPERM),
            (|| started(libc::SYS_clone, libc::SIGCHLD.into()), EPERM),
            (|| started(libc::SYS_clone3, 0), libc::ENOSYS),
        ];
        for (call, errno) in calls {
            assert_eq!(held(call), i64::from(errno));
        }
    }

    /// Makes the call and returns its error; if a child was started by mistake, it ends at once.
    #[expect(unsafe_code, reason = "a call that makes a process")]
    fn started(number: i64, argument: i64) -> i64 {
        // SAFETY: the child, if there is one, has a copy of the memory, or its parent waits, and makes one
        // more call.
        unsafe {
            match libc::syscall(number, argument, 0, 0, 0, 0) {
                0 => libc::_exit(0),
                -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0).into(),
                _ => 0,
            }
        }
    }
}
