//! Those who wait for a VM's end. They cost a descriptor each and no thread: the main thread tells all of them when it has come.

use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::status::Status;

/// How many may wait.
const MOST: usize = 256;
/// How long somebody may take to hear of the end. It is a line, for which every socket has room.
const PATIENCE: Duration = Duration::from_millis(100);

/// The end of a VM.
#[derive(Default)]
pub(super) struct Finale(Mutex<State>);

#[derive(Default)]
struct State {
    status: Option<Status>,
    waiting: Vec<UnixStream>,
}

impl Finale {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has come.
    pub(super) fn come(&self, status: Status) {
        let mut state = self.lock();
        state.status = Some(status);
        state.waiting.drain(..).for_each(|stream| tell(stream, status));
    }

    /// Somebody waits for it.
    ///
    /// # Errors
    /// A sentence, if too many do.
    pub(super) fn wait(&self, stream: UnixStream) -> Result<(), String> {
        let mut state = self.lock();
        state.waiting.retain(|stream| !has_left(stream));
        match state.status {
            Some(status) => tell(stream, status),
            None if state.waiting.len() == MOST => {
                return Err(format!("{MOST} others wait for its end already"));
            }
            None => state.waiting.push(stream),
        }
        Ok(())
    }
}

/// Says how it ended.
fn tell(mut stream: UnixStream, status: Status) {
    // Who has left needs not know.
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let _ = control::answer(&mut stream, Ok(json!(status.0)));
}

/// Whether nobody is at the other end any more.
fn has_left(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_told_and_who_left_is_forgotten() {
        let finale = Finale::default();
        let mut near: Vec<UnixStream> = (0..MOST).map(|_| wait(&finale).unwrap()).collect();
        assert!(wait(&finale).unwrap_err().contains("others wait"));
        near.truncate(2);
        near.push(wait(&finale).unwrap());
        assert_eq!(finale.lock().waiting.len(), 3);
        finale.come(Status(4));
        // And who comes too late.
        near.push(wait(&finale).unwrap());
        for mut stream in near {
            assert_eq!(control::read_answer(&mut stream).unwrap(), Ok(json!(4)));
        }
    }

    fn wait(finale: &Finale) -> Result<UnixStream, String> {
        let (near, far) = UnixStream::pair().unwrap();
        finale.wait(far).map(|()| near)
    }
}
