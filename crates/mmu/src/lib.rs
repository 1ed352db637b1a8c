//! From guest-virtual addresses to guest-physical ones, and quickly.
//!
//! [`PagingContext`] is what a vCPU's control registers say about translation; [`walk`] is the definition of
//! translation, page tables read from guest memory; [`Tlb`] caches its results as machine frames, so that most
//! accesses of an engine are one comparison away from the bytes.
//!
//! Canonicality is the engine's business: it is checked before translation and raises other exceptions.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod context;
mod pdpte;
mod region;
mod tlb;
mod walk;

pub use context::{Access, PagingContext, PagingFeatures, Privilege};
pub use pdpte::{InvalidPdpte, load_pdptes};
pub use region::RegionFilter;
pub use tlb::{Invalidation, Invpcid, MmuStats, Resolved, Target, Tlb};
pub use walk::{PageFault, PageSize, Translation, probe, walk};
