//! Any bytes, and their end, through a terminal line in canonical mode.
//!
//! # Problem
//! A command in a pipe must receive exactly the bytes that umbra reads, and the end of them. A serial port has no end. A
//! terminal line has one in canonical mode only: there the EOF character makes a read return what has been typed so
//! far, and a read of nothing is the end of the file (termios(3)).
//!
//! # Scheme
//! The guest turns off every special character but two: EOF (`^D`) and LNEXT (`^V`), which makes the next character
//! ordinary. Here both are quoted with LNEXT wherever they are data. A line that does not end with its chunk is
//! pushed to the reader by an EOF after it, so that nothing waits for a newline that may never come, and so is a line
//! that comes near the longest that the line discipline keeps (4,095 bytes). The end of the input is an EOF with no
//! line before it.
//!
//! # Invariant
//! `line` is what the line discipline holds back from the reader. An EOF is sent only while it is not zero, except for
//! the one that means the end; so no reader ever sees an end that is not there.

/// The character that ends a line without being in it.
const EOF: u8 = 0x04;
/// The character that makes the next one ordinary.
const LNEXT: u8 = 0x16;
/// Pushed when it gets so long.
const LONGEST_LINE: usize = 2048;

/// Turns a stream of bytes into what has to be typed.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    line: usize,
}

impl Encoder {
    /// Appends to `typed` what makes the reader read `data` at once.
    pub(super) fn encode(&mut self, data: &[u8], typed: &mut Vec<u8>) {
        for &byte in data {
            if byte == EOF || byte == LNEXT {
                typed.push(LNEXT);
            }
            typed.push(byte);
            if byte == b'\n' {
                self.line = 0;
                continue;
            }
            self.line += 1;
            if self.line == LONGEST_LINE {
                self.push(typed);
            }
        }
        self.push(typed);
    }

    /// Appends what makes the reader see the end of the file.
    pub(super) fn end(&mut self, typed: &mut Vec<u8>) {
        self.push(typed);
        typed.push(EOF);
    }

    fn push(&mut self, typed: &mut Vec<u8>) {
        if self.line > 0 {
            typed.push(EOF);
            self.line = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The line discipline, as far as it matters: reads until the end, and what was never pushed.
    fn read_back(typed: &[u8]) -> (Vec<u8>, bool, usize) {
        let (mut read, mut line) = (Vec::new(), Vec::new());
        let mut bytes = typed.iter();
        while let Some(&byte) = bytes.next() {
            match byte {
                LNEXT => line.extend(bytes.next()),
                EOF if line.is_empty() => return (read, true, bytes.len()),
                EOF => read.append(&mut line),
                b'\n' => {
                    line.push(byte);
                    read.append(&mut line);
                }
                other => line.push(other),
            }
            assert!(line.len() < 4095, "the line discipline would drop bytes");
        }
        (read, false, line.len())
    }

    proptest! {
        #[test]
        fn everything_arrives_and_then_the_end(chunks in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![Just(EOF), Just(LNEXT), Just(b'\n'), any::<u8>()], 0..5000), 0..5))
        {
            let (mut encoder, mut typed, mut sent) = (Encoder::default(), Vec::new(), Vec::new());
            for chunk in &chunks {
                encoder.encode(chunk, &mut typed);
                sent.extend(chunk);
                let (read, ended, held_back) = read_back(&typed);
                prop_assert_eq!((&read, ended, held_back), (&sent, false, 0));
            }
            encoder.end(&mut typed);
            let (read, ended, rest) = read_back(&typed);
            prop_assert_eq!((read, ended, rest), (sent, true, 0));
        }
    }
}
