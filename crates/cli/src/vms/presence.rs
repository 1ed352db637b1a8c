//! This process's VM, seen from outside: its directory and its socket, from before it is built until it has ended.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::{Context, Result};
use host::jail::{Access, Directory};
use vm::VmHandle;

use super::detach;
use super::home::{Home, Registry};
use super::hub::Hub;
use super::record::Description;
use super::server::Server;
use crate::console::agent::Agent;
use crate::message;
use crate::status::Status;

/// What there is of it outside.
pub(crate) struct Presence {
    /// None where VMs cannot be noted and nobody named this one.
    noted: Option<(Home, UnixListener)>,
    server: Option<Arc<Server>>,
    hub: Option<Arc<Hub>>,
    /// What the streams of a VM in the background become.
    nothing: Option<File>,
}

impl Presence {
    /// Notes a VM, under its name or the first free one.
    ///
    /// # Errors
    /// If it cannot be noted, and has a name or is to run in the background.
    pub(crate) fn open(name: Option<&str>, description: Description) -> Result<Self> {
        let detached = description.detached;
        let noted = match Registry::of_user().and_then(|registry| registry.create(name, description)) {
            Ok(noted) => Some(noted),
            Err(error) if name.is_some() || detached => return Err(error),
            Err(error) => {
                message::note(&format!("'umbra ps' will not show this VM: {error:#}"));
                None
            }
        };
        let hub = match &noted {
            Some((home, _)) if detached => {
                Some(Arc::new(Hub::new(home.path()).context("the VM cannot have a log")?))
            }
            _ => None,
        };
        let nothing = match hub {
            Some(_) => {
                Some(File::options().read(true).write(true).open("/dev/null").context("no /dev/null")?)
            }
            None => None,
        };
        Ok(Self { noted, server: None, hub, nothing })
    }

    /// Where it will write, and what it will remove at the end.
    ///
    /// # Errors
    /// If the VM's directory is not there any more.
    pub(crate) fn directories(&self) -> Result<Vec<Directory>> {
        let Some((home, _)) = &self.noted else { return Ok(Vec::new()) };
        let above = home.path().parent().unwrap_or(home.path());
        [(home.path(), Access::Change), (above, Access::RemoveDirectories)]
            .into_iter()
            .map(|(path, access)| {
                let descriptor = File::open(path).context("the VM's directory has gone")?.into();
                Ok(Directory { descriptor, access })
            })
            .collect()
    }

    /// The console, if it runs in the background.
    pub(crate) fn hub(&self) -> Option<Arc<Hub>> {
        self.hub.clone()
    }

    /// The VM runs: answers requests, and goes into the background if it is to be there.
    ///
    /// # Errors
    /// If the host does not let it.
    pub(crate) fn start(&mut self, vm: &VmHandle, ours: bool, agent: Option<Arc<Agent>>) -> Result<()> {
        let hub = self.hub();
        let Some((home, listener)) = &mut self.noted else { return Ok(()) };
        home.start();
        let listener = listener.try_clone().context("the host gives no descriptor")?;
        self.server = Some(Server::start(listener, vm.clone(), ours, hub, agent)?);
        if let Some(nothing) = &self.nothing {
            detach::leave(&home.name(), home.path(), nothing)?;
        }
        Ok(())
    }

    /// The guest reads its control port from now on.
    pub(crate) fn ready(&self) {
        if let Some(server) = &self.server {
            server.ready();
        }
    }

    /// The VM has ended.
    pub(crate) fn end(self, status: Status) {
        if let Some((home, _)) = &self.noted {
            home.end(status);
        }
        if let Some(server) = &self.server {
            server.end(status);
        }
    }
}
