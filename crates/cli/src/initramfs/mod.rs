//! Initial RAM disks, made on the spot: for a guest that brings no root file system, busybox; for one whose root is shared
//! ([`shared`]), what leads there.
//!
//! `/init` ([`script`]) prepares the system, runs the user's command or a shell on the first serial port, reports its
//! exit status through the second ([`crate::console::control`]) and powers the machine off.

mod script;
pub(crate) mod shared;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::debian::Module;
use ::initramfs::Archive;
pub(crate) use script::Session;

/// What goes into the root file system.
pub(crate) struct Contents<'a> {
    /// The busybox program.
    pub(crate) busybox: &'a [u8],
    /// The applets' paths from the root.
    pub(crate) applets: &'a [String],
    /// The guest's host name.
    pub(crate) hostname: &'a str,
    /// Kernel modules to load, in this order.
    pub(crate) modules: &'a [Module],
    /// The user's command, empty for a shell.
    pub(crate) command: &'a [OsString],
    /// How the command meets the console.
    pub(crate) session: &'a Session,
    /// Whether its network is the user-mode network.
    pub(crate) user_network: bool,
}

/// Directories that have to be there.
const DIRECTORIES: [&str; 14] = [
    "bin",
    "dev",
    "etc",
    "etc/umbra",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/sbin",
    "var",
];

/// Makes the archive.
pub(crate) fn build(contents: &Contents<'_>) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    // What /init's first messages go to, before devtmpfs is there.
    archive.character_device("dev/console", 5, 1);
    archive.program("bin/busybox", contents.busybox);
    let known: BTreeSet<&str> = DIRECTORIES.into_iter().collect();
    for applet in contents.applets {
        let in_known_directory =
            applet.rsplit_once('/').is_some_and(|(directory, _)| known.contains(directory));
        if in_known_directory && applet != "bin/busybox" {
            archive.symlink(applet, "/bin/busybox");
        }
    }
    archive.file("etc/hostname", format!("{}\n", contents.hostname).as_bytes());
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", b"root:x:0:\ntty:x:5:\n");
    add_modules(&mut archive, script::MODULES, contents.modules);
    archive.program(
        "init",
        script::init(contents.session, contents.command.is_empty(), contents.user_network).as_bytes(),
    );
    archive.program(
        script::COMMAND.trim_start_matches('/'),
        &command_script(contents.command, contents.session),
    );
    archive.finish()
}

/// Puts kernel modules, if there are any, into a directory, named so that their order there is theirs.
fn add_modules(archive: &mut Archive, directory: &str, modules: &[Module]) {
    let directory = directory.trim_start_matches('/');
    if !modules.is_empty() {
        archive.directory(directory);
    }
    for (number, module) in modules.iter().enumerate() {
        archive.file(&format!("{directory}/{number:02}-{}.ko", module.name), &module.bytes);
    }
}

/// A script that becomes the command with exactly these arguments, or a shell.
fn command_script(command: &[OsString], session: &Session) -> Vec<u8> {
    let mut script = b"#!/bin/sh\nexec".to_vec();
    if command.is_empty() {
        // In a pipe the console is still a terminal line to the guest; the shell must not take it for a person's.
        script.extend_from_slice(if *session == Session::Piped { b" sh /dev/stdin" } else { b" sh -l" });
    }
    for argument in command {
        script.push(b' ');
        script.extend_from_slice(&quoted(argument.as_bytes()));
    }
    script.push(b'\n');
    script
}

/// The text as one word of a shell, whatever is in it: between single quotes only a single quote is special.
fn quoted(text: &[u8]) -> Vec<u8> {
    let mut word = vec![b'\''];
    for &byte in text {
        match byte {
            b'\'' => word.extend_from_slice(br"'\''"),
            other => word.push(other),
        }
    }
    word.push(b'\'');
    word
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_shell_gives_arguments_back_exactly() {
        let arguments = ["printf", "%s|", "a b", "it's", "$HOME `id` \\ \"x\"", "", "*", "-n", "line\nbreak"];
        let command: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let script = command_script(&command, &Session::Piped);
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), arguments[2..].join("|") + "|");
    }

    proptest! {
        #[test]
        fn quoting_is_undone_by_the_shell(text in proptest::collection::vec(1_u8.., 0..40)) {
            let mut script = b"printf %s ".to_vec();
            script.extend(quoted(&text));
            let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
            prop_assert_eq!(output.stdout, text);
        }
    }

    #[test]
    fn applets_go_where_directories_are() {
        let session = Session::Piped;
        let bytes = build(&Contents {
            busybox: b"ELF",
            applets: &[
                "bin/ls".into(),
                "linuxrc".into(),
                "usr/bin/awk".into(),
                "no/where".into(),
                "bin/busybox".into(),
            ],
            hostname: "h",
            modules: &[Module { name: "virtio".into(), bytes: b"ELF".to_vec() }],
            command: &[],
            session: &session,
            user_network: true,
        });
        let has =
            |name: &str| bytes.windows(name.len() + 1).any(|window| window == format!("{name}\0").as_bytes());
        assert!(has("bin/ls") && has("usr/bin/awk") && has("bin/busybox") && has("init"));
        assert!(has("etc/umbra/modules") && has("etc/umbra/modules/00-virtio.ko"));
        assert!(!has("linuxrc") && !has("no/where"));
    }
}
