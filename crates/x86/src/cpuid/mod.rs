//! CPUID: which features exist, which of them a virtual processor has, and what the instruction answers.
//!
//! Three steps, each a pure function of the one before:
//!
//! 1. [`CpuRequest`]: what was typed after `--cpu`.
//! 2. [`CpuModel`]: the processor this makes on a given host ([`HostCpuid`]), or one sentence saying why it cannot
//!    be. A named model is the same on every host that can carry it, so that a VM can move.
//! 3. [`CpuidTable`]: the model in a machine with so many processors and such a clock; answers CPUID, and is what
//!    engines ask before they execute an instruction.
//!
//! Every fact about a feature (name, bit, who executes it, which models have it, what it needs) is one line of the
//! table in `feature.rs`.

mod feature;
mod model;
mod request;
mod table;

pub use feature::{Executor, Feature, FeatureSet, Position, Register};
pub use model::{CpuModel, CpuModelError, HostCpuid, Signature};
pub use request::{BaseModel, CpuRequest, CpuRequestError, Vendor};
pub use table::{CpuidTable, Dynamic};
