//! The loop that drives device and network stack.

mod extras;

use alloc::boxed::Box;

use kickpath_abi::config::{Config, SelfTest};
use kickpath_services::Stack;
use smoltcp::time::Instant;
use virtio_net::moderation::{HOLD_US, Moderation};
use virtio_net::net::control::ControlError;
use virtio_net::net::{Changes, Features, NetError};
use virtio_net::vectors::Rung;

use super::cores::{Cores, Mail};
use super::device::{Nic, PhyDevice};
use super::idle;
use super::interrupts::Controller;
use super::netconsole::Sender;
use super::report::{self, Fixed};
use super::vlan::VlanDevice;
use super::wishes::Wishes;
use crate::arch::time;
use crate::{backlog, stages};
use extras::Reopenings;

/// A device that broke is opened again at most this often, in microseconds:
/// one that breaks at once must not keep the CPU busy.
const REOPEN_INTERVAL_US: u64 = 1_000_000;

/// Without interrupts, how often the loop asks the device whether its
/// configuration has changed, in microseconds. Each time costs exits.
const CONFIG_INTERVAL_US: u64 = 100_000;

/// How soon a line is sent that was logged after the turn's lines were, in
/// microseconds.
const LOG_INTERVAL_US: u64 = 20_000;

/// The device together with what it takes to open it again.
pub struct Host {
    /// The device; never dropped.
    pub nic: &'static mut Nic,
    controller: Controller,
    top: Rung,
    fixed: Fixed,
    /// The other CPUs with queue pairs of their own, if there are any.
    cores: Option<Cores>,
    moderation: Moderation,
    reopen_at: u64,
    /// When to look at the device's configuration next, without interrupts.
    look_at_config_at: u64,
    /// The device waits for an announcement.
    announce: bool,
    /// The VLAN of this host.
    vlan: Option<u16>,
    /// The self-test that is still to be made.
    selftest: SelfTest,
    wishes: Wishes,
    reopenings: Reopenings,
}

/// Lends the device to the network stack: with a VLAN's tag, if the host is one
/// of a VLAN.
macro_rules! on_device {
    ($host:expr, $device:ident => $call:expr) => {{
        let device = PhyDevice::first($host.nic, &$host.fixed, $host.cores.as_ref());
        match $host.vlan {
            None => {
                let mut device = device;
                let $device = &mut device;
                $call
            }
            Some(id) => {
                let $device = &mut VlanDevice { device, id };
                $call
            }
        }
    }};
}

use on_device;

/// Serves the network for ever.
pub fn serve(config: &Config, host: Host) -> ! {
    let (mut host, mut netconsole) = start_netconsole(config, host);
    host.set_up(config);
    let mut stack = {
        let mac = host.nic.info().mac;
        on_device!(host, device => Stack::new(config, mac, device, now(), time::cycles()))
    };
    host.start_cores(&mut stack);
    stages::ended("network up");
    host.fixed.boot.stages = stages::report();
    host.publish();
    // What only some configurations want costs the others one look a turn.
    let extras = netconsole.is_some()
        || host.selftest != SelfTest::Off
        || host.reopenings.left > 0
        || host.wishes.has_steps();
    let mut said_up = false;
    let mut last_work = time::now();
    loop {
        host.look_after_device();
        if stack.take_addresses_changed() {
            host.filter(&stack);
        }
        if host.announce {
            host.announce(&stack);
        }
        let time = now();
        if !host.nic.info().link_up && !host.nic.has_work() {
            // Nothing can go out and nothing comes. The clocks of the sockets
            // stand still, so that none gives up.
            host.nic.kick();
            host.talk_to_cores(time, &mut stack);
            host.idle(None, last_work);
            continue;
        }
        let busy = on_device!(host, device => stack.poll(time, device));
        if extras {
            host.serve_extras(&mut stack, &mut netconsole, said_up);
        }
        // Before the answers leave: the next packet may come to another core,
        // which must know by then whom it is from.
        host.talk_to_cores(time, &mut stack);
        host.nic.kick();
        if !said_up {
            said_up = say_up(&stack);
        }
        if busy || host.moderation.has_received(host.nic.received()) {
            last_work = time::now();
        }
        if busy {
            continue;
        }
        let mut deadline = idle::deadline(&mut stack, time);
        if extras && netconsole.is_some() && backlog::is_waiting() {
            let soon = time::now() + LOG_INTERVAL_US;
            deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
        }
        host.idle(deadline, last_work);
    }
}

/// Has the log sent to where `config` says, if it does.
fn start_netconsole(config: &Config, host: Host) -> (Host, Option<Sender>) {
    let Some(target) = config.netconsole else {
        backlog::keep(false);
        return (host, None);
    };
    match host.nic.netpoll() {
        Ok(reserve) => {
            let (sender, nic) = Sender::new(target, reserve, host.nic, config.vlan);
            log::info!("netconsole: the log goes to {target}");
            (Host { nic, ..host }, Some(sender))
        }
        Err(error) => {
            log::error!("netconsole: {error}");
            backlog::keep(false);
            (host, None)
        }
    }
}

/// Prints the line that the runner waits for, once there is an IPv4 address.
fn say_up(stack: &Stack) -> bool {
    let network = stack.network();
    let Some(ipv4) = network.ipv4.first() else {
        return false;
    };
    log::info!("kickpath: up ipv4={ipv4}");
    true
}

/// The time as the network stacks count it.
pub fn now() -> Instant {
    Instant::from_micros(i64::try_from(time::now()).unwrap_or(i64::MAX))
}

impl Host {
    /// A device that is closed.
    pub fn new(nic: Nic, controller: Controller, top: Rung, fixed: Fixed) -> Self {
        Self {
            nic: Box::leak(Box::new(nic)),
            controller,
            top,
            fixed,
            cores: None,
            moderation: Moderation::default(),
            reopen_at: 0,
            look_at_config_at: 0,
            announce: false,
            vlan: None,
            selftest: SelfTest::Off,
            wishes: Wishes::default(),
            reopenings: Reopenings::default(),
        }
    }

    /// Opens the device, again if it is open. Several queue pairs need an
    /// interrupt each, or none at all: on the rungs in between one pair is
    /// used.
    ///
    /// # Errors
    ///
    /// Those of [`virtio_net::net::VirtioNet::open`].
    pub fn open(&mut self) -> Result<(), NetError> {
        if let Some(cores) = &mut self.cores {
            cores.recall(self.nic);
        }
        self.nic.open(&mut self.controller, self.top)?;
        let rung = self.nic.rung();
        if self.nic.queue_pairs() > 1 && matches!(rung, Some(Rung::MsixShared | Rung::Intx)) {
            log::info!("not every queue has an interrupt of its own: using one queue pair");
            self.nic.set_queue_pairs(1);
            self.nic.open(&mut self.controller, self.top)?;
        }
        if let Some(cores) = &self.cores {
            cores.hand_out(self.nic);
        }
        self.publish();
        Ok(())
    }

    /// Gives the queue pairs beside the first to other CPUs.
    fn start_cores(&mut self, stack: &mut Stack) {
        let pairs = self.nic.queue_pairs();
        if pairs < 2 {
            return;
        }
        match self.nic.rss().map(|rss| rss.table().len()) {
            None | Some(0) => log::info!("{pairs} queue pairs, one a CPU"),
            Some(entries) => {
                log::info!("{pairs} queue pairs, one a CPU; RSS by {entries} entries");
            }
        }
        let mut cores = Cores::start(pairs.into());
        stack.share_frames();
        cores.share(stack);
        cores.hand_out(self.nic);
        self.cores = Some(cores);
    }

    /// Tells the other cores what changed of the device.
    fn publish(&mut self) {
        if let Some(cores) = &self.cores {
            let link_up = self.nic.info().link_up;
            let (first, rest) = self.nic.parts();
            cores.publish_status(report::status(&self.fixed, first, &rest), link_up);
        }
    }

    /// Hears what the other cores have to say, and tells them what this one
    /// has learnt.
    #[inline]
    fn talk_to_cores(&mut self, time: Instant, stack: &mut Stack) {
        let Some(cores) = &mut self.cores else {
            return;
        };
        cores.share(stack);
        if cores.has_mail() {
            self.read_mail(time, stack);
        }
        if let Some(cores) = &self.cores {
            on_device!(self, device => cores.look_up_strays(stack, device));
        }
    }

    #[cold]
    fn read_mail(&mut self, time: Instant, stack: &mut Stack) {
        while let Some(mail) = self.cores.as_ref().and_then(Cores::next_mail) {
            match mail {
                Mail::Frame(frame) => stack.hear(time, &frame),
                Mail::Stray(stray) => {
                    if let Some(cores) = &self.cores {
                        on_device!(self, device => cores.look_up(stray, stack, device));
                    }
                }
                Mail::Broken(error) => self.reopen(&error.into()),
                Mail::Ipv4(_) => (),
            }
        }
    }

    /// Gives the device the address and the VLAN of the configuration.
    fn set_up(&mut self, config: &Config) {
        if let Some(mac) = config.mac
            && let Err(error) = self.nic.set_mac_address(mac)
        {
            log::error!("mac: {error}");
        }
        self.selftest = config.selftest;
        self.wishes = Wishes::new(config);
        self.reopenings.left = config.reopen.saturating_add(config.reset_queues);
        self.reopenings.queues = config.reset_queues > 0;
        self.vlan = config.vlan;
        if let Some(id) = config.vlan {
            match self.nic.vlan_add(id) {
                Ok(()) => log::info!("VLAN {id}"),
                // It does not look at tags then.
                Err(NetError::Control(ControlError::NotNegotiated { .. })) => {
                    log::info!("VLAN {id}, without a filter in the device");
                }
                Err(error) => log::error!("VLAN {id}: {error}"),
            }
        }
    }

    /// The device, and what the status report says beside.
    pub fn parts(&mut self) -> (&mut Nic, &Fixed) {
        (self.nic, &self.fixed)
    }

    /// Begins a poll of the device, and opens it again when it broke.
    fn look_after_device(&mut self) {
        let mut result = self.nic.poll();
        if result == Ok(Changes::empty()) && self.nic.rung() == Some(Rung::Polling) {
            result = self.look_at_config_now_and_then();
        }
        match result {
            Ok(changes) if changes.is_empty() => (),
            Ok(changes) => self.changed(changes),
            Err(NetError::NotOpen) if time::now() < self.reopen_at => (),
            Err(error) => self.reopen(&error),
        }
    }

    fn look_at_config_now_and_then(&mut self) -> Result<Changes, NetError> {
        let now = time::now();
        if now < self.look_at_config_at {
            return Ok(Changes::empty());
        }
        self.look_at_config_at = now + CONFIG_INTERVAL_US;
        self.nic.look_at_config()
    }

    #[cold]
    fn changed(&mut self, changes: Changes) {
        if changes.contains(Changes::LINK) {
            let up = self.nic.info().link_up;
            let stats = self.nic.stats();
            log::info!(
                "the link is {}; received {} frames, {} bytes; sent {} frames, {} bytes",
                if up { "up" } else { "down" },
                stats.rx_packets,
                stats.rx_bytes,
                stats.tx_packets,
                stats.tx_bytes
            );
        }
        self.announce |= changes.contains(Changes::ANNOUNCE);
        self.publish();
    }

    /// Has the device drop what is not for this host.
    #[cold]
    fn filter(&mut self, stack: &Stack) {
        if !self.nic.info().negotiated.contains(Features::CTRL_RX) {
            return;
        }
        let mode = self.wishes.receive(stack.multicast_groups());
        if let Err(error) = self.nic.set_rx_mode(mode) {
            log::error!("receive filter: {error}");
        }
    }

    /// Announces this host, as the device has asked, and says so to the
    /// device.
    #[cold]
    fn announce(&mut self, stack: &Stack) {
        if !on_device!(self, device => stack.announce(now(), device)) {
            // No room: the next turn tries again.
            return;
        }
        self.nic.kick();
        self.announce = false;
        match self.nic.announced() {
            Ok(()) => log::info!("announced to the network, as the device asked"),
            Err(error) => log::error!("announcement: {error}"),
        }
        self.wishes.advance();
    }

    #[cold]
    fn reopen(&mut self, error: &NetError) {
        log::error!("{error}");
        let now = time::now();
        if now < self.reopen_at {
            // It broke again within the interval: wait it out, closed.
            if let Some(cores) = &mut self.cores {
                cores.recall(self.nic);
            }
            self.nic.stop(&mut self.controller);
            return;
        }
        self.reopen_at = now + REOPEN_INTERVAL_US;
        match self.open() {
            Ok(()) => log::info!("the device was reset and opened again"),
            Err(error) => log::error!("the device could not be opened again: {error}"),
        }
    }

    /// Sleeps until there may be something to do: an interrupt, or `deadline`
    /// in microseconds since boot.
    fn idle(&mut self, deadline: Option<u64>, last_work: u64) {
        let now = time::now();
        let leave = self.moderation.frames_to_leave(now, self.nic.received());
        let mut deadline = deadline.unwrap_or(u64::MAX);
        match self.nic.rung() {
            Some(Rung::Polling) => match idle::poll_sleep_until(now, last_work) {
                Some(until) => deadline = deadline.min(until),
                None => {
                    core::hint::spin_loop();
                    return;
                }
            },
            Some(_) if leave > 0 => deadline = deadline.min(now + HOLD_US),
            Some(_) => (),
            None => deadline = deadline.min(self.reopen_at),
        }
        if let Some(cores) = &self.cores {
            let (first, rest) = self.nic.parts();
            cores.publish(first, &rest);
        }
        idle::sleep(&mut self.moderation, now, deadline, leave, || {
            let work = match self.nic.rung() {
                Some(Rung::Polling) | None => self.nic.has_work(),
                Some(_) => self.nic.enable_interrupts_after(leave),
            };
            work || self.cores.as_ref().is_some_and(Cores::has_mail)
        });
    }
}
