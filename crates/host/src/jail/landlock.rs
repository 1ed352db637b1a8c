//! Landlock (landlock(7)): files are opened in the directories that were named, and nowhere else.
//!
//! Everything that a path leads to is covered but what needs no opening: attributes of files (chmod(2), chown(2), stat(2))
//! are not Landlock's. From its sixth version on, signals and abstract sockets reach nobody outside either. Where a kernel knows
//! fewer rights than we name, those that it knows are restricted; the filters of system calls do not depend on it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

use super::{Access, Directory};

/// The rights of `linux/landlock.h`, by name.
mod right {
    pub(super) const WRITE_FILE: u64 = 1 << 1;
    pub(super) const READ_FILE: u64 = 1 << 2;
    pub(super) const READ_DIR: u64 = 1 << 3;
    pub(super) const REMOVE_DIR: u64 = 1 << 4;
    pub(super) const REMOVE_FILE: u64 = 1 << 5;
    pub(super) const MAKE_DIR: u64 = 1 << 7;
    pub(super) const MAKE_REG: u64 = 1 << 8;
    pub(super) const MAKE_SOCK: u64 = 1 << 9;
    pub(super) const MAKE_FIFO: u64 = 1 << 10;
    pub(super) const MAKE_SYM: u64 = 1 << 12;
    pub(super) const REFER: u64 = 1 << 13;
    pub(super) const TRUNCATE: u64 = 1 << 14;
}

/// What may be done in a directory that is only read. Nothing is ever executed.
const READING: u64 = right::READ_FILE | right::READ_DIR;
/// And in one that may be changed. Devices are never made.
const CHANGING: u64 = READING
    | right::WRITE_FILE
    | right::TRUNCATE
    | right::REMOVE_DIR
    | right::REMOVE_FILE
    | right::MAKE_DIR
    | right::MAKE_REG
    | right::MAKE_SOCK
    | right::MAKE_FIFO
    | right::MAKE_SYM
    | right::REFER;

/// The first version in which files can be moved from one directory to another.
const ABI_WITH_REFER: u32 = 2;
/// The first version that knows scopes: abstract Unix sockets, and signals.
const ABI_WITH_SCOPES: u32 = 6;
const SCOPES: u64 = 0b11;

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

/// `struct landlock_ruleset_attr`. An older kernel takes it, too, as long as what it does not know is 0.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: RawFd,
}

/// The rights over files that a version knows.
fn known(abi: u32) -> u64 {
    let count = match abi {
        0 => 0,
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        // Requests to devices.
        _ => 16,
    };
    (1 << count) - 1
}

/// The version of Landlock that the running kernel has; none if it has none, or it is switched off.
pub fn abi() -> Option<u32> {
    // SAFETY: with this flag the call takes no attributes, and only answers (landlock_create_ruleset(2)).
    let answer = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, null::<Ruleset>(), 0_usize, CREATE_RULESET_VERSION)
    };
    u32::try_from(answer).ok().filter(|abi| *abi > 0)
}

/// Restricts the calling thread, and those that it will make, to opening files in these directories; whether the kernel could. The
/// thread must have given up new privileges.
pub(super) fn restrict(shared: &[Directory], own: &[Directory]) -> io::Result<bool> {
    let Some(abi) = abi() else { return Ok(false) };
    // The first version lets nobody move files between directories, which a guest must be able to.
    if abi < ABI_WITH_REFER && shared.iter().any(|directory| directory.access == Access::Change) {
        return Ok(false);
    }
    let ruleset = Ruleset {
        handled_access_fs: known(abi),
        handled_access_net: 0,
        scoped: if abi >= ABI_WITH_SCOPES { SCOPES } else { 0 },
    };
    // SAFETY: the attributes live, and have the size given.
    let made = checked(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size_of::<Ruleset>(), 0_u32)
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let rules = unsafe { OwnedFd::from_raw_fd(made) };
    for directory in shared.iter().chain(own) {
        let rights = match directory.access {
            Access::Read => READING,
            Access::Change => CHANGING,
            Access::RemoveDirectories => right::REMOVE_DIR,
        };
        let rule =
            PathBeneath { allowed_access: rights & known(abi), parent_fd: directory.descriptor.as_raw_fd() };
        // SAFETY: the rule lives, and is of the type that its number says.
        checked(unsafe {
            let (ruleset, kind) = (rules.as_raw_fd(), RULE_PATH_BENEATH);
            libc::syscall(libc::SYS_landlock_add_rule, ruleset, kind, &raw const rule, 0_u32)
        })?;
    }
    // SAFETY: takes numbers only.
    checked(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0_u32) })?;
    Ok(true)
}

fn checked(answer: libc::c_long) -> io::Result<RawFd> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        RawFd::try_from(answer).map_err(io::Error::other)
    }
}
