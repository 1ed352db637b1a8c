//! From guest-virtual addresses to guest-physical ones, and quickly.
//!
//! [`PagingContext`] is what a vCPU's control registers say about translation; [`walk`] is the definition of
//! translation, page tables read from guest memory; [`Tlb`] caches its results as machine frames, so that most
//! accesses of an engine are one comparison away from the bytes. Between the two stands [`Mmu`], memory virtualization by
//! one of several techniques ([`Technique`]): shadow page tables, a virtual TLB, nested paging, or nothing.
//!
//! Canonicality is the engine's business: it is checked before translation and raises other exceptions.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod compose;
mod context;
mod nested;
mod pdpte;
mod region;
mod shadow;
mod strategy;
mod tables;
mod tlb;
mod vtlb;
mod walk;

pub use context::{Access, PagingContext, PagingFeatures, Privilege};
pub use pdpte::{InvalidPdpte, load_pdptes};
pub use region::RegionFilter;
pub use strategy::{Mmu, MmuFigures, MmuStats, Reached, Strategy, Technique};
pub use tlb::{Invalidation, Invpcid, Resolved, Target, Tlb};
pub use walk::{Miss, PageFault, PageSize, Translation, probe, walk};
