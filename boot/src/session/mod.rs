//! From what the user asked for to a running guest with a far end.

mod settings;
mod up;

use std::path::{Path, PathBuf};

pub use settings::{Layout, Mismatch, NetChoice, SessionError, Settings, require};
pub use up::{StatusError, UP, Up, fetch_status};

use crate::accel::Decision;
use crate::guest::Guest;
use crate::ports::Services;
use crate::qemu::{Accel, GUEST_MAC, Machine, Net, Nic};
use crate::wire::peer::PeerOptions;
use crate::wire::{Dgram, Peer, Plan, Recorder, Tap, TapDump};

/// A machine that is ready to start, but for its network.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The machine, with a network device only after `connect`.
    pub machine: Machine,
    /// The accelerator, and why.
    pub decision: Decision,
    /// The addresses.
    pub plan: Plan,
    pcap: Option<PathBuf>,
    device: Device,
}

/// What the user asked for of the network device.
#[derive(Clone, Copy, Debug)]
struct Device {
    mmio_legacy: bool,
    pio_notify: bool,
    ioeventfd: Option<bool>,
    mtu: Option<u16>,
    rx_queue_size: Option<u16>,
    layout: Layout,
    rss: bool,
}

impl Prepared {
    /// Puts a network device on this cable into the machine.
    pub fn attach(&mut self, net: Net) {
        let in_process = matches!(net, Net::Dgram { .. });
        let mut nic = Nic::new(net);
        // A transitional device offers both interfaces; the guest's
        // configuration says which to take.
        nic.mmio_legacy = self.device.mmio_legacy;
        nic.pio_notify = self.device.pio_notify;
        nic.ioeventfd = self.device.ioeventfd;
        nic.mtu = self.device.mtu;
        nic.rx_queue_size = self.device.rx_queue_size;
        nic.packed = self.device.layout == Layout::Packed;
        nic.rss = self.device.rss;
        if !in_process {
            nic.dump.clone_from(&self.pcap);
        }
        self.machine.nic = Some(nic);
    }

    /// A host of our own at the far end.
    ///
    /// # Errors
    /// The sockets or the file for frames cannot be made.
    pub fn connect_peer(&mut self) -> Result<Peer, SessionError> {
        let wire = self.wire()?;
        self.attach(wire.net());
        let peer = Peer::new(wire, self.plan, PeerOptions::of(&self.plan));
        peer.map_err(system("start the host's end of the cable"))
    }

    /// A bare datagram cable, in the guest's VLAN.
    ///
    /// # Errors
    /// As [`Prepared::connect_peer`].
    pub fn wire(&self) -> Result<Dgram, SessionError> {
        let recorder = Recorder::new(self.pcap.as_deref());
        let recorder = recorder.map_err(|source| SessionError::System {
            what: format!("write {}", shown(self.pcap.as_deref())),
            source,
        })?;
        let wire = Dgram::in_vlan(recorder, self.machine.config.vlan);
        wire.map_err(system("make the host's end of the cable"))
    }

    /// Sees to the record that QEMU makes of a tap device.
    pub fn tap_dump(&self) -> TapDump {
        TapDump {
            file: self.pcap.clone(),
            mac: self.machine.config.mac.unwrap_or(GUEST_MAC),
        }
    }

    /// A tap device at the far end, with a queue for each CPU.
    ///
    /// # Errors
    /// No rights, or no such device.
    pub fn connect_tap(&mut self) -> Result<Tap, SessionError> {
        let tap = Tap::new(&self.plan, self.machine.cpus.into())?;
        if let Some(mtu) = self.device.mtu {
            tap.set_mtu(mtu)?;
        }
        self.attach(tap.net());
        Ok(tap)
    }

    /// Starts QEMU.
    ///
    /// # Errors
    /// It does not start.
    pub fn launch(&self) -> Result<Guest, SessionError> {
        Ok(Guest::launch(&self.machine)?)
    }

    /// Starts QEMU with its user network; its services are forwarded from the
    /// first free ports.
    ///
    /// # Errors
    /// It does not start, or no port is free.
    pub fn launch_forwarded(
        &mut self,
        (http, echo): (u16, u16),
    ) -> Result<(Guest, Services), SessionError> {
        // Between our look and QEMU's bind another program may take a port:
        // then there is a next one.
        let mut tries = 5;
        loop {
            let services = Services::find(http, echo)?;
            self.attach(self.user_net(services));
            tries -= 1;
            match self.launch() {
                Err(SessionError::Guest(failure)) if tries > 0 && failure.is_port_taken() => {}
                other => return Ok((other?, services)),
            }
        }
    }

    /// QEMU's user network with these forwards.
    pub fn user_net(&self, services: Services) -> Net {
        Net::User {
            guest: self.plan.guest,
            gateway: self.plan.host,
            forwards: services.forwards(),
        }
    }

    /// The accelerator.
    pub fn accel(&self) -> Accel {
        self.decision.accel
    }
}

fn shown(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string())
        .unwrap_or_default()
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> SessionError {
    move |source| SessionError::System {
        what: what.to_owned(),
        source,
    }
}
