//! Nodes: the files that a guest knows by number.
//!
//! A node has an identity (file system, file number, type, time of birth), a count of look-ups that the guest has to take back,
//! the place where it was last found, and, mostly, a descriptor. Numbers are never used twice, so a number that was
//! forgotten means nothing for ever.
//!
//! Descriptors are a bounded good. When too many are open, those of nodes that have not been used since the last round are
//! closed (the *second chance* algorithm); a node without one is looked up again where it was found last, and is
//! refused (`ESTALE`) if another file is there now. A node that has a descriptor cannot be mistaken: the descriptor keeps
//! the file, and so its number, from being used again.
//!
//! # Lock order
//! The table, then one node's place or descriptor. System calls are made under none but a node's own descriptor lock.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attributes::{device, kind, status};
use super::mounts::belongs_to_kernel;
use super::{Attributes, Name, ROOT};

/// The most nodes of a share.
pub(super) const MOST: usize = 1 << 19;
/// How far a node may be from a directory that has a descriptor.
const DEEPEST: usize = 1024;
/// The bits of a file number that say which file system it is of.
const DEVICE_SHIFT: u32 = 48;

/// What tells files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Identity {
    device: (u32, u32),
    inode: u64,
    /// `S_IFMT` of its mode. Where births are not known, at least no directory is taken for a file.
    kind: u32,
    /// Zero where the file system does not know: file numbers are used again, births are not.
    born: (i64, u32),
}

impl Identity {
    fn of(status: &Statx) -> Self {
        let known = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::BTIME);
        let born = if known { (status.stx_btime.tv_sec, status.stx_btime.tv_nsec) } else { (0, 0) };
        Self { device: device(status), inode: status.stx_ino, kind: kind(status).as_raw_mode(), born }
    }
}

/// Where a node was found last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    parent: u64,
    name: Name,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    // Static.
    id: u64,
    identity: Identity,
    /// What is there belongs to the host's kernel and is not shown.
    covered: bool,
    // Volatile.
    /// The root has none.
    place: Mutex<Option<Place>>,
    descriptor: Mutex<Option<Arc<OwnedFd>>>,
    used: AtomicBool,
}

impl Node {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.identity.kind)
    }

    pub(super) fn is_covered(&self) -> bool {
        self.covered
    }

    pub(super) fn device(&self) -> (u32, u32) {
        self.identity.device
    }
}

/// A node as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedNode {
    id: u64,
    identity: Identity,
    covered: bool,
    place: Place,
    lookups: u64,
}

/// All nodes as they are saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedNodes {
    /// By ascending number.
    nodes: Vec<SavedNode>,
    devices: Vec<(u32, u32)>,
    next: u64,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    root: Arc<Node>,
    table: Mutex<Table>,
    /// Descriptors that nodes hold.
    open: AtomicUsize,
    /// How many they may hold.
    most_open: usize,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u64, Known>,
    by_identity: HashMap<Identity, u64>,
    /// Nodes that hold descriptors, in the order in which they are asked for them; some may be gone.
    round: VecDeque<u64>,
    /// File systems in the order in which they were met.
    devices: Vec<(u32, u32)>,
    next: u64,
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    lookups: u64,
}

/// The entry of a directory, not followed if it is a link. It is looked at, not opened.
pub(super) fn open_child(directory: impl AsFd, name: &Name) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name.as_c_str(), flags, Mode::empty())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    /// Only the root.
    pub(super) fn new(root: OwnedFd, status: &Statx, most_open: usize) -> Self {
        let node = Node {
            id: ROOT,
            identity: Identity::of(status),
            covered: false,
            place: Mutex::default(),
            descriptor: Mutex::new(Some(Arc::new(root))),
            used: AtomicBool::new(true),
        };
        let table = Table { devices: vec![device(status)], next: ROOT + 1, ..Table::default() };
        Self { root: Arc::new(node), table: Mutex::new(table), open: AtomicUsize::new(0), most_open }
    }

    /// The root's descriptor, once more.
    pub(super) fn root(&self) -> std::io::Result<OwnedFd> {
        self.descriptor(&self.root)?.try_clone()
    }

    /// Forgets all but the root.
    pub(super) fn clear(&self) {
        let mut table = lock(&self.table);
        table.by_id.clear();
        table.by_identity.clear();
        table.round.clear();
        self.open.store(0, Ordering::Relaxed);
    }

    /// The node of a number.
    pub(super) fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        let table = lock(&self.table);
        let known = table.by_id.get(&id).ok_or(Errno::STALE)?;
        known.node.used.store(true, Ordering::Relaxed);
        Ok(known.node.clone())
    }

    /// The node's attributes, with a file number that is one of the whole share.
    pub(super) fn shown(&self, status: &Statx) -> Attributes {
        Attributes::new(status, self.number(device(status), status.stx_ino))
    }

    /// A file number that differs from those of other file systems in the share.
    pub(super) fn number(&self, device: (u32, u32), inode: u64) -> u64 {
        let mut table = lock(&self.table);
        let index = table.devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            table.devices.push(device);
            table.devices.len() - 1
        });
        inode ^ (index as u64) << DEVICE_SHIFT
    }

    /// The node for what `path` is, found as `name` in `parent`; counts one look-up.
    ///
    /// # Errors
    /// `ENFILE` if there are too many.
    pub(super) fn enter(
        &self,
        parent: &Node,
        name: &Name,
        path: OwnedFd,
        status: &Statx,
        covered: bool,
    ) -> Result<u64, Errno> {
        let identity = Identity::of(status);
        let place = Place { parent: parent.id, name: name.clone() };
        let mut table = lock(&self.table);
        let Table { by_id, by_identity, .. } = &mut *table;
        if self.root.identity == identity {
            return Ok(ROOT);
        }
        if let Some(known) = by_identity.get(&identity).and_then(|id| by_id.get_mut(id)) {
            known.lookups = known.lookups.saturating_add(1);
            known.node.used.store(true, Ordering::Relaxed);
            *lock(&known.node.place) = Some(place);
            return Ok(known.node.id);
        }
        if by_id.len() >= MOST {
            return Err(Errno::NFILE);
        }
        let id = table.next;
        let node = Node {
            id,
            identity,
            covered,
            place: Mutex::new(Some(place)),
            descriptor: Mutex::new(Some(Arc::new(path))),
            used: AtomicBool::new(true),
        };
        table.add(node, 1);
        drop(table);
        self.opened(id);
        Ok(id)
    }

    /// Takes `count` look-ups back.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let mut table = lock(&self.table);
        let Some(known) = table.by_id.get_mut(&id) else { return };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return;
        }
        let Some(known) = table.by_id.remove(&id) else { return };
        table.by_identity.remove(&known.node.identity);
        drop(table);
        if lock(&known.node.descriptor).take().is_some() {
            self.closed();
        }
    }

    /// A name now leads to what was found elsewhere before, if a guest knows it.
    pub(super) fn moved(&self, status: &Statx, parent: &Node, name: &Name) {
        let table = lock(&self.table);
        let known = table.by_identity.get(&Identity::of(status)).and_then(|id| table.by_id.get(id));
        if let Some(known) = known {
            *lock(&known.node.place) = Some(Place { parent: parent.id, name: name.clone() });
        }
    }

    /// A node's descriptor, opened again if need be.
    ///
    /// # Errors
    /// `ESTALE` if the node is not where it was found last.
    pub(super) fn descriptor(&self, node: &Node) -> Result<Arc<OwnedFd>, Errno> {
        let descriptor = lock(&node.descriptor).clone();
        if let Some(descriptor) = descriptor {
            return Ok(descriptor);
        }
        self.find_again(node)
    }

    /// Looks a node up by its ancestors' names, beginning with the nearest that has a descriptor. The number of a file system
    /// may have become that of one of the kernel's meanwhile.
    fn find_again(&self, node: &Node) -> Result<Arc<OwnedFd>, Errno> {
        let mut way = Vec::new();
        let mut place = lock(&node.place).clone().ok_or(Errno::STALE)?;
        let mut descriptor = loop {
            let parent = self.get(place.parent)?;
            way.push(place.name);
            if way.len() > DEEPEST {
                return Err(Errno::STALE);
            }
            let known = lock(&parent.descriptor).clone();
            if let Some(descriptor) = known {
                break descriptor;
            }
            place = lock(&parent.place).clone().ok_or(Errno::STALE)?;
        };
        for name in way.iter().rev() {
            let child = open_child(&*descriptor, name).map_err(|_| Errno::STALE)?;
            descriptor = Arc::new(child);
        }
        if Identity::of(&status(&*descriptor)?) != node.identity
            || !node.covered && belongs_to_kernel(&*descriptor)?
        {
            return Err(Errno::STALE);
        }
        let before = lock(&node.descriptor).replace(descriptor.clone());
        if before.is_none() {
            self.opened(node.id);
        }
        Ok(descriptor)
    }

    /// One more node holds a descriptor: another gives its own up, if there are too many.
    fn opened(&self, id: u64) {
        let mut table = lock(&self.table);
        table.enqueue(id);
        if self.open.fetch_add(1, Ordering::Relaxed) < self.most_open {
            return;
        }
        // Twice round, at most: the first time, all may have been used.
        for _ in 0..table.round.len().saturating_mul(2) {
            let Some(id) = table.round.pop_front() else { return };
            let Some(known) = table.by_id.get(&id) else { continue };
            let node = known.node.clone();
            if node.used.swap(false, Ordering::Relaxed) {
                table.round.push_back(id);
            } else if lock(&node.descriptor).take().is_some() {
                self.closed();
                return;
            }
        }
    }

    fn closed(&self) {
        // A clear at the same time has counted it already.
        let less = |open: usize| open.checked_sub(1);
        let _ = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// What there is to save.
    pub(super) fn save(&self) -> SavedNodes {
        let table = lock(&self.table);
        let saved = |known: &Known| {
            let place = lock(&known.node.place).clone()?;
            Some(SavedNode {
                id: known.node.id,
                identity: known.node.identity,
                covered: known.node.covered,
                place,
                lookups: known.lookups,
            })
        };
        let mut nodes: Vec<_> = table.by_id.values().filter_map(saved).collect();
        nodes.sort_by_key(|node| node.id);
        SavedNodes { nodes, devices: table.devices.clone(), next: table.next }
    }

    /// Makes the nodes those that were saved, none of them found yet.
    ///
    /// # Errors
    /// A reason, if these cannot have been saved.
    pub(super) fn restore(&self, saved: &SavedNodes) -> Result<(), &'static str> {
        if saved.nodes.len() > MOST {
            return Err("it has too many nodes");
        }
        // A damaged record must not make the root's number a file's.
        let (devices, next) = (saved.devices.clone(), saved.next.max(ROOT + 1));
        let mut table = Table { devices, next, ..Table::default() };
        for saved in &saved.nodes {
            if saved.id <= ROOT || saved.id >= next || table.by_id.contains_key(&saved.id) {
                return Err("it has a node that cannot be");
            }
            let node = Node {
                id: saved.id,
                identity: saved.identity,
                covered: saved.covered,
                place: Mutex::new(Some(saved.place.clone())),
                descriptor: Mutex::default(),
                used: AtomicBool::new(false),
            };
            table.add(node, saved.lookups);
        }
        *lock(&self.table) = table;
        self.open.store(0, Ordering::Relaxed);
        Ok(())
    }
}

impl Table {
    fn add(&mut self, node: Node, lookups: u64) {
        let id = node.id;
        self.next = self.next.max(id.saturating_add(1));
        self.by_identity.insert(node.identity, id);
        self.by_id.insert(id, Known { node: Arc::new(node), lookups });
    }

    /// Puts a node that has a descriptor at the end of the round. Forgotten ones are swept out before they are many.
    fn enqueue(&mut self, id: u64) {
        if self.round.len() > 2 * self.by_id.len() + 1024 {
            let by_id = &self.by_id;
            self.round.retain(|id| by_id.contains_key(id));
        }
        self.round.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_never_taken_for_one_of_another_type() {
        let mut found = status(tempfile::tempfile().unwrap()).unwrap();
        let file = Identity::of(&found);
        found.stx_mode ^= 0o111;
        assert_eq!(Identity::of(&found), file, "permissions change");
        found.stx_mode = 0o040_755;
        assert_ne!(Identity::of(&found), file);
    }
}
