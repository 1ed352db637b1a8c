//! Engines and techniques of memory virtualization by their choice, and what is chosen where nobody does.

use std::sync::Arc;

use engine::{Engine, EngineError};
use engine_bt::{Bt, Direct, Lockstep, Options};
use mmu::{PageSize, Technique};
use spec::{EngineChoice, MmuChoice, TranslatorSpec, VmSpec};

/// What `--engine auto` comes to on this host.
#[derive(Debug)]
pub enum Automatic {
    /// Binary translation.
    Bt,
    /// The interpreter, because the other one cannot run; this is why.
    Interp(EngineError),
}

/// What `--engine auto` comes to on this host: the fastest engine that works.
pub fn automatic() -> Automatic {
    Bt::check_host().map_or_else(Automatic::Interp, |()| Automatic::Bt)
}

/// The engine of a description. Files that it will write are made here.
///
/// # Errors
/// If they cannot be made.
pub(crate) fn of(spec: &VmSpec) -> Result<Arc<dyn Engine>, EngineError> {
    Ok(match spec.engine {
        EngineChoice::Bt => bt(&spec.translator)?,
        EngineChoice::Interp => Arc::new(interp::Interp),
        EngineChoice::Lockstep => Arc::new(Lockstep::from_environment()),
        EngineChoice::Auto => match automatic() {
            Automatic::Bt => bt(&spec.translator)?,
            Automatic::Interp(_) => Arc::new(interp::Interp),
        },
    })
}

fn bt(spec: &TranslatorSpec) -> Result<Arc<dyn Engine>, EngineError> {
    if spec.perf_map {
        let refused = |error: host::HostError| EngineError::Unavailable {
            engine: engine_bt::NAME,
            reason: error.to_string(),
        };
        host::perf::map().map_err(refused)?;
    }
    let direct = Direct::from_environment()
        .map_err(|reason| EngineError::Unavailable { engine: engine_bt::NAME, reason })?;
    Ok(Arc::new(Bt::new(Options { direct, ..options(spec) })))
}

/// The technique of memory virtualization of a description.
pub(crate) const fn technique(choice: MmuChoice) -> Technique {
    match choice {
        MmuChoice::Walk => Technique::Walk,
        MmuChoice::Vtlb => Technique::Vtlb,
        MmuChoice::Lazy => Technique::Lazy,
        MmuChoice::Eager => Technique::Eager,
        MmuChoice::Nested => Technique::Nested(PageSize::Gib1),
        MmuChoice::Nested2M => Technique::Nested(PageSize::Mib2),
        MmuChoice::Nested4K => Technique::Nested(PageSize::Kib4),
    }
}

fn options(spec: &TranslatorSpec) -> Options {
    Options { code_cache: spec.code_cache.bytes(), perf_map: spec.perf_map, ..Options::default() }
}
