//! Everything that comes in over a control socket, on either side, and the frames of the console port that a guest's agent speaks.
//!
//! What was understood and is sent again must be understood the same way.

use std::io::Cursor;

use control::{Answer, LARGEST_FRAME, Request};
use init::Settings;
use init::wire::Reader;

pub(super) fn run(data: &[u8]) {
    if let Ok(Ok(request)) = control::read_request(&mut Cursor::new(data)) {
        ask_again(request);
    }
    if let Ok(answer) = control::read_answer(&mut Cursor::new(data)) {
        answer_again(&answer);
    }
    read_frames(data);
    read_wire(data);
}

fn ask_again(request: Request) {
    if let Request::Exec { settings } = &request {
        decode(settings);
    }
    let mut line = Vec::new();
    control::ask(&mut line, request.clone()).expect("a vector takes all");
    assert_eq!(control::read_request(&mut Cursor::new(line)).expect("it has an end"), Ok(request));
}

fn answer_again(answer: &Answer) {
    let mut line = Vec::new();
    control::answer(&mut line, answer.clone()).expect("a vector takes all");
    assert_eq!(&control::read_answer(&mut Cursor::new(line)).expect("it is one"), answer);
}

fn decode(settings: &[u8]) {
    if let Some(settings) = Settings::decode(settings) {
        assert_eq!(Settings::decode(&settings.encode()).as_ref(), Some(&settings));
    }
}

fn read_frames(data: &[u8]) {
    let (mut from, mut bytes) = (Cursor::new(data), 0);
    while let Ok(Some((_, frame))) = control::read_frame(&mut from) {
        assert!(frame.len() <= LARGEST_FRAME);
        bytes += frame.len();
    }
    assert!(bytes <= data.len());
}

/// In pieces, as they come.
fn read_wire(data: &[u8]) {
    let mut reader = Reader::default();
    let piece = data.first().map_or(1, |&first| usize::from(first).max(1));
    for piece in data.chunks(piece) {
        if reader.feed(piece).is_err() {
            return;
        }
    }
}
