//! CPUID: features, named models, what the guest sees. (being written)

/// What CPUID answers.
pub struct CpuidTable {}
