//! What every function has, whatever it does: its place on the bus, its configuration space, its interrupts.
//!
//! An interrupt is a message if the guest has enabled those, else the pin: a level, high while there is a cause, unless the
//! guest has disabled it. The function says whether there is a cause ([`Endpoint::set_pin`]); what comes of that is decided here
//! whenever configuration space has changed.
//!
//! Lock order: whoever owns the endpoint, then the window of the bridge, interrupt lines and local APICs.

use std::sync::{Arc, Mutex};

use memory::GuestMemory;
use serde::{Deserialize, Serialize};
use state::StateError;

use super::config::WORDS;
use super::{Command, ConfigSpace, Function, FunctionId, Identity, Msix, MsixState};
use crate::{IrqLine, MsiTarget, Opening, SharedDevice};

/// Where a function is plugged in, and what it is connected with. Clones are the same place.
#[derive(Clone)]
pub struct Socket {
    /// Its place on the bus.
    pub id: FunctionId,
    /// How it places its registers behind the bridge.
    pub opening: Opening,
    /// Where firmware would put them, a multiple of their length.
    pub home: u64,
    /// Its interrupt pin, for drivers that use no messages.
    pub line: Arc<dyn IrqLine>,
    /// Where its messages go.
    pub messages: Arc<dyn MsiTarget>,
    /// What it has access to.
    pub memory: Arc<GuestMemory>,
}

impl Socket {
    /// Plugs in the function that `make` makes: the handle by which the bus, and everybody else, knows it.
    pub fn plug<F: Function + 'static>(self, make: impl FnOnce(Self) -> F) -> Arc<Mutex<F>> {
        let opening = self.opening.clone();
        let function = Arc::new(Mutex::new(make(self)));
        let device: SharedDevice = function.clone();
        opening.connect(&device);
        function
    }
}

/// A function's registers behind its one base address register, and its vectors.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The base address register.
    pub bar: u8,
    /// How many bytes are behind it.
    pub bytes: u64,
    /// How many vectors it has, at most [`Msix::MAX_VECTORS`].
    pub vectors: u16,
    /// Where the table of vectors is.
    pub table: u32,
    /// Where their pending bits are.
    pub pending: u32,
}

/// A function's side of the bus.
pub struct Endpoint {
    // Static.
    id: FunctionId,
    // Glue.
    opening: Opening,
    line: Arc<dyn IrqLine>,
    // Volatile.
    config: ConfigSpace,
    /// Nothing but if configuration space were full.
    msix: Option<Msix>,
    /// There is a cause for an interrupt by pin.
    waits: bool,
}

/// The saved form. Whether an interrupt waits is the function's to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointState {
    id: FunctionId,
    config: Vec<u32>,
    msix: Option<MsixState>,
}

impl Endpoint {
    /// A function in the power-on state; `add` adds capabilities of its own.
    pub fn new(
        identity: &Identity,
        layout: &Layout,
        socket: Socket,
        add: impl FnOnce(&mut ConfigSpace),
    ) -> Self {
        let Layout { bar, bytes, vectors, table, pending } = *layout;
        let mut config = ConfigSpace::new(identity);
        config.set_interrupt_pin(0);
        config.add_memory_bar(bar, bytes, socket.home);
        add(&mut config);
        let msix = Msix::new(socket.messages, &mut config, vectors, (bar, table, pending));
        let Socket { id, opening, line, .. } = socket;
        let mut endpoint = Self { id, opening, line, config, msix, waits: false };
        endpoint.follow();
        endpoint
    }

    /// The command register.
    pub fn command(&self) -> Command {
        self.config.command()
    }

    /// Configuration space. After a change, [`Endpoint::follow`].
    pub fn config(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    /// Does what configuration space says.
    pub fn follow(&mut self) {
        if let Some(msix) = &mut self.msix {
            msix.follow(&self.config);
        }
        for (bar, base, len) in self.config.bars() {
            self.opening.place(bar, base, len);
        }
        self.drive();
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.msix.as_ref().map_or(0, Msix::vectors)
    }

    /// Whether interrupts are messages at the moment.
    pub fn uses_messages(&self) -> bool {
        self.msix.as_ref().is_some_and(Msix::is_enabled)
    }

    /// Sends a vector's message. For functions whose interrupts are messages at the moment.
    pub fn send(&mut self, vector: u16) {
        if let Some(msix) = &mut self.msix {
            msix.raise(vector);
        }
    }

    /// Says whether there is a cause for an interrupt by pin.
    pub fn set_pin(&mut self, waits: bool) {
        self.waits = waits;
        self.drive();
    }

    fn drive(&mut self) {
        let waits = self.waits && !self.uses_messages();
        self.config.show_interrupt(waits);
        self.line.set(waits && !self.config.command().interrupt_disabled());
    }

    /// The table of vectors, if there is one.
    pub fn msix(&mut self) -> Option<&mut Msix> {
        self.msix.as_mut()
    }

    /// The power-on state.
    pub fn reset(&mut self) {
        self.config.reset();
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        self.waits = false;
        self.follow();
    }

    /// The saved form.
    pub fn save(&self) -> EndpointState {
        EndpointState { id: self.id, config: self.config.save(), msix: self.msix.as_ref().map(Msix::save) }
    }

    /// Whether a saved form is this function's and holds what can be.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self, name: &'static str, state: &EndpointState) -> Result<(), StateError> {
        let damaged = |reason: &str| Err(StateError::Damaged { name, reason: reason.to_owned() });
        if state.id != self.id {
            return damaged("it is another device's");
        }
        if state.config.len() != WORDS {
            return damaged("configuration space of another size");
        }
        match (&self.msix, &state.msix) {
            (Some(msix), Some(state)) => msix.check(name, state),
            (None, None) => Ok(()),
            _ => damaged("it has interrupts of another kind"),
        }
    }

    /// Takes over a saved form that [`Endpoint::check`] found good, with or without a cause for an interrupt by pin.
    ///
    /// # Errors
    /// If it was not found good.
    pub fn restore(
        &mut self,
        name: &'static str,
        state: EndpointState,
        waits: bool,
    ) -> Result<(), StateError> {
        self.config.restore(name, &state.config)?;
        if let (Some(msix), Some(state)) = (&mut self.msix, state.msix) {
            msix.restore(state);
        }
        self.waits = waits;
        self.follow();
        Ok(())
    }
}
