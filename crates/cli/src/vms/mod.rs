//! VMs seen from outside: what the commands that name a VM do, and what a VM does for them.
//!
//! There is no daemon. Each VM is a process, and each has a directory of its own (see [`home`]) that says all there is to
//! know of it: who it is, whether it lives, where to reach it, what it printed, how it ended. While it lives it answers
//! requests on a socket there ([`protocol`], [`server`]).
//!
//! | module | concept |
//! |---|---|
//! | [`home`] | the directories of all VMs: made, found, and cleaned of the dead |
//! | [`record`] | what is written there |
//! | [`protocol`] | what is said over a VM's socket, with bounds on everything read |
//! | [`server`], [`client`] | the two ends of it |
//! | [`hub`] | the console of a VM in the background: its log, and who is attached |
//! | [`log`] | what a VM printed, kept in bounded files |
//! | [`presence`] | both of these for the VM of this process |
//! | [`finale`] | how a VM ended, for those who wait for it |
//! | [`detach`] | into the background |
//! | [`disk`] | the disk that a VM keeps |
//! | [`copy`] | files to and from a guest that runs |
//! | [`exec`] | commands in a guest that runs, both ends |
//! | [`attach`] | a console from another terminal |
//! | [`plug`] | devices that come to a guest that runs, and go; [`device`] is what is sent of them |
//! | [`commands`], [`list`], [`usage`] | the commands |
//! | [`args`] | what was typed |

pub(crate) mod args;
mod attach;
mod client;
pub(crate) mod commands;
mod copy;
pub(crate) mod detach;
mod device;
pub(crate) mod disk;
mod exec;
mod finale;
mod home;
pub(crate) mod hub;
pub(crate) mod list;
mod log;
mod plug;
pub(crate) mod presence;
pub(crate) mod record;
mod server;
pub(crate) mod usage;
