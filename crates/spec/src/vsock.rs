//! The socket device.

use std::path::PathBuf;

/// A device through which guest and host connect sockets (vsock).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    /// Where the host's programs call the guest; what the guest calls is beside it, by port.
    pub path: PathBuf,
}

impl VsockSpec {
    /// The guest's number (CID): the first that is nobody's. Each VM has doors of its own, so they need not differ.
    pub const GUEST: u32 = 3;
}
