//! FUSE as bytes: structures and numbers of version 7 (Linux `include/uapi/linux/fuse.h`, fuse(4)).
//!
//! Everything is little-endian and naturally aligned, as on the only processor that Umbra has. Structures that grew with
//! the protocol have the size that every kernel since Linux 5.4 sends (7.31).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version spoken.
pub(super) const MAJOR: u32 = 7;
/// The newest minor version whose structures these are.
pub(super) const MINOR: u32 = 38;
/// The oldest that is understood.
pub(super) const OLDEST_MINOR: u32 = 31;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Lookup,
    Forget,
    GetAttr,
    SetAttr,
    ReadLink,
    SymLink,
    MkNod,
    MkDir,
    Unlink,
    RmDir,
    Rename,
    Link,
    Open,
    Read,
    Write,
    StatFs,
    Release,
    FSync,
    SetXAttr,
    GetXAttr,
    ListXAttr,
    RemoveXAttr,
    Init,
    OpenDir,
    ReadDir,
    ReleaseDir,
    FSyncDir,
    Access,
    Create,
    Interrupt,
    Destroy,
    BatchForget,
    FAllocate,
    ReadDirPlus,
    Rename2,
    LSeek,
    CopyFileRange,
}

impl Operation {
    /// The operation of a number; the rest of them the guest's kernel does itself once it has heard `ENOSYS`: locks, flush
    /// at close, device control, block maps.
    pub(super) fn of(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Lookup,
            2 => Self::Forget,
            3 => Self::GetAttr,
            4 => Self::SetAttr,
            5 => Self::ReadLink,
            6 => Self::SymLink,
            8 => Self::MkNod,
            9 => Self::MkDir,
            10 => Self::Unlink,
            11 => Self::RmDir,
            12 => Self::Rename,
            13 => Self::Link,
            14 => Self::Open,
            15 => Self::Read,
            16 => Self::Write,
            17 => Self::StatFs,
            18 => Self::Release,
            20 => Self::FSync,
            21 => Self::SetXAttr,
            22 => Self::GetXAttr,
            23 => Self::ListXAttr,
            24 => Self::RemoveXAttr,
            26 => Self::Init,
            27 => Self::OpenDir,
            28 => Self::ReadDir,
            29 => Self::ReleaseDir,
            30 => Self::FSyncDir,
            34 => Self::Access,
            35 => Self::Create,
            36 => Self::Interrupt,
            38 => Self::Destroy,
            42 => Self::BatchForget,
            43 => Self::FAllocate,
            44 => Self::ReadDirPlus,
            45 => Self::Rename2,
            46 => Self::LSeek,
            47 => Self::CopyFileRange,
            _ => return None,
        })
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_one_way(self) -> bool {
        matches!(self, Self::Forget | Self::BatchForget | Self::Interrupt)
    }
}

/// What is agreed on at the beginning (`FUSE_INIT`).
pub(super) mod feature {
    pub(in super::super) const ASYNC_READ: u32 = 1 << 0;
    pub(in super::super) const BIG_WRITES: u32 = 1 << 5;
    pub(in super::super) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(in super::super) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(in super::super) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(in super::super) const ASYNC_DIO: u32 = 1 << 15;
    pub(in super::super) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(in super::super) const MAX_PAGES: u32 = 1 << 22;
    pub(in super::super) const CACHE_SYMLINKS: u32 = 1 << 23;
    pub(in super::super) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

// Flags of an answer to an open.
pub(super) const KEEP_CACHE: u32 = 1 << 1;
pub(super) const CACHE_DIR: u32 = 1 << 3;

/// A flag of [`GetAttrIn`]: there is a file handle.
pub(super) const GETATTR_HANDLE: u32 = 1 << 0;

/// What of [`SetAttrIn`] is to be set.
pub(super) mod set {
    pub(in super::super) const MODE: u32 = 1 << 0;
    pub(in super::super) const UID: u32 = 1 << 1;
    pub(in super::super) const GID: u32 = 1 << 2;
    pub(in super::super) const SIZE: u32 = 1 << 3;
    pub(in super::super) const ATIME: u32 = 1 << 4;
    pub(in super::super) const MTIME: u32 = 1 << 5;
    pub(in super::super) const HANDLE: u32 = 1 << 6;
    pub(in super::super) const ATIME_NOW: u32 = 1 << 7;
    pub(in super::super) const MTIME_NOW: u32 = 1 << 8;
}

/// Defines structures of the protocol.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type,)* })*
    };
}

structures! {
    /// `struct fuse_in_header`: what every request begins with.
    InHeader {
        len: u32, operation: u32, unique: u64, node: u64, uid: u32, gid: u32, pid: u32,
        extension_len: u16, padding: u16,
    }
    /// `struct fuse_out_header`: what every answer begins with.
    OutHeader { len: u32, error: i32, unique: u64, }

    /// `struct fuse_init_in`, as far as it is of interest.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// `struct fuse_forget_one`; the request to forget one node is its second half.
    ForgetOne { node: u64, count: u64, }
    /// `struct fuse_batch_forget_in`
    BatchForgetIn { count: u32, padding: u32, }
    /// `struct fuse_getattr_in`
    GetAttrIn { flags: u32, padding: u32, handle: u64, }
    /// `struct fuse_setattr_in`
    SetAttrIn {
        valid: u32, padding: u32, handle: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atime_ns: u32, mtime_ns: u32, ctime_ns: u32, mode: u32, unused: u32, uid: u32, gid: u32, unused_too: u32,
    }
    /// `struct fuse_mknod_in`, with a name behind it
    MkNodIn { mode: u32, device: u32, umask: u32, padding: u32, }
    /// `struct fuse_mkdir_in`, with a name behind it
    MkDirIn { mode: u32, umask: u32, }
    /// `struct fuse_rename_in`, with two names behind it
    RenameIn { directory: u64, }
    /// `struct fuse_rename2_in`, with two names behind it
    Rename2In { directory: u64, flags: u32, padding: u32, }
    /// `struct fuse_link_in`, with a name behind it
    LinkIn { node: u64, }
    /// `struct fuse_open_in`
    OpenIn { flags: u32, open_flags: u32, }
    /// `struct fuse_create_in`, with a name behind it
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// `struct fuse_read_in`
    ReadIn { handle: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// `struct fuse_write_in`, with the data behind it
    WriteIn { handle: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// `struct fuse_release_in`
    ReleaseIn { handle: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// `struct fuse_fsync_in`
    FSyncIn { handle: u64, flags: u32, padding: u32, }
    /// `struct fuse_setxattr_in`, with a name and the value behind it
    SetXAttrIn { size: u32, flags: u32, }
    /// `struct fuse_getxattr_in`, with a name behind it unless names are asked for
    GetXAttrIn { size: u32, padding: u32, }
    /// `struct fuse_access_in`
    AccessIn { mask: u32, padding: u32, }
    /// `struct fuse_fallocate_in`
    FAllocateIn { handle: u64, offset: u64, len: u64, mode: u32, padding: u32, }
    /// `struct fuse_lseek_in`
    LSeekIn { handle: u64, offset: u64, whence: u32, padding: u32, }
    /// `struct fuse_copy_file_range_in`
    CopyIn { handle: u64, offset: u64, to_node: u64, to_handle: u64, to_offset: u64, len: u64, flags: u64, }

    /// `struct fuse_init_out`
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_granularity: u32, max_pages: u16, map_alignment: u16, flags2: u32, unused: [u32; 7],
    }
    /// `struct fuse_attr`
    Attr {
        inode: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atime_ns: u32, mtime_ns: u32,
        ctime_ns: u32, mode: u32, links: u32, uid: u32, gid: u32, device: u32, block_size: u32, flags: u32,
    }
    /// `struct fuse_attr_out`
    AttrOut { valid: u64, valid_ns: u32, padding: u32, attr: Attr, }
    /// `struct fuse_entry_out`
    EntryOut {
        node: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_ns: u32, attr_valid_ns: u32,
        attr: Attr,
    }
    /// `struct fuse_open_out`
    OpenOut { handle: u64, flags: u32, padding: u32, }
    /// The answer to `FUSE_CREATE`
    CreateOut { entry: EntryOut, open: OpenOut, }
    /// `struct fuse_write_out`
    WriteOut { size: u32, padding: u32, }
    /// `struct fuse_statfs_out`
    StatFsOut {
        blocks: u64, free: u64, available: u64, files: u64, free_files: u64, block_size: u32, name_max: u32,
        fragment_size: u32, padding: u32, spare: [u32; 6],
    }
    /// `struct fuse_getxattr_out`
    GetXAttrOut { size: u32, padding: u32, }
    /// `struct fuse_lseek_out`
    LSeekOut { offset: u64, }
    /// `struct fuse_dirent`, with the name behind it, padded to 8 bytes
    DirEntry { inode: u64, next: u64, name_len: u32, kind: u32, }
}

/// The arguments of a request: a structure, names, data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arguments<'a>(pub(super) &'a [u8]);

impl<'a> Arguments<'a> {
    /// Takes a structure from the front.
    pub(super) fn take<T: FromBytes>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    /// Takes a text that ends with a NUL from the front, without that.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (text, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..)?;
        Some(text)
    }

    /// Takes `len` bytes from the front.
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_that_kernels_expect() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<OutHeader>(), 16),
            (size_of::<SetAttrIn>(), 88),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<CopyIn>(), 56),
            (size_of::<InitOut>(), 64),
            (size_of::<Attr>(), 88),
            (size_of::<AttrOut>(), 104),
            (size_of::<EntryOut>(), 128),
            (size_of::<StatFsOut>(), 80),
            (size_of::<DirEntry>(), 24),
        ];
        for (number, (is, expected)) in sizes.into_iter().enumerate() {
            assert_eq!(is, expected, "{number}");
        }
    }

    #[test]
    fn arguments_end_where_they_end() {
        let mut arguments = Arguments(b"\x01\0\0\0\0\0\0\0name\0rest");
        assert_eq!(arguments.take::<LinkIn>(), Some(LinkIn { node: 1 }));
        assert_eq!(arguments.text(), Some(&b"name"[..]));
        assert_eq!(arguments.text(), None, "no NUL");
        assert_eq!((arguments.bytes(5), arguments.bytes(4)), (None, Some(&b"rest"[..])));
        assert_eq!(arguments.take::<AccessIn>(), None);
    }
}
