//! Engines by the names that `--engine` knows. The translating ones translate everything the first time it is met: most
//! cases run once, and would else be interpreted.

use engine::Engine;
use engine_bt::Bt;
use interp::Interp;

/// All of them. The translating ones translate what they meet the first time: a case is often run once. The blocks of one
/// of them all check themselves, as else only those of pages that are written often; one executes all user code directly.
fn all() -> [Box<dyn Engine>; 4] {
    [Box::new(Interp), Box::new(Bt::default()), Box::new(Bt::checking()), Box::new(Bt::direct())]
}

/// The names, for those who offer a choice.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().into_iter().map(|engine| engine.name())
}

/// The engine of this name.
///
/// # Errors
/// A sentence that lists those there are.
pub fn by_name(name: &str) -> Result<Box<dyn Engine>, String> {
    let found = all().into_iter().find(|engine| engine.name() == name);
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
            assert_eq!(by_name(name).map(|engine| engine.name()), Ok(name));
        }
        let said = by_name("abacus").map(|engine| engine.name()).unwrap_err();
        assert!(said.starts_with("there is no engine 'abacus'; choose one of: interp"), "{said}");
    }
}
