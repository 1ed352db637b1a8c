use crate::listing::{exits, text};
use crate::{Exit, Mode};

#[test]
fn the_host_repeats_its_own() {
    let cases: [(&[u8], &str); 8] = [
        (&[0xf3, 0xa4], "rep movsb"),
        (&[0xf2, 0xa4], "rep movsb"),
        (&[0xf3, 0x66, 0xa5], "rep movsw"),
        (&[0xf3, 0xab], "rep stosd"),
        (&[0xf3, 0x48, 0xab], "rep stosq"),
        (&[0xf2, 0xae], "repne scasb"),
        (&[0xf3, 0x66, 0xaf], "repe scasw"),
        (&[0xf3, 0x48, 0xa7], "repe cmpsq"),
    ];
    for (bytes, name) in cases {
        let text = text(Mode::new(), bytes);
        assert!(text.iter().any(|line| line.starts_with(name)), "{name}: {text:#?}");
    }
}

#[test]
fn what_is_rare_is_left() {
    let cases: [&[u8]; 5] =
        [&[0x67, 0xf3, 0xa4], &[0x64, 0xf3, 0xa4], &[0x65, 0xa5], &[0xf3, 0xad], &[0xf3, 0x6c]];
    for bytes in cases {
        assert_eq!(exits(Mode::new(), bytes), [Exit::Interpret], "{bytes:x?}");
    }
}

#[test]
fn pieces_are_checked_and_give_way() {
    let got = exits(Mode::new(), &[0xf3, 0xa4]);
    let misses: Vec<bool> = got
        .iter()
        .filter_map(|exit| match exit {
            Exit::Miss { write, .. } => Some(*write),
            _ => None,
        })
        .collect();
    assert_eq!(misses, [false, true]);
    assert!(got.contains(&Exit::Attention));
}

#[test]
fn single_elements_have_a_check_per_operand() {
    let misses = |bytes: &[u8]| {
        exits(Mode::new(), bytes).into_iter().filter(|exit| matches!(exit, Exit::Miss { .. })).count()
    };
    assert_eq!(misses(&[0xa4]), 2, "movsb");
    assert_eq!(misses(&[0x48, 0xab]), 1, "stosq");
    assert_eq!(misses(&[0x66, 0xad]), 1, "lodsw");
    assert_eq!(misses(&[0xae]), 1, "scasb");
    assert_eq!(misses(&[0xa7]), 2, "cmpsd");
}
