//! What the fuzz binaries share: the targets themselves are in `testkit::fuzzing`, where the tests run them too.

/// Feeds one input to a target.
pub fn run(name: &str, data: &[u8]) {
    let target = testkit::fuzzing::target(name).expect("a target of that name");
    (target.body)(data);
}
