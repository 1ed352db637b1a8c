//! Engines by the names that `--engine` knows.

use engine::Engine;
use interp::Interp;

/// All of them.
const ENGINES: [&dyn Engine; 1] = [&Interp];

/// The names, for those who offer a choice.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENGINES.iter().map(|engine| engine.name())
}

/// The engine of this name.
///
/// # Errors
/// A sentence that lists those there are.
pub fn by_name(name: &str) -> Result<&'static dyn Engine, String> {
    let found = ENGINES.iter().find(|engine| engine.name() == name).copied();
    found.ok_or_else(|| {
        format!("there is no engine '{name}'; choose one of: {}", names().collect::<Vec<_>>().join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_its_engine() {
        for name in names() {
            assert_eq!(by_name(name).map(Engine::name), Ok(name));
        }
        let said = by_name("abacus").map(Engine::name).unwrap_err();
        assert!(said.starts_with("there is no engine 'abacus'; choose one of: interp"), "{said}");
    }
}
