//! What a system that boots by itself is given on its way: this program as a service, which runs commands for the host
//! ([`crate::agent`]), and the public keys of whoever may log in.
//!
//! All of it lies in `/run`, which is memory: nothing is written to the system's disk. systemd finds units there, and leaves a `/run` that is
//! mounted already as it is. Any other first process is left alone.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use init::Settings;
use rustix::mount::{MountFlags, mount};

use crate::Failure;

/// Where systemd is.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// The directory of ours.
const PLACE: &str = "/run/umbra";
/// This program, in it.
const PROGRAM: &str = "/run/umbra/agent";
/// What it is called with to be the service.
pub(crate) const NAME: &str = "agent";
/// The unit, and what wants it.
const UNIT: &str = "/run/systemd/system/umbra-agent.service";
const WANTED: &str = "/run/systemd/system/sysinit.target.wants";

/// Commands may be asked for before the system is up, and while it goes down: among them the one that brings it down.
const TEXT: &str = "\
[Unit]
Description=Commands from umbra
DefaultDependencies=no
After=local-fs.target
Before=shutdown.target
Conflicts=shutdown.target

[Service]
ExecStart=/run/umbra/agent agent
KillMode=mixed
";

/// Puts it there, if the system has systemd. `program` is this program.
pub(crate) fn install(program: &[u8], settings: &Settings) -> Result<(), Failure> {
    if !SYSTEMD.iter().any(|path| Path::new(path).exists()) {
        return Ok(());
    }
    let failed = |error| Failure::new("cannot write to /run", error);
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", "/run", "tmpfs", flags, Some(c"mode=0755,size=20%"))
        .map_err(|error| failed(error.into()))?;
    let write = || {
        fs::create_dir_all(WANTED)?;
        fs::create_dir(PLACE)?;
        fs::write(UNIT, TEXT)?;
        symlink(UNIT, Path::new(WANTED).join("umbra-agent.service"))?;
        fs::write(PROGRAM, program)?;
        fs::set_permissions(PROGRAM, fs::Permissions::from_mode(0o755))?;
        let keys: String = settings.keys.iter().map(|key| format!("{key}\n")).collect();
        fs::write(Path::new(PLACE).join("authorized_keys"), keys)
    };
    write().map_err(failed)
}
