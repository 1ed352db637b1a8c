//! The process that becomes the command.

use std::ffi::OsString;
use std::io::stdin;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Gid, Uid, ioctl_tiocsctty, setsid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::account::Account;

/// What the program is called with to be one.
pub(crate) const NAME: &str = "session";

/// The arguments for a session of this account, on a terminal (which standard input is) or not; the command follows.
pub(crate) fn arguments(account: &Account, terminal: bool) -> [String; 4] {
    let ids = [account.gid].iter().chain(&account.groups).map(ToString::to_string).collect::<Vec<_>>();
    [NAME.to_owned(), terminal.to_string(), account.uid.to_string(), ids.join(",")]
}

/// Becomes the command; returns only with the status of a failure, as env(1) has it.
pub(crate) fn become_command(mut arguments: impl Iterator<Item = OsString>) -> i32 {
    let mut next = || arguments.next()?.into_string().ok();
    let (terminal, uid, gids) = (next(), next(), next());
    let prepared = (|| {
        let gids: Vec<Gid> =
            gids?.split(',').map(|gid| gid.parse().ok().map(Gid::from_raw)).collect::<Option<_>>()?;
        Some((terminal? == "true", Uid::from_raw(uid?.parse().ok()?), gids))
    })();
    let (Some((terminal, uid, gids)), Some(program)) = (prepared, arguments.next()) else {
        return i32::from(crate::OURS);
    };
    if let Err(error) = change(terminal, uid, &gids) {
        eprintln!("umbra: in the guest: cannot become user {}: {error}", uid.as_raw());
        return i32::from(crate::OURS);
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("umbra: in the guest: cannot run '{}': {error}", program.display());
    if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
}

fn change(terminal: bool, uid: Uid, gids: &[Gid]) -> rustix::io::Result<()> {
    setsid()?;
    if terminal {
        ioctl_tiocsctty(stdin())?;
    }
    if let Some((first, _)) = gids.split_first() {
        set_thread_groups(gids)?;
        set_thread_gid(*first)?;
    }
    // Last, for afterwards nothing else may be changed.
    set_thread_uid(uid)
}
