//! Handles: the files and directories that a guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    node: u64,
    /// How it was opened: `O_RDONLY` and so on.
    flags: OFlags,
    descriptor: OwnedFd,
    /// Reading a directory moves its position.
    pub(super) position: Mutex<()>,
}

impl Handle {
    pub(super) fn new(node: u64, flags: OFlags, descriptor: OwnedFd) -> Self {
        Self { node, flags, descriptor, position: Mutex::default() }
    }

    /// The node that it was opened from.
    pub(super) fn node(&self) -> u64 {
        self.node
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }
}

/// A handle as it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedHandle {
    pub(super) id: u64,
    pub(super) node: u64,
    pub(super) flags: u32,
}

/// All handles.
#[derive(Debug)]
pub(super) struct Handles {
    table: Mutex<Table>,
    most: usize,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u64, Arc<Handle>>,
    /// The last number given out.
    last: u64,
}

impl Handles {
    pub(super) fn new(most: usize) -> Self {
        Self { table: Mutex::default(), most }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an open file a number.
    ///
    /// # Errors
    /// `ENFILE` if there are too many.
    pub(super) fn add(&self, handle: Handle) -> Result<u64, Errno> {
        let mut table = self.lock();
        if table.by_id.len() >= self.most {
            return Err(Errno::NFILE);
        }
        table.last = table.last.saturating_add(1);
        let id = table.last;
        table.by_id.insert(id, Arc::new(handle));
        Ok(id)
    }

    /// The open file of a number.
    ///
    /// # Errors
    /// `EBADF` if it is none's.
    pub(super) fn file(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        self.lock().by_id.get(&id).cloned().ok_or(Errno::BADF)
    }

    /// Closes a file, after what others are doing with it.
    pub(super) fn remove(&self, id: u64) {
        let removed = self.lock().by_id.remove(&id);
        drop(removed);
    }

    pub(super) fn clear(&self) {
        let removed = std::mem::take(&mut self.lock().by_id);
        drop(removed);
    }

    /// What there is to save, by ascending number, and the last number.
    pub(super) fn save(&self) -> (Vec<SavedHandle>, u64) {
        let table = self.lock();
        let saved = |(id, handle): (&u64, &Arc<Handle>)| SavedHandle {
            id: *id,
            node: handle.node,
            flags: handle.flags.bits(),
        };
        let mut handles: Vec<_> = table.by_id.iter().map(saved).collect();
        handles.sort_by_key(|handle| handle.id);
        (handles, table.last)
    }

    /// Makes the handles these.
    ///
    /// # Errors
    /// A reason, if these cannot have been saved.
    pub(super) fn restore(&self, handles: Vec<(u64, Handle)>, last: u64) -> Result<(), &'static str> {
        if handles.len() > self.most || handles.iter().any(|(id, _)| *id > last) {
            return Err("it has open files that cannot be");
        }
        let by_id = handles.into_iter().map(|(id, handle)| (id, Arc::new(handle))).collect();
        *self.lock() = Table { by_id, last };
        Ok(())
    }
}
