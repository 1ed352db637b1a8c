//! Capabilities (capabilities(7)): none, but for those with which a root's VM serves shared directories.
//!
//! A guest that shares a directory and is run by root makes files that belong to whom it says, and reads what root reads
//! (`docs/design/0008-file-sharing.md`). That takes capabilities, which the threads that serve shared directories keep, and no
//! others. The bounding set is empty, so nothing that is executed gives any back.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::{Access, Directory, Role};

/// To read what root reads.
const TO_READ: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;
/// To change what root changes, and to give it away.
const TO_CHANGE: CapabilitySet = CapabilitySet::DAC_READ_SEARCH
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID);

/// What serving these directories takes, if the process has it.
pub(super) fn needed(directories: &[Directory]) -> CapabilitySet {
    match directories {
        [] => CapabilitySet::empty(),
        some if some.iter().any(|directory| directory.access == Access::Change) => TO_CHANGE,
        _ => TO_READ,
    }
}

/// Drops all others from every set of the calling thread, and of those that it will make.
pub(super) fn drop_for_good(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => match remove_capability_from_bounding_set(capability) {
                // Who may not change the bounding set has no use for it: no program gives new privileges any more.
                Ok(()) | Err(rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            },
            Ok(false) => {}
            // The kernel has no more.
            Err(_) => break,
        }
    }
    clear_ambient_capability_set()?;
    keep(kept)
}

/// Drops what the role does not need.
pub(super) fn keep_for(role: Role) -> io::Result<()> {
    keep(match role {
        Role::Files => TO_CHANGE,
        Role::FilesToRead => TO_READ,
        _ => CapabilitySet::empty(),
    })
}

fn keep(kept: CapabilitySet) -> io::Result<()> {
    let permitted = capabilities(None)?.permitted & kept;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
