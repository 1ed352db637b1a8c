//! What the first process of a guest is told: settings that `umbra run` puts beside it into the initial RAM file system.
//!
//! The text form is a list of `KEY=VALUE`, each ended by a NUL, since arguments, paths and environment may hold anything
//! else.

pub mod wire;

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Where the settings are in the initial RAM file system.
pub const SETTINGS: &str = "/umbra/settings";
/// Where the kernel modules are, named so that their order is the one to load them in.
pub const MODULES: &str = "/umbra/modules";

/// What this program does when it is called with one of these words and a path, in a system that runs: `umbra cp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// Write an archive of what is there to standard output.
    Pack,
    /// Make what is in the archive on standard input, under that name or in that directory.
    Unpack,
    /// Make all that is in the archive in that directory.
    Extract,
}

impl Copying {
    const ALL: [(&str, Self); 3] =
        [("pack", Self::Pack), ("unpack", Self::Unpack), ("extract", Self::Extract)];

    /// The word.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, what)| *what == self).map_or("", |(name, _)| name)
    }

    /// What a word means.
    pub fn of(word: &OsStr) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| word == *name).map(|(_, what)| *what)
    }
}

/// The settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The guest's host name.
    pub hostname: String,
    /// What becomes the root.
    pub root: Root,
    /// Shared directories, in the order in which they are mounted.
    pub shares: Vec<Mount>,
    /// The network, if there is one.
    pub network: Option<Network>,
    /// The terminal, if there is one; else standard input, output and error are pipes.
    pub terminal: Option<Terminal>,
    /// Environment variables beside the usual ones, or instead of them.
    pub environment: Vec<(OsString, OsString)>,
    /// Where the command runs.
    pub directory: Directory,
    /// Who runs it: a name or a number, with a group after a colon or without.
    pub user: Option<String>,
    /// Public keys of whoever may log in to a system that boots by itself, each a line as ssh has it.
    pub keys: Vec<String>,
    /// The command with its arguments; empty for a shell.
    pub command: Vec<OsString>,
    /// The kernel is not to announce that it powers off.
    pub quiet: bool,
}

/// What becomes the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// The shared directory of this tag, below a writable layer of the guest's own.
    Shared(String),
    /// The system on the first disk.
    Disk {
        /// Whether it may only be read.
        read_only: bool,
        /// Whether its own first process is to run, and not the command.
        boot: bool,
    },
}

impl Default for Root {
    fn default() -> Self {
        Self::Shared(String::new())
    }
}

impl Root {
    /// A root on a disk as text, for each of its kinds.
    const DISKS: [(&str, bool, bool); 4] =
        [("rw", false, false), ("ro", true, false), ("boot", false, true), ("boot-ro", true, true)];
}

/// A shared directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its tag; no colon.
    pub tag: String,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// What is known of the network beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The guest's addresses, each with the length of its network's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The ways to everywhere.
    pub routers: Vec<IpAddr>,
    /// Who is asked for names.
    pub name_servers: Vec<IpAddr>,
}

/// A terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its height and width in characters.
    pub size: (u16, u16),
    /// What TERM says.
    pub kind: String,
}

/// Where a command runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Directory {
    /// In its user's home, or where there is none, in the root.
    #[default]
    Home,
    /// In this one, if it exists.
    Rather(PathBuf),
    /// In this one and nowhere else.
    Exactly(PathBuf),
}

impl Settings {
    /// As text.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut put = |key: &str, value: &OsStr| {
            text.extend_from_slice(key.as_bytes());
            text.push(b'=');
            text.extend_from_slice(value.as_bytes());
            text.push(0);
        };
        put("hostname", self.hostname.as_ref());
        match &self.root {
            Root::Shared(tag) => put("root", tag.as_ref()),
            Root::Disk { read_only, boot } => {
                let name = Root::DISKS.iter().find(|(_, ro, own)| (ro, own) == (read_only, boot));
                put("disk", name.map_or("", |(name, ..)| name).as_ref());
            }
        }
        for Mount { tag, path, read_only } in &self.shares {
            let access = if *read_only { "ro" } else { "rw" };
            put("share", &[tag.as_ref(), access.as_ref(), path.as_os_str()].join(OsStr::new(":")));
        }
        if let Some(Network { addresses, routers, name_servers }) = &self.network {
            for (address, prefix) in addresses {
                put("address", format!("{address}/{prefix}").as_ref());
            }
            for router in routers {
                put("router", router.to_string().as_ref());
            }
            for server in name_servers {
                put("name-server", server.to_string().as_ref());
            }
        }
        if let Some(Terminal { size: (rows, columns), kind }) = &self.terminal {
            put("terminal", format!("{rows}:{columns}:{kind}").as_ref());
        }
        for (name, value) in &self.environment {
            put("environment", &[name.as_os_str(), value].join(OsStr::new("=")));
        }
        match &self.directory {
            Directory::Home => {}
            Directory::Rather(path) => put("rather", path.as_os_str()),
            Directory::Exactly(path) => put("directory", path.as_os_str()),
        }
        if let Some(user) = &self.user {
            put("user", user.as_ref());
        }
        for key in &self.keys {
            put("key", key.as_ref());
        }
        for argument in &self.command {
            put("argument", argument);
        }
        if self.quiet {
            put("quiet", "".as_ref());
        }
        text
    }

    /// From text; `None` if that is no settings'.
    pub fn decode(text: &[u8]) -> Option<Self> {
        let mut settings = Self::default();
        for pair in text.split_inclusive(|byte| *byte == 0) {
            let (key, value) = split(pair.strip_suffix(b"\0")?, b'=')?;
            settings.take(key, value)?;
        }
        Some(settings)
    }

    fn network(&mut self) -> &mut Network {
        self.network.get_or_insert_default()
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = || String::from_utf8(value.to_vec()).ok();
        let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        match key {
            b"hostname" => self.hostname = text()?,
            b"root" => self.root = Root::Shared(text()?),
            b"disk" => {
                let found = Root::DISKS.iter().find(|(name, ..)| name.as_bytes() == value);
                self.root =
                    found.map(|(_, read_only, boot)| Root::Disk { read_only: *read_only, boot: *boot })?;
            }
            b"share" => {
                let (tag, rest) = split(value, b':')?;
                let (access, path) = split(rest, b':')?;
                let tag = String::from_utf8(tag.to_vec()).ok()?;
                self.shares.push(Mount { tag, path: os(path).into(), read_only: access == b"ro" });
            }
            b"address" => {
                let text = text()?;
                let (address, prefix) = text.split_once('/')?;
                self.network().addresses.push((address.parse().ok()?, prefix.parse().ok()?));
            }
            b"router" => self.network().routers.push(text()?.parse().ok()?),
            b"name-server" => self.network().name_servers.push(text()?.parse().ok()?),
            b"terminal" => {
                let text = text()?;
                let (rows, rest) = text.split_once(':')?;
                let (columns, kind) = rest.split_once(':')?;
                let size = (rows.parse().ok()?, columns.parse().ok()?);
                self.terminal = Some(Terminal { size, kind: kind.to_owned() });
            }
            b"environment" => {
                let (name, value) = split(value, b'=')?;
                self.environment.push((os(name), os(value)));
            }
            b"rather" => self.directory = Directory::Rather(os(value).into()),
            b"directory" => self.directory = Directory::Exactly(os(value).into()),
            b"user" => self.user = Some(text()?),
            b"key" => self.keys.push(text()?),
            b"argument" => self.command.push(os(value)),
            b"quiet" => self.quiet = true,
            _ => return None,
        }
        Some(())
    }
}

/// What is before and behind the first `mark`.
fn split(text: &[u8], mark: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == mark)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back() {
        let settings = Settings {
            hostname: "umbra".into(),
            root: Root::Shared("root".into()),
            shares: vec![
                Mount { tag: "share0".into(), path: "/a:b=c".into(), read_only: true },
                Mount { tag: "share1".into(), path: "/work".into(), read_only: false },
            ],
            network: Some(Network {
                addresses: vec![("10.0.2.15".parse().unwrap(), 24), ("fec0::15".parse().unwrap(), 64)],
                routers: vec!["10.0.2.2".parse().unwrap()],
                name_servers: vec!["fec0::3".parse().unwrap()],
            }),
            terminal: Some(Terminal { size: (24, 80), kind: "xterm:x".into() }),
            environment: vec![("A".into(), "b=c\n".into()), ("EMPTY".into(), "".into())],
            directory: Directory::Rather("/some where".into()),
            user: Some("1000:1000".into()),
            keys: vec!["ssh-ed25519 AAAA= me@here".into()],
            command: vec!["printf".into(), "".into(), OsString::from_vec(vec![0xff, b'=', b'\n'])],
            quiet: true,
        };
        assert_eq!(Settings::decode(&settings.encode()), Some(settings.clone()));
        let exact = Settings { directory: Directory::Exactly("/d".into()), ..Settings::default() };
        assert_eq!(Settings::decode(&exact.encode()), Some(exact));
        for (_, read_only, boot) in Root::DISKS {
            let disk = Settings { root: Root::Disk { read_only, boot }, ..Settings::default() };
            assert_eq!(Settings::decode(&disk.encode()), Some(disk));
        }
        for what in [Copying::Pack, Copying::Unpack, Copying::Extract] {
            assert_eq!(Copying::of(what.name().as_ref()), Some(what));
        }
        for bad in [&b"hostname=x"[..], b"disk=x\0", b"other=x\0", b"root\0", b"share=x\0"] {
            assert_eq!(Settings::decode(bad), None);
        }
    }
}
