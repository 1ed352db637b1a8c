//! One request: a header, arguments and data to read, then an answer's header and its data to write (VIRTIO 1.2, 5.11.6).
//!
//! How the driver cuts these into buffers means nothing. A chain that has no room for the headers, or has them where there
//! is no memory, is malformed; all else that is wrong with a request is its error number. The length in the
//! header is not looked at: the chain has one of its own.

use backend::share::{Attributes, Errno, Found, Name, OpenFlags, Owner, Rename, SetAttributes, SetTime};
use memory::MemoryError;
use x86::bits::{index, low32};
use zerocopy::{FromBytes, IntoBytes};

use super::session::MOST_DATA;
use super::wire::*;
use super::{Fs, Validity, directory};
use crate::queue::Buffers;
use crate::service::{Malformed, Request, header};

const IN_HEADER: usize = size_of::<InHeader>();
const OUT_HEADER: usize = size_of::<OutHeader>();
/// The most bytes of arguments: an extended attribute with its name is the longest, but for data to be written.
const MOST_ARGUMENTS: usize = 128 << 10;

/// A request taken apart.
pub(super) struct Call<'a> {
    pub(super) fs: &'a Fs,
    request: &'a Request<'a>,
    pub(super) header: InHeader,
    /// What follows the header.
    rest: Buffers,
    /// Where the answer's data goes.
    pub(super) room: Buffers,
}

/// An answer without its header.
pub(super) enum Reply {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes, which are where they belong already.
    InPlace(u64),
}

impl Reply {
    /// Nothing but that it worked.
    const DONE: Self = Self::InPlace(0);

    fn of(structure: &(impl IntoBytes + zerocopy::Immutable)) -> Self {
        Self::Bytes(structure.as_bytes().to_vec())
    }
}

type Outcome = Result<Reply, Errno>;

/// Serves a request.
pub(super) fn serve(fs: &Fs, request: &Request<'_>) -> Result<u32, Malformed> {
    let chain = request.chain;
    let (bytes, rest) = header::<IN_HEADER>(request.memory, chain)?;
    let header = InHeader::read_from_bytes(&bytes).map_err(|_| Malformed)?;
    let operation = Operation::of(header.operation);
    if operation.is_some_and(Operation::is_one_way) {
        let call = Call { fs, request, header, rest, room: Buffers::default() };
        // Nobody waits for an answer, and there is no place for one.
        let _ = call.perform(operation);
        return Ok(0);
    }
    let (answer, room) = chain.writable.split_at(OUT_HEADER as u64).ok_or(Malformed)?;
    let call = Call { fs, request, header, rest, room };
    let outcome = call.perform(operation).and_then(|reply| call.deliver(&reply));
    let (error, len) = match outcome {
        Ok(len) => (0, len),
        Err(errno) => (-errno.raw_os_error(), 0),
    };
    let len = low32(len).saturating_add(low32(OUT_HEADER as u64));
    let out = OutHeader { len, error, unique: header.unique };
    answer.write(request.memory, out.as_bytes()).map_err(|_| Malformed)?;
    Ok(len)
}

/// What is where there is no memory cannot be moved.
fn no_memory(_: MemoryError) -> Errno {
    Errno::FAULT
}

impl Call<'_> {
    /// Puts an answer's data where it belongs; returns its length.
    fn deliver(&self, reply: &Reply) -> Result<u64, Errno> {
        match reply {
            Reply::InPlace(len) => Ok(*len),
            Reply::Bytes(bytes) if bytes.len() as u64 > self.room.bytes() => Err(Errno::IO),
            Reply::Bytes(bytes) => {
                self.room.write(self.request.memory, bytes).map_err(no_memory)?;
                Ok(bytes.len() as u64)
            }
        }
    }

    fn perform(&self, operation: Option<Operation>) -> Outcome {
        let operation = operation.ok_or(Errno::NOSYS)?;
        if !self.fs.session().begun && operation != Operation::Init {
            return Err(Errno::IO);
        }
        // Data to be written stays where it is.
        let most = if operation == Operation::Write { size_of::<WriteIn>() } else { MOST_ARGUMENTS };
        let mut bytes = vec![0; index(self.rest.bytes()).min(most)];
        self.rest.read(self.request.memory, &mut bytes).map_err(no_memory)?;
        self.perform_with(operation, Arguments(&bytes))
    }

    fn perform_with(&self, operation: Operation, arguments: Arguments<'_>) -> Outcome {
        match operation {
            Operation::Init => self.init(arguments),
            Operation::Destroy => {
                self.fs.share.clear();
                Ok(Reply::DONE)
            }
            // Every operation comes to its end by itself.
            Operation::Interrupt => Ok(Reply::DONE),
            Operation::Forget | Operation::BatchForget => self.forget(operation, arguments),
            Operation::Lookup => self.lookup(arguments),
            Operation::GetAttr | Operation::SetAttr | Operation::StatFs | Operation::Access => {
                self.attributes(operation, arguments)
            }
            Operation::ReadLink => Ok(Reply::Bytes(self.fs.share.read_link(self.header.node)?)),
            Operation::SymLink | Operation::MkNod | Operation::MkDir | Operation::Link => {
                self.make(operation, arguments)
            }
            Operation::Unlink | Operation::RmDir => {
                let is_directory = operation == Operation::RmDir;
                self.fs.share.remove(self.header.node, &name(&mut { arguments })?, is_directory)?;
                Ok(Reply::DONE)
            }
            Operation::Rename | Operation::Rename2 => self.rename(operation, arguments),
            Operation::Open | Operation::OpenDir => self.open(operation, arguments),
            Operation::Create => self.create(arguments),
            Operation::Release | Operation::ReleaseDir => {
                let ReleaseIn { handle, .. } = take(&mut { arguments })?;
                self.fs.share.close(handle);
                Ok(Reply::DONE)
            }
            Operation::Read => self.read(arguments),
            Operation::Write => self.write(arguments),
            Operation::ReadDir | Operation::ReadDirPlus => {
                let asked = take(&mut { arguments })?;
                Ok(Reply::Bytes(directory::list(self, &asked, operation == Operation::ReadDirPlus)?))
            }
            Operation::FSync
            | Operation::FSyncDir
            | Operation::FAllocate
            | Operation::LSeek
            | Operation::CopyFileRange => self.file(operation, arguments),
            Operation::SetXAttr | Operation::GetXAttr | Operation::ListXAttr | Operation::RemoveXAttr => {
                self.extended_attribute(operation, arguments)
            }
        }
    }

    fn owner(&self) -> Owner {
        Owner { uid: self.header.uid, gid: self.header.gid }
    }

    fn init(&self, mut arguments: Arguments<'_>) -> Outcome {
        let asked = take(&mut arguments)?;
        // Whoever begins knows nothing.
        self.fs.share.clear();
        Ok(Reply::of(&self.fs.session().begin(&asked)?))
    }

    fn forget(&self, operation: Operation, mut arguments: Arguments<'_>) -> Outcome {
        if operation == Operation::Forget {
            self.fs.share.forget(self.header.node, take(&mut arguments)?);
            return Ok(Reply::DONE);
        }
        let BatchForgetIn { count, .. } = take(&mut arguments)?;
        for _ in 0..count {
            // Fewer than announced are all there are.
            let Some(ForgetOne { node, count }) = arguments.take() else { break };
            self.fs.share.forget(node, count);
        }
        Ok(Reply::DONE)
    }

    fn lookup(&self, mut arguments: Arguments<'_>) -> Outcome {
        let absence = self.fs.validity.of_absence();
        match self.fs.share.lookup(self.header.node, &name(&mut arguments)?) {
            Ok(found) => Ok(Reply::of(&self.entry(&found))),
            // Node 0 is none, and this may be kept, too.
            Err(Errno::NOENT) if !absence.is_zero() => {
                Ok(Reply::of(&EntryOut { entry_valid: absence.as_secs(), ..EntryOut::default() }))
            }
            Err(error) => Err(error),
        }
    }

    /// A found node as the driver is told of it.
    pub(super) fn entry(&self, found: &Found) -> EntryOut {
        let valid = self.fs.validity.of_entries();
        EntryOut {
            node: found.node,
            // Nodes' numbers are never used twice.
            generation: 0,
            entry_valid: valid.as_secs(),
            attr_valid: valid.as_secs(),
            entry_valid_ns: 0,
            attr_valid_ns: 0,
            attr: attr(&found.attributes),
        }
    }

    fn attributes(&self, operation: Operation, mut arguments: Arguments<'_>) -> Outcome {
        let (share, node) = (&self.fs.share, self.header.node);
        let found = match operation {
            Operation::Access => {
                let AccessIn { mask, .. } = take(&mut arguments)?;
                share.check_access(node, mask)?;
                return Ok(Reply::DONE);
            }
            Operation::StatFs => return Ok(Reply::of(&self.capacity()?)),
            Operation::SetAttr => {
                let asked: SetAttrIn = take(&mut arguments)?;
                let handle = (asked.valid & set::HANDLE != 0).then_some(asked.handle);
                share.set_attributes(node, handle, &to_set(&asked))?
            }
            _ => {
                let GetAttrIn { flags, handle, .. } = take(&mut arguments)?;
                share.attributes(node, (flags & GETATTR_HANDLE != 0).then_some(handle))?
            }
        };
        let valid = self.fs.validity.of_entries().as_secs();
        Ok(Reply::of(&AttrOut { valid, valid_ns: 0, padding: 0, attr: attr(&found) }))
    }

    fn capacity(&self) -> Result<StatFsOut, Errno> {
        let found = self.fs.share.capacity(self.header.node)?;
        Ok(StatFsOut {
            blocks: found.blocks,
            free: found.free,
            available: found.available,
            files: found.files,
            free_files: found.free_files,
            block_size: low32(found.block),
            name_max: low32(found.name_max),
            fragment_size: low32(found.fragment),
            ..StatFsOut::default()
        })
    }

    /// What makes a name and answers with what it leads to.
    fn make(&self, operation: Operation, mut arguments: Arguments<'_>) -> Outcome {
        let (share, parent, owner) = (&self.fs.share, self.header.node, self.owner());
        let found = match operation {
            Operation::MkNod => {
                let MkNodIn { mode, umask, .. } = take(&mut arguments)?;
                share.make_node(parent, &name(&mut arguments)?, mode & !(umask & 0o777), owner)?
            }
            Operation::MkDir => {
                let MkDirIn { mode, umask } = take(&mut arguments)?;
                share.make_directory(parent, &name(&mut arguments)?, mode & !umask, owner)?
            }
            Operation::Link => {
                let LinkIn { node } = take(&mut arguments)?;
                share.link(node, parent, &name(&mut arguments)?)?
            }
            _ => {
                let name = name(&mut arguments)?;
                let text = arguments.text().ok_or(Errno::INVAL)?;
                share.make_link(parent, &name, text, owner)?
            }
        };
        Ok(Reply::of(&self.entry(&found)))
    }

    fn rename(&self, operation: Operation, mut arguments: Arguments<'_>) -> Outcome {
        let (directory, flags) = if operation == Operation::Rename {
            let RenameIn { directory } = take(&mut arguments)?;
            (directory, 0)
        } else {
            let Rename2In { directory, flags, .. } = take(&mut arguments)?;
            (directory, flags)
        };
        let (old, new) = (name(&mut arguments)?, name(&mut arguments)?);
        self.fs.share.rename((self.header.node, &old), (directory, &new), Rename(flags))?;
        Ok(Reply::DONE)
    }

    fn open(&self, operation: Operation, mut arguments: Arguments<'_>) -> Outcome {
        let OpenIn { flags, .. } = take(&mut arguments)?;
        let handle = if operation == Operation::OpenDir {
            self.fs.share.open_directory(self.header.node)?
        } else {
            self.fs.share.open_file(self.header.node, OpenFlags(flags))?
        };
        Ok(Reply::of(&self.opened(handle)))
    }

    fn opened(&self, handle: u64) -> OpenOut {
        OpenOut { handle, flags: self.fs.validity.of_contents(), padding: 0 }
    }

    fn create(&self, mut arguments: Arguments<'_>) -> Outcome {
        let CreateIn { flags, mode, umask, .. } = take(&mut arguments)?;
        let (name, mode) = (name(&mut arguments)?, mode & !umask);
        let (found, handle) =
            self.fs.share.create(self.header.node, &name, mode, OpenFlags(flags), self.owner())?;
        Ok(Reply::of(&CreateOut { entry: self.entry(&found), open: self.opened(handle) }))
    }

    fn read(&self, mut arguments: Arguments<'_>) -> Outcome {
        let ReadIn { handle, offset, size, .. } = take(&mut arguments)?;
        let wanted = u64::from(size.min(MOST_DATA)).min(self.room.bytes());
        let (room, _) = self.room.split_at(wanted).ok_or(Errno::INVAL)?;
        let read = self.request.memory.receive(room.ranges(), |to| self.fs.share.read(handle, offset, to));
        Ok(Reply::InPlace(read.map_err(no_memory)??))
    }

    fn write(&self, mut arguments: Arguments<'_>) -> Outcome {
        let WriteIn { handle, offset, size, .. } = take(&mut arguments)?;
        if size > MOST_DATA {
            return Err(Errno::INVAL);
        }
        let (_, data) = self.rest.split_at(size_of::<WriteIn>() as u64).ok_or(Errno::INVAL)?;
        let (data, _) = data.split_at(size.into()).ok_or(Errno::INVAL)?;
        let written =
            self.request.memory.provide(data.ranges(), |from| self.fs.share.write(handle, offset, from));
        written.map_err(no_memory)??;
        Ok(Reply::of(&WriteOut { size, padding: 0 }))
    }

    /// What is done with an open file, apart from reading and writing it.
    fn file(&self, operation: Operation, mut arguments: Arguments<'_>) -> Outcome {
        let share = &self.fs.share;
        match operation {
            Operation::FAllocate => {
                let FAllocateIn { handle, offset, len, mode, .. } = take(&mut arguments)?;
                share.allocate(handle, mode, offset, len)?;
            }
            Operation::LSeek => {
                let LSeekIn { handle, offset, whence, .. } = take(&mut arguments)?;
                return Ok(Reply::of(&LSeekOut { offset: share.seek(handle, offset, whence)? }));
            }
            Operation::CopyFileRange => {
                let asked: CopyIn = take(&mut arguments)?;
                let (from, to) = ((asked.handle, asked.offset), (asked.to_handle, asked.to_offset));
                let size = low32(share.copy(from, to, asked.len)?);
                return Ok(Reply::of(&WriteOut { size, padding: 0 }));
            }
            _ => {
                let FSyncIn { handle, flags, .. } = take(&mut arguments)?;
                share.sync(handle, flags & 1 != 0)?;
            }
        }
        Ok(Reply::DONE)
    }

    fn extended_attribute(&self, operation: Operation, mut arguments: Arguments<'_>) -> Outcome {
        if self.fs.validity == Validity::Settled {
            return Err(Errno::NOSYS);
        }
        let (share, node) = (&self.fs.share, self.header.node);
        let (size, found) = match operation {
            Operation::SetXAttr => {
                let SetXAttrIn { size, flags } = take(&mut arguments)?;
                let name = c_text(&mut arguments)?;
                let value = arguments.bytes(index(size.into())).ok_or(Errno::INVAL)?;
                share.set_extended_attribute(node, &name, value, flags)?;
                return Ok(Reply::DONE);
            }
            Operation::RemoveXAttr => {
                share.remove_extended_attribute(node, &c_text(&mut arguments)?)?;
                return Ok(Reply::DONE);
            }
            Operation::GetXAttr => {
                let GetXAttrIn { size, .. } = take(&mut arguments)?;
                (size, share.extended_attribute(node, &c_text(&mut arguments)?)?)
            }
            _ => {
                let GetXAttrIn { size, .. } = take(&mut arguments)?;
                (size, share.extended_attributes(node)?)
            }
        };
        match size {
            0 => Ok(Reply::of(&GetXAttrOut { size: low32(found.len() as u64), padding: 0 })),
            size if found.len() as u64 > u64::from(size) => Err(Errno::RANGE),
            _ => Ok(Reply::Bytes(found)),
        }
    }
}

fn take<T: FromBytes>(arguments: &mut Arguments<'_>) -> Result<T, Errno> {
    arguments.take().ok_or(Errno::INVAL)
}

fn name(arguments: &mut Arguments<'_>) -> Result<Name, Errno> {
    Name::new(arguments.text().ok_or(Errno::INVAL)?)
}

fn c_text(arguments: &mut Arguments<'_>) -> Result<std::ffi::CString, Errno> {
    std::ffi::CString::new(arguments.text().ok_or(Errno::INVAL)?).map_err(|_| Errno::INVAL)
}

/// Attributes as the driver is told of them.
fn attr(found: &Attributes) -> Attr {
    let (major, minor) = found.device;
    Attr {
        inode: found.inode,
        size: found.size,
        blocks: found.blocks,
        atime: found.accessed.0.cast_unsigned(),
        mtime: found.modified.0.cast_unsigned(),
        ctime: found.changed.0.cast_unsigned(),
        atime_ns: found.accessed.1,
        mtime_ns: found.modified.1,
        ctime_ns: found.changed.1,
        mode: found.mode,
        links: found.links,
        uid: found.uid,
        gid: found.gid,
        // Linux `include/linux/kdev_t.h`, new_encode_dev().
        device: minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12,
        block_size: found.block_size,
        flags: 0,
    }
}

/// What is to be set.
fn to_set(asked: &SetAttrIn) -> SetAttributes {
    let has = |flag: u32| asked.valid & flag != 0;
    let time = |flag, now, seconds: u64, ns| match (has(flag), has(now)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(seconds.cast_signed(), ns)),
    };
    SetAttributes {
        mode: has(set::MODE).then_some(asked.mode),
        uid: has(set::UID).then_some(asked.uid),
        gid: has(set::GID).then_some(asked.gid),
        size: has(set::SIZE).then_some(asked.size),
        accessed: time(set::ATIME, set::ATIME_NOW, asked.atime, asked.atime_ns),
        modified: time(set::MTIME, set::MTIME_NOW, asked.mtime, asked.mtime_ns),
    }
}
