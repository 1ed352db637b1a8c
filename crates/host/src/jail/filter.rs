//! From a role's list of system calls to a filter of the kernel's (seccomp(2)).
//!
//! A call that is not on the list raises SIGSYS in the thread, whatever signals it blocks, and is not made. Most calls are allowed
//! whatever their arguments; the kernel finds that out once, when the filter is installed, and does not run it for them again.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use super::roles::{Call, Only, Role};

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    filter: *const sock_filter,
}

/// Whether the kernel has filters that raise a signal.
pub(super) fn is_available() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: the action lives; the call only answers.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0_u32, &raw const action) };
    answer == 0
}

/// Filters the calling thread's system calls for good.
///
/// Kernels before 5.16 slow a filtered thread's loads and stores down unless they are told not to, against a reader of memory by
/// speculation. Everything in this process is the guest's already.
pub(super) fn install(role: Role) -> io::Result<()> {
    let program = compile(role).map_err(io::Error::other)?;
    let filter =
        Program { len: u16::try_from(program.len()).map_err(io::Error::other)?, filter: program.as_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the program lives, has the length given, and is copied by the kernel.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A role's filter.
pub(super) fn compile(role: Role) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in role.calls() {
        rules.entry(call.number).or_default().extend(alternatives(call)?);
    }
    // A call without conditions is allowed whatever other lists say of it; to the compiler that is one with no rules.
    for call in role.calls().filter(|call| call.only == Only::Any) {
        rules.insert(call.number, Vec::new());
    }
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    filter.try_into()
}

/// The conditions of which one has to hold.
fn alternatives(call: &Call) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let compared = |len: SeccompCmpArgLen, argument, operator, value| {
        SeccompCondition::new(argument, len, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let condition = |argument, operator, value| compared(SeccompCmpArgLen::Dword, argument, operator, value);
    match call.only {
        Only::Any => Ok(Vec::new()),
        Only::OneOf(argument, values) => {
            values.iter().map(|value| condition(argument, SeccompCmpOp::Eq, *value)).collect()
        }
        Only::Without(argument, bits) => Ok(vec![condition(argument, SeccompCmpOp::MaskedEq(bits), 0)?]),
        Only::Null(argument) => Ok(vec![compared(SeccompCmpArgLen::Qword, argument, SeccompCmpOp::Eq, 0)?]),
        Only::Itself(argument) => {
            Ok(vec![condition(argument, SeccompCmpOp::Eq, u64::from(std::process::id()))?])
        }
    }
}
