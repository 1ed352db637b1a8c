//! From an address to the device that claims it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Device, Region, Space, Window};

/// A device that threads share. A panicked device is used on: its state is the guest's problem only.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

struct Claim {
    base: u64,
    last: u64,
    owner: Owner,
}

enum Owner {
    Device { device: SharedDevice, region: usize },
    Window(Arc<Window>),
}

/// The address maps of one machine. Built before the first vCPU runs, read-only afterwards.
#[derive(Default)]
pub struct Router {
    ports: Vec<Claim>,
    mmio: Vec<Claim>,
    devices: Vec<SharedDevice>,
}

/// Two devices claim the same address, or a device claims what cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("device '{device}' claims {space:?} {base:#x}..={last:#x}, which is {reason}")]
pub struct RouterError {
    /// The claimant.
    pub device: &'static str,
    /// The address space.
    pub space: Space,
    /// First claimed address.
    pub base: u64,
    /// Last claimed address.
    pub last: u64,
    /// What is wrong.
    pub reason: &'static str,
}

impl Router {
    /// Plugs a device in.
    ///
    /// # Errors
    /// If one of its regions is empty, leaves its space, or overlaps another claim; nothing is claimed then.
    pub fn plug(&mut self, device: SharedDevice) -> Result<(), RouterError> {
        let (name, regions) = {
            let locked = device.lock().unwrap_or_else(PoisonError::into_inner);
            (locked.name(), locked.regions())
        };
        for (i, region) in regions.iter().enumerate() {
            self.check(name, region)?;
            if regions[..i].iter().any(|other| overlap(other, region)) {
                return Err(refusal(name, region, "claimed twice"));
            }
        }
        for (index, region) in regions.iter().enumerate() {
            self.claim(region, Owner::Device { device: device.clone(), region: index });
        }
        self.devices.push(device);
        Ok(())
    }

    /// Opens a window, in which devices place registers while the machine runs.
    ///
    /// # Errors
    /// As for [`Router::plug`].
    pub fn open(&mut self, window: Arc<Window>) -> Result<(), RouterError> {
        let region = window.region();
        self.check("window", &region)?;
        self.claim(&region, Owner::Window(window));
        Ok(())
    }

    /// Enters a claim that has been checked.
    fn claim(&mut self, region: &Region, owner: Owner) {
        let claim = Claim { base: region.base, last: region.base + (region.len - 1), owner };
        let claims = self.claims_mut(region.space);
        let at = claims.partition_point(|c| c.base < claim.base);
        claims.insert(at, claim);
    }

    fn check(&self, name: &'static str, region: &Region) -> Result<(), RouterError> {
        let end = match region.space {
            Space::Port => 1 << 16,
            Space::Mmio => 1 << 52,
        };
        if region.len == 0 || region.base.checked_add(region.len).is_none_or(|e| e > end) {
            return Err(refusal(name, region, "not a range of that space"));
        }
        let last = region.base + (region.len - 1);
        if self.claims(region.space).iter().any(|c| c.base <= last && region.base <= c.last) {
            return Err(refusal(name, region, "taken"));
        }
        Ok(())
    }

    fn claims(&self, space: Space) -> &Vec<Claim> {
        match space {
            Space::Port => &self.ports,
            Space::Mmio => &self.mmio,
        }
    }

    fn claims_mut(&mut self, space: Space) -> &mut Vec<Claim> {
        match space {
            Space::Port => &mut self.ports,
            Space::Mmio => &mut self.mmio,
        }
    }

    /// Every device, in the order of plugging: the one list that drives reset, pause, save and restore.
    pub fn devices(&self) -> &[SharedDevice] {
        &self.devices
    }

    fn find(&self, space: Space, address: u64) -> Option<&Claim> {
        let claims = self.claims(space);
        let after = claims.partition_point(|c| c.base <= address);
        claims[..after].last().filter(|c| address <= c.last)
    }

    /// A guest read. An access that no device claims, or that crosses the end of a claim, is answered byte by byte;
    /// bytes of nobody are ones.
    pub fn read(&self, space: Space, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        let len = data.len() as u64;
        let done =
            self.access(space, address, len, |device, region, offset| device.read(region, offset, data));
        if !done && len > 1 {
            for (at, byte) in (address..).zip(data.chunks_mut(1)) {
                self.read(space, at, byte);
            }
        }
    }

    /// A guest write, likewise.
    pub fn write(&self, space: Space, address: u64, data: &[u8]) {
        let len = data.len() as u64;
        let done =
            self.access(space, address, len, |device, region, offset| device.write(region, offset, data));
        if !done && len > 1 {
            for (at, byte) in (address..).zip(data.chunks(1)) {
                self.write(space, at, byte);
            }
        }
    }

    /// Calls the device that claims all `len` bytes at `address`, with the region and the offset in it; false if there is
    /// none.
    fn access(
        &self,
        space: Space,
        address: u64,
        len: u64,
        act: impl FnOnce(&mut dyn Device, usize, u64),
    ) -> bool {
        let Some(claim) = self.find(space, address) else { return false };
        let reaches = |last: u64| last - address >= len.saturating_sub(1);
        match &claim.owner {
            Owner::Device { device, region } if reaches(claim.last) => {
                let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
                act(&mut *device, *region, address - claim.base);
                true
            }
            Owner::Device { .. } => false,
            Owner::Window(window) => match window.find(address) {
                Some(place) if reaches(place.last) => {
                    let mut device = place.device.lock().unwrap_or_else(PoisonError::into_inner);
                    act(&mut *device, place.region, address - place.base);
                    true
                }
                _ => false,
            },
        }
    }
}

fn refusal(device: &'static str, region: &Region, reason: &'static str) -> RouterError {
    let last = region.base.saturating_add(region.len.saturating_sub(1));
    RouterError { device, space: region.space, base: region.base, last, reason }
}

fn overlap(a: &Region, b: &Region) -> bool {
    a.space == b.space && a.base < b.base + b.len && b.base < a.base + a.len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lifecycle;
    use state::{Record, StateError};

    struct Scratch {
        base: u16,
        bytes: [u8; 4],
    }

    impl Lifecycle for Scratch {
        fn name(&self) -> &'static str {
            "scratch"
        }
        fn reset(&mut self) {}
        fn save(&self) -> Record {
            Record::encode(&x86::CpuState::reset())
        }
        fn restore(&mut self, _: &Record) -> Result<(), StateError> {
            Ok(())
        }
    }

    impl Device for Scratch {
        fn regions(&self) -> Vec<Region> {
            vec![Region::ports(self.base, 4)]
        }
        fn read(&mut self, _: usize, offset: u64, data: &mut [u8]) {
            let at = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.bytes[at..at + data.len()]);
        }
        fn write(&mut self, _: usize, offset: u64, data: &[u8]) {
            let at = usize::try_from(offset).unwrap();
            self.bytes[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn router() -> Router {
        let mut router = Router::default();
        router.plug(Arc::new(Mutex::new(Scratch { base: 0x80, bytes: [1, 2, 3, 4] }))).unwrap();
        router
    }

    #[test]
    fn routes_and_splits_at_the_end_of_a_claim() {
        let r = router();
        let mut four = [0; 4];
        r.read(Space::Port, 0x82, &mut four);
        assert_eq!(four, [3, 4, 0xff, 0xff]);
        r.write(Space::Port, 0x7f, &[9, 8]);
        r.read(Space::Port, 0x80, &mut four);
        assert_eq!(four, [8, 2, 3, 4]);
    }

    #[test]
    fn what_is_in_a_window_moves() {
        let mut r = router();
        let window = Window::new(Region::mmio(0x1000, 0x1000));
        r.open(window.clone()).unwrap();
        let opening = window.opening();
        let device: SharedDevice = Arc::new(Mutex::new(Scratch { base: 0x90, bytes: [1, 2, 3, 4] }));
        opening.connect(&device);
        let read = |address| {
            let mut four = [0; 4];
            r.read(Space::Mmio, address, &mut four);
            four
        };
        assert_eq!(read(0x1000), [0xff; 4]);
        opening.place(0, Some(0x1ffe), 4);
        assert_eq!(read(0x1ffe), [0xff; 4], "not wholly inside");
        opening.place(0, Some(0x1ffc), 4);
        assert_eq!((read(0x1ffc), read(0x1ffe)), ([1, 2, 3, 4], [3, 4, 0xff, 0xff]));
        opening.place(0, Some(0x1000), 4);
        assert_eq!((read(0x1ffc), read(0xffe)), ([0xff; 4], [0xff, 0xff, 1, 2]));
        opening.place(0, None, 4);
        assert_eq!(read(0x1000), [0xff; 4]);
        assert_eq!(r.open(window).unwrap_err().reason, "taken");
    }

    #[test]
    fn refuses_overlap() {
        let mut r = router();
        let error = r.plug(Arc::new(Mutex::new(Scratch { base: 0x83, bytes: [0; 4] }))).unwrap_err();
        assert_eq!(error.reason, "taken");
        assert_eq!(r.devices().len(), 1);
    }
}
