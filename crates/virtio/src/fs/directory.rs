//! Listing a directory: entries one after the other, each padded to 8 bytes, as many as there is room for.

use backend::share::{Entry, Errno};
use x86::bits::{index, low32};
use zerocopy::IntoBytes;

use super::request::Call;
use super::wire::{DirEntry, EntryOut, ReadIn};

/// The most bytes of an answer.
const MOST: u64 = 128 << 10;

/// The entries that were asked for; with `plus`, each with what it leads to, which counts as a look-up.
pub(super) fn list(call: &Call<'_>, asked: &ReadIn, plus: bool) -> Result<Vec<u8>, Errno> {
    let room = index(u64::from(asked.size).min(call.room.bytes()).min(MOST));
    let (share, directory) = (&call.fs.share, call.header.node);
    let mut listed = Vec::new();
    let outcome = share.each_entry(directory, asked.handle, asked.offset, &mut |entry| {
        let name = entry.name.to_bytes();
        let before = if plus { size_of::<EntryOut>() } else { 0 };
        let len = before + (size_of::<DirEntry>() + name.len()).next_multiple_of(8);
        if listed.len() + len > room {
            return false;
        }
        let end = listed.len() + len;
        if plus {
            // Without a node the driver takes the name alone: a directory and its parent, and what has gone meanwhile.
            let found = match name {
                b"." | b".." => EntryOut::default(),
                _ => share
                    .lookup_entry(directory, entry.name)
                    .map_or_else(|_| EntryOut::default(), |found| call.entry(&found)),
            };
            listed.extend_from_slice(found.as_bytes());
        }
        listed.extend_from_slice(head(&entry).as_bytes());
        listed.extend_from_slice(name);
        listed.resize(end, 0);
        true
    });
    match outcome {
        // What is listed has been looked up; the next request begins where this one failed.
        Err(error) if listed.is_empty() => Err(error),
        _ => Ok(listed),
    }
}

fn head(entry: &Entry<'_>) -> DirEntry {
    let name_len = low32(entry.name.to_bytes().len() as u64);
    DirEntry { inode: entry.inode, next: entry.next, name_len, kind: entry.kind.into() }
}
