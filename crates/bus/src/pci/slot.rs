//! A slot with nothing else around it, for tests of functions.

use std::sync::{Arc, Mutex, PoisonError};

use memory::GuestMemory;

use super::{FunctionId, Socket};
use crate::{Latch, MsiTarget, Region, Router, Space, Window};

/// Messages sent.
#[derive(Default)]
struct Sent(Mutex<Vec<(u64, u32)>>);

impl MsiTarget for Sent {
    fn send(&self, address: u64, data: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((address, data));
    }
}

/// The slot.
pub struct Slot {
    /// The interrupt pin.
    pub line: Latch,
    window: Arc<Window>,
    router: Router,
    sent: Arc<Sent>,
}

impl Slot {
    /// Where the function's registers are in the power-on state.
    pub const HOME: u64 = 0xc000_0000;

    /// An empty slot.
    pub fn new() -> Self {
        let window = Window::new(Region::mmio(Self::HOME, 0x10_0000));
        let mut router = Router::default();
        // Nothing else is there to overlap.
        let _ = router.open(window.clone());
        Self { line: Latch::default(), window, router, sent: Arc::default() }
    }

    /// What a function is plugged in with.
    pub fn socket(&self, memory: &Arc<GuestMemory>) -> Socket {
        Socket {
            id: FunctionId::on_root(1),
            opening: self.window.opening(),
            home: Self::HOME,
            line: Arc::new(self.line.clone()),
            messages: self.sent.clone(),
            memory: memory.clone(),
        }
    }

    /// The messages since this was last asked: addresses and data.
    pub fn messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.sent.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads at an address of memory.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        self.router.read(Space::Mmio, address, data);
    }

    /// Writes there.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.router.write(Space::Mmio, address, data);
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}
