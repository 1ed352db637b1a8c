//! The x86-64 architecture as data.
//!
//! Facts only: no I/O, no memory, no execution. Every engine, device and loader speaks in these types, so that
//! a guest-physical address can never be mistaken for a virtual one and a register has one name everywhere.
//!
//! "SDM" in the documentation is the *Intel 64 and IA-32 Architectures Software Developer's Manual*; "APM" is the
//! *AMD64 Architecture Programmer's Manual*.

pub mod addr;
pub mod bits;
pub mod control;
pub mod cpuid;
pub mod descriptor;
pub mod exception;
pub mod fpu;
pub mod msr;
pub mod paging;
pub mod rflags;
pub mod state;

pub use addr::{Gfn, Gpa, Gva, Mfn, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
pub use descriptor::{DescriptorTable, Segment, SegmentIndex, Selector};
pub use exception::Exception;
pub use fpu::{FpuState, VectorState};
pub use state::{CpuState, Mode};
