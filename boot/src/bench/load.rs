//! A guest at a tap, the loads that it is put under, and what is counted of each: by the guest
//! itself, by a plugin of QEMU, and where KVM runs it by KVM's events.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use kickpath_abi::status::Status;

use super::profile::{Counts, Profile, Profiler};
use super::{FLOOD_BOUND, Sums, prepare, without_ioeventfd, wrong};
use crate::command::Sink;
use crate::guest::Guest;
use crate::qemu::{Boot, Vmm};
use crate::session::{SessionError, Settings, Up, fetch_status};
use crate::trace::capture;
use crate::trace::kvm::{Exits, HostTrace};
use crate::wire::peer::{Flood, FloodReport};
use crate::wire::{BURST, Bursts, FarEnd, HostSockets, Tap, WireError};

/// Content bytes of an echo, and of a datagram that is discarded.
pub(super) const SIZE: usize = 64;
/// How long one transfer or request may take.
const BOUND: Duration = Duration::from_secs(300);

/// A guest at a tap.
pub(super) struct Loaded {
    pub(super) transport: &'static str,
    sockets: HostSockets,
    host: Ipv4Addr,
    pub(super) guest: Guest,
    /// What runs it, and its program.
    vmm: Vmm,
    pub(super) program: PathBuf,
    /// Whether KVM runs it, so that exits are counted.
    has_exits: bool,
    /// A request without an answer for so long is lost.
    patience: Duration,
    up: Up,
    boot: Boot,
    profiler: Option<Profiler>,
    /// Held for its drop, after the guest's.
    _tap: Tap,
}

/// What was counted of a load.
pub(super) struct Measured {
    /// The guest's reports: two before the load, one behind it.
    reports: [Status; 3],
    pub(super) counts: Counts,
    /// `None` where KVM's events cannot be recorded, or some were lost.
    pub(super) exits: Option<Exits>,
}

impl Measured {
    /// What the guest counted, with what it costs to ask for reports left out.
    pub(super) fn sums(&self, units: u64) -> Sums {
        let [first, before, after] = &self.reports;
        let asking = Sums::between(first, before, 0);
        Sums::between(before, after, units).without(&asking)
    }

    /// The same of one counter.
    pub(super) fn since(&self, counter: impl Fn(&Status) -> u64) -> u64 {
        let [first, before, after] = self.reports.each_ref().map(counter);
        let asking = before.saturating_sub(first);
        after.saturating_sub(before).saturating_sub(asking)
    }
}

impl Loaded {
    /// Starts one, which as many senders as said will send to.
    pub(super) fn start(
        settings: &Settings,
        from: usize,
        profile: bool,
        sink: &mut Sink<'_>,
    ) -> Result<Self, SessionError> {
        let mut prepared = prepare(settings, false, sink)?;
        let tap = prepared.connect_tap()?;
        if from > 1 {
            tap.add_addresses(&senders(prepared.plan.host, from))?;
        }
        let has_exits = prepared.machine.icount.is_none();
        if !has_exits {
            without_ioeventfd(&mut prepared.machine);
        }
        let program = &prepared.machine.program;
        let profiler = Profiler::if_wanted(profile, settings.policy, program, sink)?;
        if let Some(profiler) = &profiler {
            profiler.attach(&mut prepared.machine);
        }
        let guest = prepared.launch()?;
        let sockets = tap.sockets();
        let up = prepared.wait_until_up(&guest, &sockets)?;
        let patience = match has_exits {
            true => prepared.accel().reply_bound(),
            false => Duration::from_secs(5),
        };
        Ok(Self {
            transport: settings.transport.word(),
            sockets,
            host: prepared.plan.host,
            guest,
            vmm: settings.vmm,
            program: prepared.machine.program,
            has_exits,
            patience,
            up,
            boot: prepared.machine.boot,
            profiler,
            _tap: tap,
        })
    }

    pub(super) fn counts(&self) -> Result<Counts, SessionError> {
        let profiler = self.profiler.as_ref();
        profiler.map_or_else(|| Ok(Counts::default()), Profiler::read)
    }

    /// Where the instructions went, if that was asked for.
    pub(super) fn profile(
        &self,
        counts: &Counts,
        units: u64,
    ) -> Result<Option<Profile>, SessionError> {
        let profiler = self.profiler.as_ref();
        let profile = profiler.map(|_| Profile::of(counts, &self.boot, units));
        profile.transpose()
    }

    fn tell<T, E: Display>(&self, result: Result<T, E>) -> Result<T, SessionError> {
        result.map_err(|error| {
            // A guest that stopped is the better explanation.
            let stopped = self.guest.check().err();
            stopped.map_or_else(
                || wrong(&self.guest, &error.to_string()),
                SessionError::from,
            )
        })
    }

    /// The guest's report on itself.
    pub(super) fn status(&self) -> Result<Status, SessionError> {
        self.tell(fetch_status(&self.sockets, self.up.ip(), BOUND))
    }

    /// What `work` costs. It is done twice, first to fill caches.
    fn count(
        &self,
        mut work: impl FnMut(bool) -> Result<(), SessionError>,
    ) -> Result<Measured, SessionError> {
        work(false)?;
        let first = self.status()?;
        let before = self.status()?;
        let counts = self.counts()?;
        let threads = || capture::threads_of(&self.guest, self.vmm);
        let trace = self
            .has_exits
            .then(|| HostTrace::counting(&threads()).ok())
            .flatten();
        work(true)?;
        let exits = trace.and_then(|trace| Exits::of(&trace.stop().ok()?));
        let counts = self.counts()?.since(&counts);
        let after = self.status()?;
        Ok(Measured {
            reports: [first, before, after],
            counts,
            exits,
        })
    }

    /// UDP echoes from so many senders.
    pub(super) fn echoes(
        &self,
        count: u64,
        outstanding: usize,
        from: usize,
    ) -> Result<(Measured, FloodReport), SessionError> {
        let senders = senders(self.host, from);
        let flood = |count, outstanding| Flood {
            count,
            size: SIZE,
            outstanding,
            patience: self.patience,
            bound: FLOOD_BOUND,
        };
        let mut report = FloodReport::default();
        let measured = self.count(|counts| {
            let flood = match counts {
                true => flood(count, outstanding),
                // Every sender is asked for once.
                false => flood(
                    (from as u64).max(4 * outstanding as u64),
                    outstanding.min(8),
                ),
            };
            let address = self.up.address.address;
            report = self.tell(self.sockets.udp_echo_flood(address, &senders, flood))?;
            Ok(())
        })?;
        Ok((measured, report))
    }

    /// Datagrams in bursts; returns as well how many answers did not come.
    pub(super) fn bursts(&self, way: Bursts, count: u64) -> Result<(Measured, u64), SessionError> {
        let mut lost = 0;
        let measured = self.count(|counts| {
            let count = if counts { count } else { BURST };
            let guest = self.up.address.address;
            lost = self.tell(self.sockets.udp_bursts(guest, way, count, self.patience))?;
            Ok(())
        })?;
        Ok((measured, lost))
    }

    /// So many bytes by TCP from the guest.
    pub(super) fn tcp_out(&self, bytes: usize) -> Result<Measured, SessionError> {
        self.stream(bytes, |bytes| {
            self.sockets.tcp_read(self.up.ip(), bytes, BOUND)
        })
    }

    /// So many bytes by TCP to the guest.
    pub(super) fn tcp_in(&self, bytes: usize) -> Result<Measured, SessionError> {
        self.stream(bytes, |bytes| {
            self.sockets.tcp_write(self.up.ip(), bytes, BOUND)
        })
    }

    /// So many bytes by TCP to the guest and back.
    pub(super) fn tcp_echo(&self, bytes: usize) -> Result<Measured, SessionError> {
        self.stream(bytes, |bytes| {
            let echo = self.sockets.tcp_echo(self.up.ip(), bytes, BOUND);
            echo.map(|_| ())
        })
    }

    fn stream(
        &self,
        bytes: usize,
        work: impl Fn(usize) -> Result<(), WireError>,
    ) -> Result<Measured, SessionError> {
        self.count(|counts| self.tell(work(if counts { bytes } else { bytes / 16 })))
    }

    /// So many HTTP requests.
    pub(super) fn http(&self, path: &str, requests: u64) -> Result<Measured, SessionError> {
        self.count(|counts| {
            for _ in 0..if counts { requests } else { 4 } {
                self.tell(self.sockets.http_get(self.up.ip(), path, BOUND))?;
            }
            Ok(())
        })
    }
}

/// The host's own address and the ones beside it.
fn senders(host: Ipv4Addr, count: usize) -> Vec<Ipv4Addr> {
    let others = (0..count.saturating_sub(1) as u32).map(|n| {
        let [a, b, ..] = host.octets();
        let [c, d] = (256 + n as u16).to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    });
    std::iter::once(host).chain(others).collect()
}
