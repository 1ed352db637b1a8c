//! Exit statuses, all in one place (`umbra run --help` and umbra-run(1) explain them).

use std::process::ExitCode;

/// What the process exits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u8);

impl Status {
    /// All is well; the guest powered off.
    pub(crate) const OK: Self = Self(0);
    /// `umbra doctor` found something missing.
    pub(crate) const MISSING: Self = Self(1);
    /// What was asked for was not done to every VM, as docker says it.
    pub(crate) const REFUSED: Self = Self(1);
    /// The time allowed ran out, as timeout(1) says it.
    pub(crate) const TIMEOUT: Self = Self(124);
    /// Our own failure, as chroot(1), env(1) and their kind say it.
    pub(crate) const OURS: Self = Self(125);
    /// Nobody reads our output: 128 + SIGPIPE, what the shell says of any filter.
    pub(crate) const BROKEN_PIPE: Self = Self(128 + 13);
    /// Somebody ended the VM at once: 128 + SIGKILL.
    pub(crate) const KILLED: Self = Self(128 + 9);
    /// The guest's processor shut down. The shell says 139 of a program that died of SIGSEGV, the nearest kin.
    pub(crate) const TRIPLE_FAULT: Self = Self(139);

    /// Stopped by a signal, as the shell says it.
    pub(crate) fn signal(number: i32) -> Self {
        Self(128 | (number & 0x7f) as u8)
    }

    /// The guest wrote `value` to the debug-exit port. The kernel keeps 8 bits of an exit status.
    pub(crate) fn debug_exit(value: u32) -> Self {
        Self(((value << 1) | 1) as u8)
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_exit_is_odd_and_wraps() {
        assert_eq!(Status::debug_exit(0), Status(1));
        assert_eq!(Status::debug_exit(0x10), Status(33));
        assert_eq!(Status::debug_exit(0xffff_ffff), Status(255));
        assert_eq!(Status::signal(15), Status(143));
    }
}
