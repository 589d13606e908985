//! What users have: a tap with the offloads that QEMU offers by default, and the
//! system's network stack at the far end.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::time::Duration;

use kickpath_abi::config::{Ipv4Cidr, Ipv4Config, Transport, UdpWay};
use kickpath_abi::status::Status;
use serde::Serialize;

use super::profile::{Counts, Profile, Profiler};
use super::{FLOOD_BOUND, PerPacket, Sums, driver_tx, prepare, without_ioeventfd, wrong};
use crate::command::Sink;
use crate::guest::Guest;
use crate::qemu::{Boot, Kind};
use crate::session::{Layout, Prepared, SessionError, Settings, Up, fetch_status};
use crate::wire::peer::{Flood, FloodReport};
use crate::wire::{FarEnd, HostSockets, Tap};

/// Content bytes of an echo.
const SIZE: usize = 64;
/// What is asked for, besides the usual: outstanding requests and senders.
const ECHOES: [(usize, usize); 6] = [(1, 1), (32, 1), (256, 1), (32, 8), (32, 64), (32, 1024)];
/// Bytes of a TCP transfer.
const TRANSFER: usize = 16 << 20;
/// HTTP requests.
const REQUESTS: u64 = 200;
/// How long one transfer or request may take.
const BOUND: Duration = Duration::from_secs(300);
/// The features that TCP is measured without.
const OFFLOADS: &str = "-csum,-guest_csum,-guest_tso4,-guest_tso6,-host_tso4,-host_tso6,-mrg_rxbuf";

/// One line of the tables.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The interface of the device.
    pub transport: &'static str,
    /// What was done.
    pub what: What,
    /// The difference of the guest's counters.
    pub sums: Sums,
    /// Per echo, KiB or request.
    pub per_unit: PerPacket,
    /// Where the instructions went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// What a line is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Frames of 60 bytes by the driver alone.
    Driver {
        /// What is done with each.
        work: &'static str,
    },
    /// UDP echoes of 64 bytes.
    Echo {
        /// `sockets` or `in-place`.
        way: &'static str,
        /// Requests on their way at a time.
        outstanding: usize,
        /// Addresses that they come from.
        senders: usize,
        /// Requests without an answer.
        lost: u64,
    },
    /// Bytes that the guest sends by TCP, a KiB.
    TcpOut {
        /// With the offloads of the device.
        offloads: bool,
    },
    /// Bytes that the guest receives by TCP, a KiB.
    TcpIn {
        /// With the offloads of the device.
        offloads: bool,
    },
    /// Requests by HTTP on a connection each.
    Http {
        /// What is fetched.
        path: &'static str,
    },
    /// From the first instruction of the guest to its first answer.
    Boot,
}

impl What {
    /// A line's name, and what is counted per.
    pub fn name(&self) -> String {
        let offloads = |on: &bool| if *on { "with" } else { "without" };
        match self {
            Self::Driver { work } => format!("driver alone, a frame {work}"),
            Self::Echo {
                way,
                outstanding,
                senders,
                ..
            } => {
                let from = match senders {
                    1 => String::new(),
                    n => format!(" from {n} senders"),
                };
                format!("echo, {way}, {outstanding} outstanding{from}")
            }
            Self::TcpOut { offloads: on } => format!("TCP out, a KiB, {} offloads", offloads(on)),
            Self::TcpIn { offloads: on } => format!("TCP in, a KiB, {} offloads", offloads(on)),
            Self::Http { path } => format!("HTTP request of {path}"),
            Self::Boot => "boot until the first answer".to_owned(),
        }
    }
}

/// Measures at a tap.
///
/// # Errors
/// As [`super::bench`].
pub fn measure(
    settings: &Settings,
    echoes: u64,
    profile: bool,
    sink: &mut Sink<'_>,
) -> Result<Vec<Row>, SessionError> {
    let mut rows = Vec::new();
    let transports: &[Transport] = match settings.kind {
        // It has one interface.
        Kind::Microvm => &[settings.transport],
        // Legacy interfaces have split rings only.
        Kind::Pc | Kind::Q35 if settings.layout == Layout::Packed => &[Transport::Modern],
        Kind::Pc | Kind::Q35 => &[Transport::Legacy, Transport::Modern],
    };
    for &transport in transports {
        let machine = |udp| {
            let ipv4 = Ipv4Cidr {
                address: Ipv4Addr::new(10, 9, 0, 15),
                prefix: 16,
            };
            Settings {
                transport,
                udp,
                ipv4: Ipv4Config::Static(ipv4),
                ..settings.clone()
            }
        };
        let prepared = prepare(&machine(UdpWay::Sockets), false, sink)?;
        let (driver, _) = driver_tx(&prepared, Prepared::connect_tap)?;
        for (work, per_unit) in driver.ways() {
            rows.push(Row {
                transport: transport.word(),
                what: What::Driver { work },
                sums: driver.sums,
                per_unit,
                profile: None,
            });
        }
        for way in [UdpWay::Sockets, UdpWay::InPlace] {
            let guest = Bench::start(&machine(way), profile, sink)?;
            if way == UdpWay::Sockets {
                rows.push(guest.boot()?);
            }
            for (outstanding, senders) in ECHOES {
                rows.push(guest.echoes(echoes, way, outstanding, senders)?);
            }
            if way == UdpWay::Sockets {
                guest.streams(true, &mut rows)?;
                for path in ["/", "/stats.json"] {
                    rows.push(guest.http(path)?);
                }
            }
        }
        let features = Some(OFFLOADS.to_owned());
        let without = Settings {
            features,
            ..machine(UdpWay::Sockets)
        };
        Bench::start(&without, profile, sink)?.streams(false, &mut rows)?;
    }
    Ok(rows)
}

/// A guest at a tap.
struct Bench {
    transport: &'static str,
    sockets: HostSockets,
    host: Ipv4Addr,
    guest: Guest,
    up: Up,
    boot: Boot,
    profiler: Option<Profiler>,
    /// Held for its drop, after the guest's.
    _tap: Tap,
}

impl Bench {
    fn start(
        settings: &Settings,
        profile: bool,
        sink: &mut Sink<'_>,
    ) -> Result<Self, SessionError> {
        let mut prepared = prepare(settings, false, sink)?;
        let tap = prepared.connect_tap()?;
        tap.add_addresses(&senders(prepared.plan.host, 1024))?;
        without_ioeventfd(&mut prepared.machine);
        let program = &prepared.machine.program;
        let profiler = Profiler::if_wanted(profile, settings.policy, program, sink)?;
        if let Some(profiler) = &profiler {
            profiler.attach(&mut prepared.machine);
        }
        let guest = prepared.launch()?;
        let sockets = tap.sockets();
        let up = prepared.wait_until_up(&guest, &sockets)?;
        Ok(Self {
            transport: settings.transport.word(),
            sockets,
            host: prepared.plan.host,
            guest,
            up,
            boot: prepared.machine.boot,
            profiler,
            _tap: tap,
        })
    }

    fn row(&self, (sums, counts): (Sums, Counts), what: What) -> Result<Row, SessionError> {
        let profile = self.profiler.as_ref();
        let profile = profile.map(|_| Profile::of(&counts, &self.boot, sums.packets));
        Ok(Row {
            transport: self.transport,
            what,
            sums,
            per_unit: sums.per_packet(),
            profile: profile.transpose()?,
        })
    }

    fn counts(&self) -> Result<Counts, SessionError> {
        let profiler = self.profiler.as_ref();
        profiler.map_or_else(|| Ok(Counts::default()), Profiler::read)
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

    fn status(&self) -> Result<Status, SessionError> {
        self.tell(fetch_status(&self.sockets, self.up.ip(), BOUND))
    }

    /// What `work` costs, with what it costs to ask for reports left out. It is
    /// done twice, first to fill caches.
    fn count(
        &self,
        units: u64,
        mut work: impl FnMut(bool) -> Result<(), SessionError>,
    ) -> Result<(Sums, Counts), SessionError> {
        work(false)?;
        let first = self.status()?;
        let before = self.status()?;
        let counts = self.counts()?;
        work(true)?;
        let counts = self.counts()?.since(&counts);
        let after = self.status()?;
        let asking = Sums::between(&first, &before, 0);
        let sums = Sums::between(&before, &after, units).without(&asking);
        Ok((sums, counts))
    }

    fn boot(&self) -> Result<Row, SessionError> {
        // The first thing that this guest is asked.
        let status = self.status()?;
        let sums = Sums::between(&Status::default(), &status, 1);
        self.row((sums, self.counts()?), What::Boot)
    }

    fn echoes(
        &self,
        count: u64,
        way: UdpWay,
        outstanding: usize,
        from: usize,
    ) -> Result<Row, SessionError> {
        let senders = senders(self.host, from);
        let flood = |count, outstanding| Flood {
            count,
            size: SIZE,
            outstanding,
            patience: Duration::from_secs(5),
            bound: FLOOD_BOUND,
        };
        let mut report = FloodReport::default();
        let counted = self.count(count, |counts| {
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
        self.row(
            counted,
            What::Echo {
                way: way.word(),
                outstanding,
                senders: from,
                lost: report.lost,
            },
        )
    }

    fn streams(&self, offloads: bool, rows: &mut Vec<Row>) -> Result<(), SessionError> {
        let ip = self.up.ip();
        let kib = (TRANSFER >> 10) as u64;
        let bytes = |counts| if counts { TRANSFER } else { TRANSFER / 16 };
        let counted = self.count(kib, |counts| {
            self.tell(self.sockets.tcp_read(ip, bytes(counts), BOUND))
        })?;
        rows.push(self.row(counted, What::TcpOut { offloads })?);
        let counted = self.count(kib, |counts| {
            self.tell(self.sockets.tcp_write(ip, bytes(counts), BOUND))
        })?;
        rows.push(self.row(counted, What::TcpIn { offloads })?);
        Ok(())
    }

    fn http(&self, path: &'static str) -> Result<Row, SessionError> {
        let counted = self.count(REQUESTS, |counts| {
            for _ in 0..if counts { REQUESTS } else { 4 } {
                self.tell(self.sockets.http_get(self.up.ip(), path, BOUND))?;
            }
            Ok(())
        })?;
        self.row(counted, What::Http { path })
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
