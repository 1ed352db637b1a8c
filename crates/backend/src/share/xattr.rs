//! Extended attributes: those of users. All others give rights or belong to the host's kernel, and do not exist here.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::Share;

/// What the names begin with.
const USERS: &[u8] = b"user.";
/// The longest value, and the longest list of names, that the host's kernel has (xattr(7)).
const LONGEST: usize = 64 << 10;

fn check(name: &CStr) -> Result<(), Errno> {
    if name.to_bytes().starts_with(USERS) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

impl Share {
    /// Opens what has such attributes: a file or a directory. Of others it is the kernel that refuses them, by `EPERM`.
    fn open_for_attributes(&self, node: u64) -> Result<OwnedFd, Errno> {
        let node = self.nodes.get(node)?;
        if node.is_covered() {
            return Err(Errno::OPNOTSUPP);
        }
        self.reopen(&node, OFlags::RDONLY)
            .map_err(|error| if error == Errno::NXIO { Errno::OPNOTSUPP } else { error })
    }

    /// An extended attribute's value.
    ///
    /// # Errors
    /// As getxattr(2).
    pub fn extended_attribute(&self, node: u64, name: &CStr) -> Result<Vec<u8>, Errno> {
        check(name)?;
        let file = self.open_for_attributes(node)?;
        let mut value = vec![0; LONGEST];
        let len = rustix::fs::fgetxattr(&file, name, &mut value[..])?;
        value.truncate(len);
        Ok(value)
    }

    /// The names of all extended attributes, each with a NUL behind it.
    ///
    /// # Errors
    /// As listxattr(2).
    pub fn extended_attributes(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let file = match self.open_for_attributes(node) {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            file => file?,
        };
        let mut names = vec![0; LONGEST];
        let len = rustix::fs::flistxattr(&file, &mut names[..])?;
        names.truncate(len);
        let ours = names.split_inclusive(|byte| *byte == 0).filter(|name| name.starts_with(USERS));
        Ok(ours.flatten().copied().collect())
    }

    /// Sets an extended attribute. `flags` are setxattr(2)'s.
    ///
    /// # Errors
    /// As setxattr(2).
    pub fn set_extended_attribute(
        &self,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        self.check_changeable(&*self.nodes.get(node)?)?;
        check(name)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::fsetxattr(self.open_for_attributes(node)?, name, value, flags)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As removexattr(2).
    pub fn remove_extended_attribute(&self, node: u64, name: &CStr) -> Result<(), Errno> {
        self.check_changeable(&*self.nodes.get(node)?)?;
        check(name)?;
        rustix::fs::fremovexattr(self.open_for_attributes(node)?, name)
    }
}
