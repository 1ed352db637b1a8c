//! A disk, as people name it.

use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::choice::choice;
use crate::{ByteSize, SpecError};

/// A disk: `FILE[,ro][,overlay[=FILE]][,format=raw|qcow2][,bus=virtio|nvme][,backing=DIR][,ops=N][,rate=SIZE]`. A comma in a file's name is written twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The image.
    pub file: PathBuf,
    /// What becomes of changes.
    pub changes: DiskChanges,
    /// The image's format, if it is not to be told by its name.
    pub format: Option<DiskFormat>,
    /// What the guest sees it as.
    pub bus: DiskBus,
    /// A directory whose files the image may be made upon, besides those in its own.
    pub backing: Option<PathBuf>,
    /// How many requests are served each second; nothing: as many as can.
    pub ops: Option<NonZeroU32>,
    /// How many bytes are read and written each second; nothing: as many as can.
    pub rate: Option<ByteSize>,
}

/// What becomes of what a guest writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskChanges {
    /// The guest may only read.
    Refused,
    /// It goes into the image.
    Made,
    /// It is forgotten when the VM ends.
    Discarded,
    /// It goes into this file, and the image stays as it is.
    Kept(PathBuf),
}

choice! {
    /// How an image is stored.
    pub enum DiskFormat {
        /// Byte for byte.
        Raw = "raw",
        /// QEMU's format.
        Qcow2 = "qcow2",
    }
}

choice! {
    /// What a guest sees a disk as.
    #[derive(Default)]
    pub enum DiskBus {
        /// A virtio block device.
        #[default]
        Virtio = "virtio",
        /// The namespace of an NVM Express controller.
        Nvme = "nvme",
    }
}

impl DiskSpec {
    /// The most disks of a VM: what the root bus has room for.
    pub const MOST: usize = 24;

    /// A disk whose image is changed.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            changes: DiskChanges::Made,
            format: None,
            bus: DiskBus::default(),
            backing: None,
            ops: None,
            rate: None,
        }
    }

    /// Takes one option; false if there is no such one, or it contradicts another.
    fn take(&mut self, option: &str) -> bool {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value).filter(|value| !value.is_empty())),
            None => (option, Some("")),
        };
        let Some(value) = value else { return false };
        let changes = match (name, value) {
            ("ro", "") => DiskChanges::Refused,
            ("overlay", "") => DiskChanges::Discarded,
            ("overlay", file) => DiskChanges::Kept(file.into()),
            ("format", name) => {
                self.format = DiskFormat::named(name);
                return self.format.is_some();
            }
            ("bus", name) => {
                let found = DiskBus::named(name);
                self.bus = found.unwrap_or_default();
                return found.is_some();
            }
            ("ops", count) => {
                self.ops = count.parse().ok();
                return self.ops.is_some();
            }
            ("rate", size) => {
                self.rate = size.parse().ok().filter(|rate: &ByteSize| rate.bytes() > 0);
                return self.rate.is_some();
            }
            ("backing", directory) => {
                self.backing = Some(directory.into());
                return !directory.is_empty();
            }
            _ => return false,
        };
        let before = std::mem::replace(&mut self.changes, changes);
        before == DiskChanges::Made || before == self.changes
    }
}

/// Splits at single commas; doubled ones become one.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::from([String::new()]);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// A path in which commas are doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

impl FromStr for DiskSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = split(text).into_iter();
        let file = parts.next().filter(|file| !file.is_empty());
        let file = file.ok_or_else(|| SpecError::DiskWithoutFile { text: text.to_owned() })?;
        let mut disk = Self::new(file.into());
        match parts.find(|option| !disk.take(option)) {
            None => Ok(disk),
            Some(option) => Err(SpecError::Disk { text: text.to_owned(), option }),
        }
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(&self.file))?;
        match &self.changes {
            DiskChanges::Refused => f.write_str(",ro")?,
            DiskChanges::Made => {}
            DiskChanges::Discarded => f.write_str(",overlay")?,
            DiskChanges::Kept(file) => write!(f, ",overlay={}", escaped(file))?,
        }
        if let Some(format) = self.format {
            write!(f, ",format={}", format.name())?;
        }
        if self.bus != DiskBus::default() {
            write!(f, ",bus={}", self.bus.name())?;
        }
        if let Some(directory) = &self.backing {
            write!(f, ",backing={}", escaped(directory))?;
        }
        if let Some(ops) = self.ops {
            write!(f, ",ops={ops}")?;
        }
        self.rate.map_or(Ok(()), |rate| write!(f, ",rate={rate}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_options_and_commas() {
        let disk = |file: &str, changes| Ok(DiskSpec { changes, ..DiskSpec::new(file.into()) });
        assert_eq!("d.img".parse(), disk("d.img", DiskChanges::Made));
        assert_eq!("a/d.img,ro".parse(), disk("a/d.img", DiskChanges::Refused));
        assert_eq!("a,,ro,ro,ro".parse(), disk("a,ro", DiskChanges::Refused));
        assert_eq!("a,,,overlay".parse(), disk("a,", DiskChanges::Discarded));
        assert_eq!("a,,".parse(), disk("a,", DiskChanges::Made));
        assert_eq!("a,overlay=b,,c=d".parse(), disk("a", DiskChanges::Kept("b,c=d".into())));
        let all: DiskSpec = "a,ro,format=qcow2,bus=nvme,backing=/b,ops=100,rate=10M".parse().unwrap();
        assert_eq!((all.format, all.backing), (Some(DiskFormat::Qcow2), Some("/b".into())));
        assert_eq!(all.bus, DiskBus::Nvme);
        assert_eq!((all.ops.unwrap().get(), all.rate.unwrap().bytes()), (100, 10 << 20));
        for bad in [
            "",
            ",ro",
            "d,rw",
            "d,",
            "d,ro,,",
            "d,ro=",
            "d,ro=1",
            "d,ro,overlay",
            "d,overlay=a,overlay=b",
            "d,overlay=",
            "d,format=vmdk",
            "d,format",
            "d,bus",
            "d,bus=ide",
            "d,backing",
            "d,backing=",
            "d,ops=0",
            "d,ops=x",
            "d,rate=9",
            "d,rate=0K",
        ] {
            assert!(bad.parse::<DiskSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_is_understood() {
        for text in [
            "d",
            "d,ro",
            "a,,b,ro",
            ",,",
            "d,overlay",
            "d,overlay=a,,b,format=raw,ops=7,rate=10 MiB",
            "d,ro,format=qcow2,bus=nvme,backing=,,",
        ] {
            assert_eq!(text.parse::<DiskSpec>().unwrap().to_string(), text);
        }
    }
}
