//! Who may call what: the roles of a VM's threads, and the system calls of each.
//!
//! A role has what every thread needs ([`EVERYONE`]) and lists of its own. A new kind of thread is a new [`Role`] with the lists that
//! it needs, or one of those that are there; a call that a thread turns out to need, which the report of its refusal names, goes into
//! the list of what it is for.

use libc::{c_long, *};

/// What a thread does. Its system calls are limited to what that takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Waits for events and ends the VM: the first thread of the process.
    Main,
    /// Brings the VM from state to state.
    Driver,
    /// Executes guest code.
    Vcpu,
    /// Calls devices when their time has come.
    Timers,
    /// Serves a device that needs nothing of the host but memory and chance.
    Device,
    /// Serves a balloon: gives guest memory back.
    Balloon,
    /// Serves a disk.
    Disk,
    /// Serves a shared directory.
    Files,
    /// Serves a shared directory that is only read.
    FilesToRead,
    /// Serves a network adapter: the user-mode network.
    Network,
    /// Serves a network adapter: a TAP device of the host.
    Tap,
    /// Serves a socket device: connections with programs of the host.
    LocalSockets,
    /// Serves what is plugged into a slot, and opens it: a disk, or a TAP device.
    Slot,
    /// The same, or the user-mode network.
    NetworkSlot,
    /// Serves a console with ports.
    Ports,
    /// Moves bytes between a guest's console and the user's streams.
    Console,
    /// Takes signals.
    Signals,
    /// Answers commands from outside.
    Control,
}

impl Role {
    /// All of them.
    #[cfg(test)]
    pub(super) const ALL: [Self; 18] = [
        Self::Main,
        Self::Driver,
        Self::Vcpu,
        Self::Timers,
        Self::Device,
        Self::Balloon,
        Self::Disk,
        Self::Files,
        Self::FilesToRead,
        Self::Network,
        Self::Tap,
        Self::LocalSockets,
        Self::Slot,
        Self::NetworkSlot,
        Self::Ports,
        Self::Console,
        Self::Signals,
        Self::Control,
    ];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Driver => "driver",
            Self::Vcpu => "vcpu",
            Self::Timers => "timers",
            Self::Device => "device",
            Self::Balloon => "balloon",
            Self::Disk => "disk",
            Self::Files => "files",
            Self::FilesToRead => "files to read",
            Self::Network => "network",
            Self::Tap => "tap",
            Self::LocalSockets => "local sockets",
            Self::Slot => "slot",
            Self::NetworkSlot => "network slot",
            Self::Ports => "ports",
            Self::Console => "console",
            Self::Signals => "signals",
            Self::Control => "control",
        }
    }

    /// Its lists beyond [`EVERYONE`]'s.
    fn lists(self) -> &'static [&'static [Call]] {
        match self {
            Self::Main => &[CONSOLE, TERMINAL, OWN_FIGURES, FAREWELL, OWN_FILES],
            // Kernels are read again at a reset, and disk images closed at the end.
            Self::Driver => &[GUEST_MEMORY, BLOCKS, CLOSED_IMAGES],
            Self::Vcpu => &[GUEST_MEMORY, STUB],
            Self::Balloon => &[GUEST_MEMORY],
            Self::Timers => &[PRECISE_WAITS],
            Self::Device => &[],
            Self::Disk => &[BLOCKS, CHANGED_BLOCKS],
            Self::Files => &[BLOCKS, CHANGED_BLOCKS, FILES, CHANGED_FILES],
            Self::FilesToRead => &[BLOCKS, FILES],
            Self::Network => &[SOCKETS, MANY_FILES, INTERNET],
            Self::Tap => &[MANY_FILES, TAP],
            Self::LocalSockets => &[SOCKETS, MANY_FILES, LOCAL],
            Self::Slot => &[BLOCKS, CHANGED_BLOCKS, MANY_FILES, NEW_WAITS, TAP],
            Self::NetworkSlot => &[BLOCKS, CHANGED_BLOCKS, MANY_FILES, NEW_WAITS, TAP, SOCKETS, INTERNET],
            Self::Ports => &[MANY_FILES],
            // What a VM in the background prints goes to files.
            Self::Console => &[CONSOLE, FAREWELL, OWN_FILES],
            Self::Signals => &[CONSOLE],
            Self::Control => &[CLIENTS, FAREWELL],
        }
    }

    /// Every call that it may make; some more than once, with different conditions.
    pub(super) fn calls(self) -> impl Iterator<Item = &'static Call> {
        EVERYONE.iter().chain(self.lists().iter().copied().flatten())
    }
}

/// A system call that is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Its number.
    pub(super) number: c_long,
    /// Under which condition.
    pub(super) only: Only,
}

/// A condition on one argument, of which the low 32 bits are looked at: flags, commands, numbers. Of a pointer, all are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Only {
    /// None.
    Any,
    /// It is one of these.
    OneOf(u8, &'static [u64]),
    /// None of these bits is set.
    Without(u8, u64),
    /// It is the process's number.
    Itself(u8),
    /// It is no pointer.
    Null(u8),
}

const fn any(number: c_long) -> Call {
    Call { number, only: Only::Any }
}

const fn one_of(number: c_long, argument: u8, values: &'static [u64]) -> Call {
    Call { number, only: Only::OneOf(argument, values) }
}

const fn without(number: c_long, argument: u8, bits: u64) -> Call {
    Call { number, only: Only::Without(argument, bits) }
}

/// The faults that the handlers of this program and of its runtime pass on, and what abort(3) raises. Never SIGSYS.
const PASSED_ON: &[u64] = &[SIGSEGV as u64, SIGBUS as u64, SIGFPE as u64, SIGABRT as u64];
/// To ask whether a file is a terminal, and to put it back as it was when a thread panics; with or without speeds
/// (ioctl_tty(2)). Nothing that types for the user.
const PUT_BACK: &[u64] = &[TCGETS, TCSETS, TCSETSW, TCSETSF, TCGETS2, TCSETS2, TCSETSW2, TCSETSF2];

/// What any thread needs to live, to panic and to end: memory that is not executable, locks, time, descriptors that are open.
const EVERYONE: &[Call] = &[
    // Memory. Code is mapped before the jail is shut.
    without(SYS_mmap, 2, PROT_EXEC as u64),
    without(SYS_mprotect, 2, PROT_EXEC as u64),
    any(SYS_munmap),
    any(SYS_mremap),
    any(SYS_madvise),
    any(SYS_brk),
    // Locks, waiting, time where the vDSO has none.
    any(SYS_futex),
    any(SYS_sched_yield),
    any(SYS_clock_gettime),
    any(SYS_clock_nanosleep),
    any(SYS_nanosleep),
    any(SYS_restart_syscall),
    any(SYS_gettid),
    any(SYS_getpid),
    any(SYS_getrandom),
    // Files that are open: doorbells, pipes, standard error.
    any(SYS_read),
    any(SYS_write),
    any(SYS_writev),
    any(SYS_close),
    // In debug builds: whether what is closed is open.
    one_of(SYS_fcntl, 1, &[F_GETFD as u64]),
    // A signal's handler wakes the thread that takes signals, by a socket that is connected.
    Call { number: SYS_sendto, only: Only::Null(4) },
    // Signals: of its own, and to itself.
    any(SYS_rt_sigreturn),
    any(SYS_rt_sigprocmask),
    any(SYS_sigaltstack),
    one_of(SYS_rt_sigaction, 0, PASSED_ON),
    Call { number: SYS_tgkill, only: Only::Itself(0) },
    one_of(SYS_ioctl, 1, PUT_BACK),
    // The end.
    any(SYS_exit),
    any(SYS_exit_group),
];

/// Guest memory: pages are given back to the host.
const GUEST_MEMORY: &[Call] = &[any(SYS_fallocate), any(SYS_fstat)];

/// A stub process, which is there, and traced by this thread: to let it run, and to have it back.
const STUB: &[Call] = &[
    one_of(
        SYS_ptrace,
        0,
        &[
            PTRACE_CONT as u64,
            PTRACE_GETREGS as u64,
            PTRACE_SETREGS as u64,
            PTRACE_GETREGSET as u64,
            PTRACE_SETREGSET as u64,
            PTRACE_GETSIGINFO as u64,
            PTRACE_POKEUSER as u64,
            PTRACE_KILL as u64,
        ],
    ),
    any(SYS_wait4),
    any(SYS_getcpu),
    any(SYS_sched_getaffinity),
    any(SYS_sched_setaffinity),
];

/// Waits that end on time.
const PRECISE_WAITS: &[Call] = &[one_of(SYS_prctl, 0, &[PR_SET_TIMERSLACK as u64])];

/// Streams that may not block, and signals as bytes of a socket.
const CONSOLE: &[Call] = &[
    any(SYS_poll),
    any(SYS_ppoll),
    any(SYS_recvfrom),
    one_of(SYS_fcntl, 1, &[F_GETFL as u64, F_SETFL as u64, F_DUPFD_CLOEXEC as u64]),
];

/// Commands from outside, by connections that are there or come to a socket that is; and open files with them.
const CLIENTS: &[Call] = &[
    any(SYS_accept4),
    any(SYS_recvfrom),
    any(SYS_recvmsg),
    any(SYS_poll),
    any(SYS_ppoll),
    one_of(SYS_fcntl, 1, &[F_DUPFD_CLOEXEC as u64]),
];

/// Connections that have served their purpose, or whose other end does not listen.
const FAREWELL: &[Call] =
    &[any(SYS_shutdown), one_of(SYS_setsockopt, 2, &[SO_RCVTIMEO as u64, SO_SNDTIMEO as u64])];

/// The files of the VM's own directory. Where they may be is Landlock's business.
const OWN_FILES: &[Call] = &[
    any(SYS_openat),
    any(SYS_lseek),
    any(SYS_statx),
    any(SYS_fstat),
    any(SYS_newfstatat),
    any(SYS_getdents64),
    any(SYS_rename),
    any(SYS_unlink),
    any(SYS_unlinkat),
    any(SYS_rmdir),
    // Directories that are read are not for programs; nor are there any.
    one_of(SYS_fcntl, 1, &[F_GETFL as u64, F_SETFL as u64, F_SETFD as u64]),
];

/// The size of the user's window.
const TERMINAL: &[Call] = &[one_of(SYS_ioctl, 1, &[TIOCGWINSZ])];

/// What the process has used; from a file that is open.
const OWN_FIGURES: &[Call] =
    &[any(SYS_pread64), any(SYS_lseek), any(SYS_statx), any(SYS_fstat), any(SYS_getrusage)];

/// Bytes of files that are open.
const BLOCKS: &[Call] =
    &[any(SYS_preadv), any(SYS_pread64), any(SYS_fdatasync), any(SYS_fsync), any(SYS_lseek)];

/// The same, changed.
const CHANGED_BLOCKS: &[Call] = &[any(SYS_pwritev), any(SYS_pwrite64), any(SYS_fallocate)];

/// Disk images that say themselves whether they are closed.
const CLOSED_IMAGES: &[Call] = &[any(SYS_pwrite64)];

/// Files by directory and name. Where they may be is Landlock's business.
const FILES: &[Call] = &[
    any(SYS_openat),
    any(SYS_statx),
    any(SYS_fstat),
    any(SYS_newfstatat),
    any(SYS_fstatfs),
    any(SYS_readlinkat),
    any(SYS_faccessat),
    any(SYS_faccessat2),
    any(SYS_getdents64),
    any(SYS_fgetxattr),
    any(SYS_flistxattr),
    one_of(SYS_fcntl, 1, &[F_GETFL as u64, F_SETFL as u64]),
];

/// The same, changed.
const CHANGED_FILES: &[Call] = &[
    any(SYS_ftruncate),
    any(SYS_copy_file_range),
    any(SYS_mkdirat),
    any(SYS_mknodat),
    any(SYS_symlinkat),
    any(SYS_linkat),
    any(SYS_unlinkat),
    any(SYS_renameat),
    any(SYS_renameat2),
    any(SYS_fchmod),
    any(SYS_fchmodat),
    any(SYS_fchownat),
    any(SYS_utimensat),
    any(SYS_fsetxattr),
    any(SYS_fremovexattr),
];

/// Connections by the Internet's protocols.
const INTERNET: &[Call] = &[one_of(SYS_socket, 0, &[AF_INET as u64, AF_INET6 as u64])];

/// Connections with programs of the host.
const LOCAL: &[Call] = &[one_of(SYS_socket, 0, &[AF_UNIX as u64])];

/// Waiting for many files at once.
const MANY_FILES: &[Call] =
    &[any(SYS_epoll_ctl), any(SYS_epoll_wait), any(SYS_epoll_pwait), any(SYS_epoll_pwait2)];

/// Ways to wait that were not there before.
const NEW_WAITS: &[Call] =
    &[any(SYS_epoll_create1), any(SYS_eventfd2), one_of(SYS_fcntl, 1, &[F_DUPFD_CLOEXEC as u64])];

/// What of its work the guest does itself.
const TAP: &[Call] = &[one_of(SYS_ioctl, 1, &[TUNSETOFFLOAD])];

/// What is done with connections.
const SOCKETS: &[Call] = &[
    any(SYS_connect),
    any(SYS_accept4),
    any(SYS_bind),
    any(SYS_listen),
    any(SYS_shutdown),
    any(SYS_sendto),
    any(SYS_recvfrom),
    any(SYS_sendmsg),
    any(SYS_recvmsg),
    any(SYS_readv),
    any(SYS_getsockopt),
    any(SYS_setsockopt),
    any(SYS_getsockname),
    any(SYS_getpeername),
    one_of(SYS_ioctl, 1, &[FIONBIO]),
];
