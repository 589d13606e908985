//! The core that booted: it has the device, the first pair of it and the network
//! stack that finds the addresses.

use core::num::NonZeroU16;

use kickpath_abi::config::Config;
use kickpath_abi::status::Status;
use kickpath_services::Stack;
use smoltcp::time::Instant;
use virtio_net::interrupt::InterruptState;
use virtio_net::net::control::ControlError;
use virtio_net::net::{Changes, Features, NetError};
use virtio_net::vectors::Rung;

use super::control_steps::ControlSteps;
use super::cores::{Cores, Mail};
use super::device::NetDevice;
use super::extras::Extras;
use super::host::Host;
use super::idle::now;
use super::interrupts;
use super::netconsole::Sender;
use super::report::Pair;
use super::serve::{self, Part};
use crate::arch::time;
use crate::memory::heap;
use crate::{backlog, stages};

/// How soon a line is sent that was logged after the turn's lines were, in
/// microseconds.
const LOG_INTERVAL_US: u64 = 20_000;

struct First {
    host: Host,
    vlan: Option<NonZeroU16>,
    steps: ControlSteps,
    /// The device waits for an announcement.
    announce: bool,
    said_up: bool,
    /// What only some configurations want costs the others one look a turn.
    extras: Option<Extras>,
}

/// Serves the network for ever.
pub fn serve(config: &Config, host: Host) -> ! {
    let (host, netconsole) = start_netconsole(config, host);
    let steps = ControlSteps::new(config);
    let extras = Extras::new(config, netconsole);
    let mut first = First {
        host,
        vlan: config.vlan.and_then(NonZeroU16::new),
        extras: (extras.is_needed() || steps.has_steps()).then_some(extras),
        steps,
        announce: false,
        said_up: false,
    };
    first.set_up(config);
    let mac = first.host.nic.info().mac;
    let mut stack = Stack::new(config, mac, &mut first.device(), now(), time::cycles());
    stack.set_heap(heap::stats().share(first.host.nic.queue_pairs()));
    first.host.start_cores(&mut stack, config.udp);
    stages::ended("network up");
    first.host.fixed.boot.stages = stages::report();
    first.host.publish();
    loop {
        serve::serve(&mut first, &mut stack);
    }
}

/// Has the log sent to where `config` says, if it does.
fn start_netconsole(config: &Config, mut host: Host) -> (Host, Option<Sender>) {
    let Some(target) = config.netconsole else {
        backlog::keep(false);
        return (host, None);
    };
    match host.nic.netpoll() {
        Ok(reserve) => {
            let (sender, nic) = Sender::new(target, reserve, host.nic, config.vlan);
            log::info!("netconsole: the log goes to {target}");
            host.nic = nic;
            (host, Some(sender))
        }
        Err(error) => {
            log::error!("netconsole: {error}");
            backlog::keep(false);
            (host, None)
        }
    }
}

/// Prints the line that the runner waits for, once there is an IPv4 address. Every
/// core has it by then.
fn say_up(stack: &Stack) -> bool {
    let network = stack.network();
    let Some(ipv4) = network.ipv4.first() else {
        return false;
    };
    log::info!("kickpath: up ipv4={ipv4}");
    true
}

impl Part for First {
    #[inline]
    fn begin(&mut self, stack: &mut Stack) -> bool {
        let changes = self.host.look_after_device();
        self.announce |= changes.contains(Changes::ANNOUNCE);
        if changes.contains(Changes::LINK) && self.is_link_up() {
            if let Some(pair) = self.pair() {
                pair.notify_again();
            }
            stack.link_came_up(now());
        }
        if stack.take_addresses_changed() {
            self.filter(stack);
        }
        // The device may ask while the link is down, when no frame can go out.
        if self.announce && self.is_link_up() {
            self.announce(stack);
        }
        true
    }

    #[inline]
    fn device(&mut self) -> NetDevice<'_> {
        NetDevice::first(self.host.nic, self.vlan)
    }

    #[inline]
    fn pair(&mut self) -> Option<&mut Pair> {
        self.host.nic.split().0
    }

    #[inline]
    fn interrupts(&self) -> &'static InterruptState {
        &interrupts::STATE
    }

    fn look_for_device(&mut self) {
        self.host.look_for_device();
    }

    #[inline]
    fn is_link_up(&self) -> bool {
        self.host.nic.info().link_up
    }

    #[inline]
    fn talk(&mut self, time: Instant, stack: &mut Stack) {
        if self.extras.is_some() && self.is_link_up() {
            self.serve_extras(stack);
        }
        if self.host.cores.is_some() {
            self.talk_to_cores(time, stack);
        }
        if !self.said_up && self.host.cores.as_ref().is_none_or(Cores::all_know) {
            self.said_up = say_up(stack);
        }
    }

    fn status(&mut self) -> Status {
        self.host.status()
    }

    #[inline]
    fn rung(&self) -> Option<Rung> {
        self.host.nic.rung()
    }

    #[inline]
    fn deadline(&self) -> u64 {
        let mut deadline = u64::MAX;
        if self.rung().is_none() && self.host.presence.is_here() {
            deadline = self.host.reopen_at;
        }
        if let Some(extras) = &self.extras
            && extras.netconsole.is_some()
            && backlog::is_waiting()
        {
            deadline = deadline.min(time::now() + LOG_INTERVAL_US);
        }
        deadline
    }

    #[inline]
    fn publish(&self) {
        if let Some(cores) = &self.host.cores {
            cores.publish(self.host.nic);
        }
    }

    #[inline]
    fn is_called(&mut self, frames_to_leave: u16) -> bool {
        let nic = &mut self.host.nic;
        let work = match nic.rung() {
            Some(Rung::Polling) | None => nic.has_work(),
            Some(_) => nic.enable_interrupts_after(frames_to_leave),
        };
        work || self.host.cores.as_ref().is_some_and(Cores::has_mail)
    }
}

impl First {
    /// Gives the device the address and the VLAN of the configuration.
    fn set_up(&mut self, config: &Config) {
        let nic = &mut self.host.nic;
        if let Some(mac) = config.mac
            && let Err(error) = nic.set_mac_address(mac)
        {
            log::error!("mac: {error}");
        }
        let Some(id) = config.vlan else {
            // Frames with a priority and no VLAN; a device without a filter, and
            // one that refuses, gives what it gives.
            let _ = nic.vlan_add(0);
            return;
        };
        match nic.vlan_add(id) {
            Ok(()) => log::info!("VLAN {id}"),
            // It does not look at tags then.
            Err(NetError::Control(ControlError::NotNegotiated { .. })) => {
                log::info!("VLAN {id}, without a filter in the device");
            }
            Err(error) => log::error!("VLAN {id}: {error}"),
        }
    }

    /// Hears what the other cores have to say, and tells them what this one
    /// has learnt.
    fn talk_to_cores(&mut self, time: Instant, stack: &mut Stack) {
        if let Some(cores) = &mut self.host.cores {
            cores.share(stack);
            if cores.has_mail() {
                self.read_mail(time, stack);
            }
        }
        if let Some(cores) = &self.host.cores {
            let mut device = NetDevice::first(self.host.nic, self.vlan);
            cores.team.look_up_strays(0, stack, &mut device);
        }
    }

    #[cold]
    fn read_mail(&mut self, time: Instant, stack: &mut Stack) {
        while let Some(cores) = &mut self.host.cores
            && let Some(mail) = cores.next_mail()
        {
            match mail {
                Mail::Frame(frame) => stack.receive_shared(time, &frame),
                Mail::Stray(stray) => {
                    let team = cores.team;
                    team.look_up(0, stray, stack, &mut self.device());
                }
                Mail::Broken(error) => self.host.reopen(&error.into()),
                Mail::Ipv4(state) => cores.one_knows(state),
            }
        }
    }

    /// What only some configurations want: the log is sent; once the network is
    /// up, the device is told the next step, a fault is committed or the device
    /// opened again.
    #[cold]
    fn serve_extras(&mut self, stack: &mut Stack) {
        let Some(mut extras) = self.extras.take() else {
            return;
        };
        extras.send_log(stack, &mut self.device());
        if self.said_up {
            if self.steps.is_due
                && let Some(flags) = self.steps.take_step(self.host.nic)
            {
                self.filter(stack);
                log::info!("receive mode: {flags:?}");
            }
            extras.disturb(&mut self.host);
        }
        self.extras = Some(extras);
    }

    /// Has the device drop what is not for this host.
    #[cold]
    fn filter(&mut self, stack: &Stack) {
        if !self.host.nic.info().negotiated.contains(Features::CTRL_RX) {
            return;
        }
        let mode = self.steps.receive(stack.multicast_groups());
        if let Err(error) = self.host.nic.set_rx_mode(mode) {
            log::error!("receive filter: {error}");
        }
    }

    /// Announces this host, as the device has asked, and says so to the
    /// device.
    #[cold]
    fn announce(&mut self, stack: &Stack) {
        if !stack.announce(now(), &mut self.device()) {
            // No room: the next turn tries again.
            return;
        }
        self.host.nic.kick();
        self.announce = false;
        match self.host.nic.announced() {
            Ok(()) => log::info!("announced to the network, as the device asked"),
            Err(error) => log::error!("announcement: {error}"),
        }
        self.steps.advance();
    }
}
