//! What becomes of a system call that a role has no right to: one sentence on standard error, and the end of the process.
//!
//! The kernel does not make the call, and raises SIGSYS in the thread instead. The handler is installed before the jail is shut, and
//! no role may install another, so whoever has taken a thread over gets this handler at the first call that the thread has no
//! right to. Signals are raised by seccomp whether they are blocked or not, but one that is blocked ends the process
//! without the sentence; nobody here blocks this one ([`crate::shelter`]).
//!
//! # Why the handler is safe in a signal
//! The signal comes in the middle of a system call and nowhere else, so no other code of the program has been interrupted. The
//! handler takes no memory and calls what every role may call.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

use libc::{c_int, c_long, c_void};

use super::Role;
use crate::HostError;

/// The status of an end that is our own fault, as everywhere in this program.
const STATUS: c_int = 125;

/// What `Needs` said.
static BEFORE_THE_END: OnceLock<fn()> = OnceLock::new();

thread_local! {
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
}

/// Says who the calling thread is.
pub(super) fn note(role: Role) {
    ROLE.set(Some(role));
}

/// Installs the handler.
pub(super) fn report(before_the_end: fn()) -> Result<(), HostError> {
    BEFORE_THE_END.get_or_init(|| before_the_end);
    // SAFETY: `sigaction` is plain data for which all zeros is a value: default action, no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigsys as *const () as usize;
    // ONSTACK: a thread in the shelter has a stack for this.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is complete, its handler has the signature that SA_SIGINFO asks for and is safe (top of the file).
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(HostError::Signal { signal: libc::SIGSYS, source: io::Error::last_os_error() });
    }
    Ok(())
}

extern "C" fn on_sigsys(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler; RAX is the call's number, as the thread had set it
    // (seccomp(2), SECCOMP_RET_TRAP: the registers are rolled back).
    let number = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] };
    let role = ROLE.get().map_or("new", Role::name);
    let mut sentence = Sentence::default();
    sentence.add("umbra: the jail refused a thread of the role '").add(role).add("' the system call ");
    sentence.add_number(number.cast_unsigned());
    if let Some(name) = call_name(number) {
        sentence.add(" (").add(name).add(")");
    }
    sentence.add(": this is a bug of umbra, or a guest has broken out and was stopped; --no-jail runs without, for debugging\n");
    end(&sentence)
}

/// Ends the process because a thread cannot be confined.
pub(super) fn give_up(role: Role, error: &io::Error) -> ! {
    let mut sentence = Sentence::default();
    sentence.add("umbra: a thread of the role '").add(role.name()).add("' cannot be confined (error ");
    sentence.add_number(error.raw_os_error().unwrap_or_default().unsigned_abs().into());
    sentence.add("); --no-jail runs without, for debugging\n");
    end(&sentence)
}

fn end(sentence: &Sentence) -> ! {
    let text = sentence.bytes();
    // SAFETY: writes bytes that live; nobody is left to complain to if that fails.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    if let Some(before) = BEFORE_THE_END.get() {
        before();
    }
    // SAFETY: ends the process.
    unsafe { libc::_exit(STATUS) }
}

/// Text in a place of its own; what does not fit is left out.
struct Sentence {
    text: [u8; 320],
    len: usize,
}

impl Default for Sentence {
    fn default() -> Self {
        Self { text: [0; 320], len: 0 }
    }
}

impl Sentence {
    fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }

    fn add(&mut self, text: &str) -> &mut Self {
        for (to, from) in self.text.iter_mut().skip(self.len).zip(text.as_bytes()) {
            *to = *from;
            self.len += 1;
        }
        self
    }

    fn add_number(&mut self, number: u64) -> &mut Self {
        if number >= 10 {
            self.add_number(number / 10);
        }
        let digit = (number % 10) as usize;
        self.add("0123456789".get(digit..=digit).unwrap_or_default())
    }
}

/// A system call's name.
pub(super) fn call_name(number: c_long) -> Option<&'static str> {
    let number = usize::try_from(number).ok()?;
    let (names, index) = match number {
        FIRST_LATER.. => (LATER, number - FIRST_LATER),
        _ => (EARLIER, number),
    };
    names.split_ascii_whitespace().nth(index)
}

/// The system calls of x86-64 from 0 on (`arch/x86/entry/syscalls/syscall_64.tbl`).
const EARLIER: &str = "\
read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn \
ioctl pread64 pwrite64 readv writev access pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl \
dup dup2 pause nanosleep getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg \
recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt clone fork vfork execve exit \
wait4 kill uname semget semop semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate \
ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink readlink chmod fchmod chown \
fchown lchown umask gettimeofday getrlimit getrusage sysinfo times ptrace getuid syslog getgid setuid setgid geteuid \
getegid setpgid getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid getresuid setresgid getresgid \
getpgid setfsuid setfsgid getsid capget capset rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend \
sigaltstack utime mknod uselib personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam \
sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min \
sched_rr_get_interval mlock munlock mlockall munlockall vhangup modify_ldt pivot_root _sysctl prctl arch_prctl \
adjtimex setrlimit chroot sync acct settimeofday mount umount2 swapon swapoff reboot sethostname setdomainname iopl \
ioperm create_module init_module delete_module get_kernel_syms query_module quotactl nfsservctl getpmsg putpmsg \
afs_syscall tuxcall security gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr \
llistxattr flistxattr removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity sched_getaffinity \
set_thread_area io_setup io_destroy io_getevents io_submit io_cancel get_thread_area lookup_dcookie epoll_create \
epoll_ctl_old epoll_wait_old remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64 \
timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime clock_getres \
clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes vserver mbind set_mempolicy get_mempolicy mq_open \
mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl \
ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat mknodat fchownat \
futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare \
set_robust_list get_robust_list splice tee sync_file_range vmsplice move_pages utimensat epoll_pwait signalfd \
timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2 \
inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64 \
name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns getcpu process_vm_readv process_vm_writev \
kcmp finit_module sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create kexec_file_load bpf execveat \
userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx \
io_pgetevents rseq";

/// The number from which on system calls have the same number on every architecture.
const FIRST_LATER: usize = 424;

/// Those.
const LATER: &str = "\
pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount \
fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr \
quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret process_mrelease \
futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue \
statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal";
