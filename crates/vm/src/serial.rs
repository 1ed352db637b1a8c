//! The host ends of the serial ports.
//!
//! A UART must never wait for the world: whoever holds its lock may be a vCPU or the timer thread. So each port has
//! two threads of its own between chip and world.
//!
//! *Output*: the chip appends to a buffer; a writer thread takes all there is and gives it to the [`SerialSink`] in one
//! call, so that a guest that prints a line byte by byte costs few calls, and a slow reader delays nobody until the
//! buffer is full. Then the guest waits, as it would at a serial line: nothing is dropped. A VM that is to pause or
//! stop must not wait for a reader, so the driver lifts the bound first ([`SerialPort::hurry`]).
//!
//! *Input*: [`SerialInput::send`] fills a queue; a pump thread moves it into the chip's FIFO as fast as the guest makes
//! room. The chip says when it refused bytes and has room again, with its lock held, so this only sets a flag. The
//! pump clears that flag *before* it offers bytes, so a flag that rises during the offer is not lost.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use chipset::uart::{CharSink, Uart};
use host::jail::Role;

use crate::VmError;

/// Where the guest's output on one serial port goes. Called on a thread of its own; may block, and the guest waits
/// when that lasts.
pub trait SerialSink: Send {
    /// Takes bytes, one or many.
    fn write(&mut self, bytes: &[u8]);
}

/// Bytes that wait for a slow reader before the guest does.
const OUTPUT_BYTES: usize = 64 << 10;
/// Bytes that wait for a slow guest before the sender does.
const INPUT_BYTES: usize = 64 << 10;
/// Bytes that are offered to the chip at once: more than its FIFO holds.
const OFFER_BYTES: usize = 64;

/// What goes out.
#[derive(Default)]
struct Output {
    state: Mutex<OutputState>,
    /// The writer waits here for bytes.
    filled: Condvar,
    /// The guest waits here for room, the driver for the end.
    drained: Condvar,
}

#[derive(Default)]
struct OutputState {
    bytes: Vec<u8>,
    /// The driver is in a hurry: the bound does not count.
    unbounded: bool,
    /// No more comes; the writer ends once all is written.
    closed: bool,
    /// The writer has ended.
    ended: bool,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut OutputState)) {
        change(&mut self.lock());
        self.filled.notify_all();
        self.drained.notify_all();
    }

    fn put(&self, bytes: &[u8]) {
        let mut state = self.lock();
        while state.bytes.len() >= OUTPUT_BYTES && !state.unbounded && !state.closed {
            state = self.drained.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.closed {
            state.bytes.extend_from_slice(bytes);
            self.filled.notify_one();
        }
    }

    /// The writer's life.
    fn drain(&self, sink: &mut dyn SerialSink) {
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            while state.bytes.is_empty() && !state.closed {
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.bytes.is_empty() {
                return;
            }
            batch.clear();
            std::mem::swap(&mut batch, &mut state.bytes);
            drop(state);
            self.drained.notify_all();
            sink.write(&batch);
        }
    }
}

/// Tells that the writer has ended, even if the sink panics.
struct WriterEnd(Arc<Output>);

impl Drop for WriterEnd {
    fn drop(&mut self) {
        self.0.change(|state| (state.closed, state.ended) = (true, true));
    }
}

/// What comes in.
#[derive(Default)]
struct Input {
    state: Mutex<InputState>,
    /// The pump waits here for bytes, and for the chip to want them.
    ready: Condvar,
    /// Senders wait here for room.
    room: Condvar,
}

#[derive(Default)]
struct InputState {
    bytes: VecDeque<u8>,
    /// The chip has refused bytes and not asked for more since.
    refused: bool,
    closed: bool,
}

impl Input {
    fn lock(&self) -> MutexGuard<'_, InputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
        self.room.notify_all();
    }

    /// The pump's life.
    fn pump(&self, uart: &Mutex<Uart>) {
        loop {
            let mut state = self.lock();
            while (state.bytes.is_empty() || state.refused) && !state.closed {
                state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return;
            }
            let offer: Vec<u8> = state.bytes.iter().take(OFFER_BYTES).copied().collect();
            // Assume the worst before asking; see the argument above.
            state.refused = true;
            drop(state);
            let taken = uart.lock().unwrap_or_else(PoisonError::into_inner).push_input(&offer);
            let mut state = self.lock();
            let taken = taken.min(state.bytes.len());
            state.bytes.drain(..taken);
            if taken == offer.len() {
                state.refused = false;
            }
            drop(state);
            self.room.notify_all();
        }
    }
}

/// The sending end of a serial port's receive line. Clones send on the same line.
#[derive(Clone)]
pub struct SerialInput(Arc<Input>);

impl SerialInput {
    /// Sends bytes to the guest, waiting while too many are on their way. False once the VM has stopped; what the
    /// guest had not taken by then, it never gets.
    pub fn send(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let mut state = self.0.lock();
            while state.bytes.len() >= INPUT_BYTES && !state.closed {
                state = self.0.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return false;
            }
            let (now, later) = bytes.split_at(bytes.len().min(INPUT_BYTES - state.bytes.len()));
            state.bytes.extend(now);
            bytes = later;
            drop(state);
            self.0.ready.notify_all();
        }
        !self.0.lock().closed
    }
}

/// What the chip holds of its port.
struct ChipEnd {
    output: Arc<Output>,
    input: Arc<Input>,
}

impl CharSink for ChipEnd {
    fn send(&mut self, bytes: &[u8]) {
        self.output.put(bytes);
    }

    fn input_wanted(&mut self) {
        self.input.lock().refused = false;
        self.input.ready.notify_all();
    }
}

/// A serial port: the chip and its threads.
pub(crate) struct SerialPort {
    output: Arc<Output>,
    input: Arc<Input>,
    threads: Vec<JoinHandle<()>>,
}

impl SerialPort {
    /// Makes the chip with `make`, around the end it is given, and starts the threads. Each thread holds a clone of
    /// `watch` as long as it lives.
    ///
    /// # Errors
    /// If the host has no threads for us.
    pub(crate) fn start(
        mut sink: Box<dyn SerialSink>,
        watch: impl Clone + Send + 'static,
        make: impl FnOnce(Box<dyn CharSink>) -> Uart,
    ) -> Result<(Self, Arc<Mutex<Uart>>), VmError> {
        let (output, input) = (Arc::<Output>::default(), Arc::<Input>::default());
        let chip_end = ChipEnd { output: output.clone(), input: input.clone() };
        let uart = Arc::new(Mutex::new(make(Box::new(chip_end))));
        let mut port = Self { output: output.clone(), input: input.clone(), threads: Vec::new() };
        let (watch_writer, watch_pump) = (watch.clone(), watch);
        port.spawn("serial-out", move || {
            let _watch = watch_writer;
            let _end = WriterEnd(output.clone());
            output.drain(&mut *sink);
        })?;
        let pumped = uart.clone();
        port.spawn("serial-in", move || {
            let _watch = watch_pump;
            input.pump(&pumped);
        })?;
        Ok((port, uart))
    }

    fn spawn(&mut self, name: &str, life: impl FnOnce() + Send + 'static) -> Result<(), VmError> {
        let thread = host::thread::spawn(name, Role::Console, life).map_err(VmError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// The far end of the receive line.
    pub(crate) fn input(&self) -> SerialInput {
        SerialInput(self.input.clone())
    }

    /// Whether the guest's output is buffered without bound, so that the guest never waits for its reader.
    pub(crate) fn hurry(&self, hurry: bool) {
        self.output.change(|state| state.unbounded = hurry);
    }

    /// Takes no more output or input. What has been taken is still written.
    pub(crate) fn close(&self) {
        self.input.close();
        self.output.change(|state| state.closed = true);
    }

    /// Waits for all output to be written after [`SerialPort::close`], but not longer than `timeout`; whether it was.
    pub(crate) fn wait_written(&self, timeout: Duration) -> bool {
        let waited =
            self.output.drained.wait_timeout_while(self.output.lock(), timeout, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Forgets the output that has not been written.
    pub(crate) fn discard(&self) {
        self.output.change(|state| state.bytes.clear());
    }
}

impl Drop for SerialPort {
    /// Joins the threads, except a writer whose sink still blocks: that one ends when the sink lets it.
    fn drop(&mut self) {
        self.close();
        let written = self.wait_written(Duration::ZERO);
        for thread in self.threads.drain(..) {
            if written || thread.is_finished() {
                // A panic has been reported by the panic hook.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::{Device, ManualClock, NoAlarm, NoIrq};
    use std::sync::mpsc;

    /// A sink that passes on what it gets, and waits for a permit before each write.
    struct Slow(mpsc::Sender<Vec<u8>>, mpsc::Receiver<()>);

    impl SerialSink for Slow {
        fn write(&mut self, bytes: &[u8]) {
            let _ = self.1.recv();
            let _ = self.0.send(bytes.to_vec());
        }
    }

    type Rig = (SerialPort, Arc<Mutex<Uart>>, mpsc::Receiver<Vec<u8>>, mpsc::Sender<()>);

    fn port() -> Rig {
        let (written, out) = mpsc::channel();
        let (permit, permits) = mpsc::channel();
        let make = |sink| {
            Uart::new(0x3f8, sink, Arc::new(NoIrq), Arc::new(ManualClock::default()), Arc::new(NoAlarm))
        };
        let (port, uart) = SerialPort::start(Box::new(Slow(written, permits)), (), make).unwrap();
        (port, uart, out, permit)
    }

    fn guest_writes(uart: &Mutex<Uart>, byte: u8) {
        uart.lock().unwrap().write(0, 0, &[byte]);
    }

    #[test]
    fn output_is_batched_while_the_sink_is_slow_and_none_is_lost() {
        let (port, uart, out, permit) = port();
        for n in 0..200 {
            guest_writes(&uart, n);
        }
        drop(permit);
        port.close();
        assert!(port.wait_written(Duration::from_secs(20)));
        let batches: Vec<_> = out.try_iter().collect();
        assert!(batches.len() < 10, "{} writes", batches.len());
        assert_eq!(batches.concat(), (0..200).collect::<Vec<u8>>());
    }

    #[test]
    fn a_guest_waits_for_its_reader_unless_the_driver_is_in_a_hurry() {
        let (port, uart, out, permit) = port();
        let guest = uart.clone();
        let bytes = OUTPUT_BYTES * 2;
        let thread = std::thread::spawn(move || (0..bytes).for_each(|_| guest_writes(&guest, b'x')));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!thread.is_finished());
        port.hurry(true);
        thread.join().unwrap();
        port.hurry(false);
        port.close();
        assert!(!port.wait_written(Duration::from_millis(1)), "the sink still blocks");
        drop(permit);
        assert!(port.wait_written(Duration::from_secs(20)));
        assert_eq!(out.try_iter().map(|batch| batch.len()).sum::<usize>(), bytes);
    }

    #[test]
    fn a_sink_that_blocks_for_ever_does_not_hold_the_end_up() {
        let (port, uart, _out, _permit) = port();
        guest_writes(&uart, 1);
        port.close();
        port.discard();
        drop(port);
        guest_writes(&uart, 2);
    }

    #[test]
    fn input_arrives_whole_and_in_order() {
        let (port, uart, _out, _permit) = port();
        uart.lock().unwrap().write(0, 2, &[1]);
        let sent: Vec<u8> = (0..3 * INPUT_BYTES).map(|n| (n % 251) as u8).collect();
        let (input, text) = (port.input(), sent.clone());
        let sender = std::thread::spawn(move || input.send(&text));
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let mut uart = uart.lock().unwrap();
            let mut byte = [0];
            uart.read(0, 5, &mut byte);
            if byte[0] & 1 != 0 {
                uart.read(0, 0, &mut byte);
                got.push(byte[0]);
            } else {
                drop(uart);
                std::thread::yield_now();
            }
        }
        assert!(sender.join().unwrap());
        assert!(got == sent);
        port.close();
        assert!(!port.input().send(b"x"));
    }
}
