//! Slots from the host's side: what is in each, and the threads that serve it.
//!
//! # Scheme
//! A jailed process makes no threads, so each slot has its own from the start ([`Hand`]s), which wait for something to do. To plug a
//! device in takes three steps, of which the driver does all that the guest could see:
//!
//! 1. The driver gives the attachment to the slot's first hand, which makes the device: it reads images, which takes its time.
//! 2. The driver puts the device into the slot ([`chipset::slots`]), and gives its workers' lives to the hands.
//! 3. The guest's operating system finds it.
//!
//! It goes the other way when the guest has ejected it, when it is taken away, or at a reset: the chip hands the function over, in
//! whatever thread; the driver ends its workers; a hand, when those have ended, drops the function, and with it its files. Nobody but a hand
//! drops it, for closing an image writes to it, and a vCPU may not.
//!
//! # Invariants
//! A slot gets a device only when the one before is closed, and the guest knows that it has gone.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bus::pci::{Function, Socket};
use chipset::slots::{Keeper, Occupancy, Slots};
use host::jail::Role;
use spec::SlotName;

use crate::VmError;
use crate::attachment::Attachment;
use crate::events::{EventSink, Watch};
use crate::functions::{Card, Served};
use crate::handle::{Message, Reply};

/// Threads of a slot: as many as an NVMe controller with one I/O queue has workers.
const HANDS: usize = 2;
/// How often it is looked whether an access that had begun is over.
const LOOK: Duration = Duration::from_millis(1);

/// What is in a slot, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFigures {
    /// The slot.
    pub slot: SlotName,
    /// The device, as it was asked for, while there is one.
    pub device: Option<String>,
    /// How it stands with it.
    pub state: SlotState,
    /// How many devices had been plugged into the VM when this one was.
    pub ordinal: u64,
}

/// How it stands with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// There is nothing in it.
    Free,
    /// A device is being made.
    Opening,
    /// A device is in it, and the guest has not taken notice yet.
    New,
    /// A device is in it, and the guest knows.
    Known,
    /// The guest has been asked to let go of it.
    Leaving,
    /// The guest has none any more, and its files are being closed.
    Closing,
    /// The device was taken away, and the guest has not taken notice yet.
    Vacated,
}

/// What a slot has to do with at the driver.
pub(crate) enum Order {
    /// Plug a device in; answers with the slot.
    Plug(Box<Attachment>, Reply<SlotName>),
    /// A device was made, or not.
    Made {
        /// The slot.
        slot: SlotName,
        /// The device.
        card: Result<Card, VmError>,
        /// Who waits.
        reply: Reply<SlotName>,
    },
    /// Take a device out; answers when the guest was asked, or it was taken away.
    Unplug {
        /// The slot.
        slot: SlotName,
        /// Without asking.
        force: bool,
        /// Who waits.
        reply: Reply<()>,
    },
    /// A function is not on the bus any more.
    Ejected(SlotName, Arc<Mutex<dyn Function>>),
    /// A device has gone with its files.
    Closed(SlotName),
    /// Say what there is.
    List(Reply<Vec<SlotFigures>>),
}

/// Where slots post to the driver.
#[derive(Clone)]
pub(crate) struct Post(pub(crate) Sender<Message>);

impl Post {
    /// A driver that has gone away has stopped the VM.
    fn send(&self, order: Order) {
        let _ = self.0.send(Message::Slots(order));
    }
}

impl Keeper for Post {
    fn ejected(&self, slot: usize, function: Arc<Mutex<dyn Function>>) {
        if let Some(slot) = SlotName::of_index(slot) {
            self.send(Order::Ejected(slot, function));
        }
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// A thread that does what it is given, one after the other.
struct Hand {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Hand {
    fn start(role: Role, events: &EventSink) -> Result<Self, VmError> {
        let watch = Watch { thread: "a slot's worker", events: events.clone() };
        let (tasks, inbox) = mpsc::channel::<Task>();
        let live = move || {
            let _watch = watch;
            inbox.into_iter().for_each(|task| task());
        };
        let thread = host::thread::spawn("slot", role, live).map_err(VmError::Thread)?;
        Ok(Self { tasks: Some(tasks), thread: Some(thread) })
    }

    fn give(&self, task: impl FnOnce() + Send + 'static) {
        if let Some(tasks) = &self.tasks {
            // One that panicked has ended the VM.
            let _ = tasks.send(Box::new(task));
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook, and to the driver by an event.
            let _ = thread.join();
        }
    }
}

/// Held by whoever has a part of a device; when the last part has gone, the driver hears of it.
struct Parts(Post, SlotName);

impl Drop for Parts {
    fn drop(&mut self) {
        self.0.send(Order::Closed(self.1));
    }
}

/// A device in a slot.
struct Plugged {
    name: String,
    ordinal: u64,
    function: Arc<Mutex<dyn Served>>,
    parts: Arc<Parts>,
}

/// What the host has in a slot.
enum Content {
    Nothing,
    /// A device of this name is being made.
    Making(String),
    There(Plugged),
    /// It was a device of this name and ordinal.
    Closing(String, u64),
}

/// A slot.
struct Bay {
    name: SlotName,
    socket: Socket,
    hands: Vec<Hand>,
    content: Content,
}

/// All slots of a machine.
#[derive(Default)]
pub(crate) struct Bays(Option<Inner>);

struct Inner {
    chip: Arc<Mutex<Slots>>,
    post: Post,
    /// Its threads may serve a user-mode network.
    network: bool,
    bays: Vec<Bay>,
    /// How many devices have been plugged in.
    ordinal: u64,
}

fn lock<D: ?Sized>(device: &Mutex<D>) -> MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bays {
    /// The slots of a chip, each with its socket, and with their threads.
    ///
    /// # Errors
    /// If the host has no threads for us.
    pub(crate) fn start(
        chip: Arc<Mutex<Slots>>,
        sockets: Vec<Socket>,
        network: bool,
        post: Post,
        events: &EventSink,
    ) -> Result<Self, VmError> {
        let role = if network { Role::NetworkSlot } else { Role::Slot };
        let mut bays = Vec::new();
        for (index, socket) in sockets.into_iter().enumerate() {
            let Some(name) = SlotName::of_index(index) else { continue };
            let hands = (0..HANDS).map(|_| Hand::start(role, events)).collect::<Result<_, _>>()?;
            bays.push(Bay { name, socket, hands, content: Content::Nothing });
        }
        Ok(Self(Some(Inner { chip, post, network, bays, ordinal: 0 })))
    }

    /// Does what was asked for, or what has to be done.
    pub(crate) fn handle(&mut self, order: Order, paused: bool) {
        let Some(inner) = &mut self.0 else { return refuse(order) };
        match order {
            Order::Plug(attachment, reply) => {
                if let Err((error, reply)) = inner.make(*attachment, reply) {
                    let _ = reply.send(Err(error));
                }
            }
            Order::Made { slot, card, reply } => {
                let made = card.map(|card| inner.plug(slot, card, paused));
                let _ = reply.send(made.map(|()| slot).inspect_err(|_| inner.forget(slot)));
            }
            Order::Unplug { slot, force, reply } => {
                let _ = reply.send(inner.unplug(slot, force));
            }
            Order::Ejected(slot, function) => inner.close(slot, function),
            Order::Closed(slot) => inner.forget(slot),
            Order::List(reply) => {
                let _ = reply.send(Ok(inner.list()));
            }
        }
    }
}

/// The answers of a machine without slots.
fn refuse(order: Order) {
    match order {
        Order::Plug(_, reply) => drop(reply.send(Err(VmError::NoSlots))),
        Order::Unplug { reply, .. } => drop(reply.send(Err(VmError::NoSlots))),
        Order::List(reply) => drop(reply.send(Ok(Vec::new()))),
        // Nobody posts them.
        Order::Made { .. } | Order::Ejected(..) | Order::Closed(_) => {}
    }
}

impl Inner {
    fn bay(&mut self, slot: SlotName) -> Option<&mut Bay> {
        self.bays.get_mut(slot.index())
    }

    /// Has a device made.
    fn make(
        &mut self,
        attachment: Attachment,
        reply: Reply<SlotName>,
    ) -> Result<(), (VmError, Reply<SlotName>)> {
        if attachment.is_user_network() && !self.network {
            return Err((VmError::NetworkForbidden, reply));
        }
        let (post, count) = (self.post.clone(), self.bays.len());
        let chip = lock(&self.chip);
        let is_free = |bay: &&mut Bay| {
            matches!(bay.content, Content::Nothing) && chip.occupancy(bay.name.index()) == Occupancy::Empty
        };
        let Some(bay) = self.bays.iter_mut().find(is_free) else {
            return Err((VmError::SlotsTaken { count }, reply));
        };
        let slot = bay.name;
        bay.content = Content::Making(attachment.name());
        if let Some(hand) = bay.hands.first() {
            hand.give(move || post.send(Order::Made { slot, card: attachment.card(slot), reply }));
        }
        Ok(())
    }

    /// Puts a device into its slot.
    fn plug(&mut self, slot: SlotName, card: Card, paused: bool) {
        self.ordinal += 1;
        let (ordinal, post, chip) = (self.ordinal, self.post.clone(), self.chip.clone());
        let Some(bay) = self.bay(slot) else { return };
        let Content::Making(name) = &bay.content else { return };
        let name = name.clone();
        let function = card.plug(bay.socket.clone());
        let lives = {
            let mut function = lock(&function);
            if paused {
                function.pause();
            }
            function.lives()
        };
        let parts = Arc::new(Parts(post, slot));
        for (hand, life) in bay.hands.iter().zip(lives) {
            let part = parts.clone();
            hand.give(move || {
                life();
                drop(part);
            });
        }
        bay.content = Content::There(Plugged { name, ordinal, function: function.clone(), parts });
        lock(&chip).insert(slot.index(), function);
    }

    fn unplug(&mut self, slot: SlotName, force: bool) -> Result<(), VmError> {
        let mut chip = lock(&self.chip);
        let done = if force { chip.take(slot.index()) } else { chip.request(slot.index()) };
        if done { Ok(()) } else { Err(VmError::SlotEmpty { slot }) }
    }

    /// The guest has no way to a function any more: ends it, and has it closed.
    fn close(&mut self, slot: SlotName, function: Arc<Mutex<dyn Function>>) {
        let Some(bay) = self.bay(slot) else { return };
        bay.socket.opening.disconnect();
        match std::mem::replace(&mut bay.content, Content::Nothing) {
            Content::There(plugged) => {
                let Plugged { name, ordinal, function: served, parts } = plugged;
                lock(&served).end();
                bay.content = Content::Closing(name, ordinal);
                if let Some(hand) = bay.hands.first() {
                    // The hand has it from the workers' end on.
                    hand.give(move || drop_last(served, parts));
                }
                // Not the last: that is the hand's.
                drop(function);
            }
            other => bay.content = other,
        }
    }

    /// There is nothing in a slot any more.
    fn forget(&mut self, slot: SlotName) {
        if let Some(bay) = self.bay(slot) {
            bay.content = Content::Nothing;
        }
    }

    fn list(&self) -> Vec<SlotFigures> {
        let chip = lock(&self.chip);
        let figures = |bay: &Bay| {
            let (device, state, ordinal) = match (&bay.content, chip.occupancy(bay.name.index())) {
                (Content::Making(name), _) => (Some(name), SlotState::Opening, 0),
                (Content::There(plugged), occupancy) => {
                    let state = match occupancy {
                        Occupancy::New => SlotState::New,
                        Occupancy::Known => SlotState::Known,
                        Occupancy::Leaving => SlotState::Leaving,
                        // It has just left the bus.
                        Occupancy::Empty | Occupancy::Vacated => SlotState::Closing,
                    };
                    (Some(&plugged.name), state, plugged.ordinal)
                }
                (Content::Closing(name, ordinal), _) => (Some(name), SlotState::Closing, *ordinal),
                (Content::Nothing, Occupancy::Vacated) => (None, SlotState::Vacated, 0),
                (Content::Nothing, _) => (None, SlotState::Free, 0),
            };
            SlotFigures { slot: bay.name, device: device.cloned(), state, ordinal }
        };
        self.bays.iter().map(figures).collect()
    }
}

/// Drops a function on the calling thread. Nobody finds a way to it any more; an access that has begun is waited for.
fn drop_last(function: Arc<Mutex<dyn Served>>, parts: Arc<Parts>) {
    // Its pin is low afterwards.
    lock(&function).reset();
    while Arc::strong_count(&function) > 1 {
        std::thread::sleep(LOOK);
    }
    drop(function);
    drop(parts);
}

impl Drop for Bay {
    fn drop(&mut self) {
        if let Content::There(plugged) = &self.content {
            lock(&plugged.function).end();
        }
    }
}
