//! Why an operation on guest memory did not happen.

use host::HostError;
use x86::{Gfn, Gpa};

use crate::FrameKind;

/// Why an operation on guest memory did not happen. A guest that names addresses can cause [`MemoryError::Refused`],
/// [`MemoryError::PastEnd`] and [`MemoryError::Crossing`], which are its own affair and never the hypervisor's failure.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The layout asked for cannot be.
    #[error("guest memory of {frames} frames at {base:?} {problem}")]
    Layout {
        /// The first frame of the range at fault.
        base: Gfn,
        /// The length of the range at fault.
        frames: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The frame is of a kind that does not allow the access.
    #[error("{access} at {gpa:?}, a frame that is {kind:?}")]
    Refused {
        /// The first byte that could not be reached.
        gpa: Gpa,
        /// What its frame is.
        kind: FrameKind,
        /// What was tried.
        access: &'static str,
    },
    /// The range reaches past the end of the guest-physical address space.
    #[error("{len} bytes at {gpa:?} do not fit the address space")]
    PastEnd {
        /// Where the range starts.
        gpa: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// A locked operation would cross into another frame.
    #[error("a locked operation at {gpa:?} crosses a page boundary")]
    Crossing {
        /// Where it starts.
        gpa: Gpa,
    },
    /// The guest frame has no machine frame that could change its kind.
    #[error("{gfn:?} is not memory")]
    NotMemory {
        /// The frame.
        gfn: Gfn,
    },
    /// A saved map contradicts itself.
    #[error("the saved memory map is damaged: {problem}")]
    Damaged {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The host refused a resource.
    #[error(transparent)]
    Host(#[from] HostError),
}
