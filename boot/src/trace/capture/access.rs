//! How a tracer gets at a running machine: by QEMU's monitor, or in the process of a VMM that
//! has none.

use std::fs;
use std::io;

use kickpath_trace::MAGIC;
use serde_json::{Value, json};

use super::process::ProcessMemory;
use super::{TraceError, Tracer, qemu, system};
use crate::guest::Guest;
use crate::qemu::Vmm;

impl Tracer {
    /// Reads the guest's memory: `memsave` by the virtual address of its CPU,
    /// `pmemsave` by the physical one.
    pub(in crate::trace) fn memory(
        &self,
        guest: &Guest,
        command: &str,
        address: u64,
        length: usize,
    ) -> Result<Vec<u8>, TraceError> {
        if self.vmm != Vmm::Qemu {
            return self.memory_of_process(guest, command, address, length);
        }
        let file = self.directory.path().join("memory");
        guest.qmp(
            command,
            json!({
                // QEMU takes a signed number.
                "val": address.cast_signed(),
                "size": length,
                "filename": file,
            }),
        )?;
        fs::read(&file).map_err(system("read the guest's memory"))
    }

    fn memory_of_process(
        &self,
        guest: &Guest,
        command: &str,
        address: u64,
        length: usize,
    ) -> Result<Vec<u8>, TraceError> {
        let read = || {
            let ring = self.ring.as_ref();
            let physical = |address| {
                let place = ring.and_then(|ring| ring.image.physical(address));
                place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            };
            let memory = match (self.memory.get(), ring) {
                (Some(memory), _) => memory,
                (None, Some(ring)) => {
                    let ring = physical(ring.address)?;
                    let found = ProcessMemory::find(guest.pid(), ring, MAGIC)?;
                    self.memory.get_or_init(|| found)
                }
                (None, None) => return Err(io::ErrorKind::NotFound.into()),
            };
            match command {
                "pmemsave" => memory.read(address, length),
                _ => memory.read(physical(address)?, length),
            }
        };
        read().map_err(system("read the guest's memory in the VMM's process"))
    }

    /// Has the machine stand still. Other VMMs than QEMU are not asked to: a signal that stops a
    /// process interrupts its calls, and not every VMM survives that. They were quiet before.
    pub(super) fn stop(&self, guest: &Guest) -> Result<(), TraceError> {
        if self.vmm == Vmm::Qemu {
            guest.qmp("stop", Value::Null)?;
        }
        Ok(())
    }

    pub(super) fn go_on(&self, guest: &Guest) -> Result<(), TraceError> {
        if self.vmm == Vmm::Qemu {
            guest.qmp("cont", Value::Null)?;
        }
        Ok(())
    }

    /// An event that this QEMU does not have is left out.
    pub(super) fn switch_window_events(&self, guest: &Guest, enable: bool) {
        if self.vmm != Vmm::Qemu {
            return;
        }
        for name in qemu::WINDOW_EVENTS {
            let arguments = json!({ "name": name, "enable": enable });
            if let Err(failure) = guest.qmp("trace-event-set-state", arguments) {
                log::debug!("{}", failure.cause);
            }
        }
    }
}
