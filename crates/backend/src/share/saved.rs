//! A share's saved form: names, not contents.
//!
//! Nodes are found again by their places when they are first used, and are refused if other files are there then.
//! Files that were open are opened again at once; those that cannot be are closed, which a guest hears when it uses them.

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::Share;
use super::handle::{Handle, SavedHandle};
use super::node::SavedNodes;

/// What a guest knows of a share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedShare {
    pub(super) nodes: SavedNodes,
    handles: Vec<SavedHandle>,
    last_handle: u64,
}

impl Share {
    /// What a guest knows of it, while no operation is in progress.
    pub fn save(&self) -> SavedShare {
        let nodes = self.nodes.save();
        let (handles, last_handle) = self.handles.save();
        SavedShare { nodes, handles, last_handle }
    }

    /// Makes the guest know what it knew of a share of the same directory.
    ///
    /// # Errors
    /// A reason, if this cannot have been saved.
    pub fn restore(&self, saved: &SavedShare) -> Result<(), &'static str> {
        self.handles.clear();
        self.nodes.restore(&saved.nodes)?;
        let open = |saved: &SavedHandle| {
            let node = self.nodes.get(saved.node).ok()?;
            let flags = OFlags::from_bits_retain(saved.flags) & super::file::KEPT
                | super::directory::kept(node.kind());
            self.check_open(&node, flags).ok()?;
            let descriptor = self.reopen(&node, flags).ok()?;
            Some((saved.id, Handle::new(saved.node, flags, descriptor)))
        };
        self.handles.restore(saved.handles.iter().filter_map(open).collect(), saved.last_handle)
    }
}
