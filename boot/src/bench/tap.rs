//! What users have: a tap with the offloads that QEMU offers by default, and the
//! system's network stack at the far end.

use std::net::Ipv4Addr;

use kickpath_abi::config::{Ipv4Cidr, Ipv4Config, Transport, UdpWay};
use kickpath_abi::status::Status;
use serde::Serialize;

use super::load::{Loaded, Measured};
use super::profile::{Counts, Profile};
use super::{PerPacket, Sums, driver_tx, prepare, udp_tx};
use crate::command::Sink;
use crate::qemu::Kind;
use crate::session::{Layout, Prepared, SessionError, Settings};

/// What is asked for, besides the usual: outstanding requests and senders.
const ECHOES: [(usize, usize); 6] = [(1, 1), (32, 1), (256, 1), (32, 8), (32, 64), (32, 1024)];
/// Bytes of a TCP transfer.
const TRANSFER: usize = 16 << 20;
/// HTTP requests.
const REQUESTS: u64 = 200;
/// Senders at most.
const SENDERS: usize = 1024;
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
    /// Datagrams from a socket, the network stack included.
    Datagram {
        /// Content bytes of each.
        size: usize,
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
    /// Datagrams that the guest receives and discards, 32 at a time.
    DatagramsIn {
        /// Content bytes of each.
        size: usize,
        /// Echoes behind them that did not come, and frames that the guest did not take.
        lost: u64,
    },
    /// Datagrams of 512 bytes that the guest's character generator sends, 32 at a time, each
    /// asked for by an empty one.
    DatagramsOut {
        /// Those that did not come.
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
    /// Bytes that the guest echoes by TCP, a KiB there and back; every one is compared.
    TcpEcho,
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
            Self::Datagram { size } => format!("datagram of {size} bytes from a socket"),
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
            Self::DatagramsIn { size, .. } => format!("datagram in, {size} bytes, 32 at a time"),
            Self::DatagramsOut { .. } => "datagram out, 512 bytes, 32 at a time".to_owned(),
            Self::TcpOut { offloads: on } => format!("TCP out, a KiB, {} offloads", offloads(on)),
            Self::TcpIn { offloads: on } => format!("TCP in, a KiB, {} offloads", offloads(on)),
            Self::TcpEcho => "TCP echo, a KiB there and back".to_owned(),
            Self::Http { path } => format!("HTTP request of {path}"),
            Self::Boot => "boot until the first answer".to_owned(),
        }
    }

    /// What was lost, where that is counted.
    pub const fn lost(&self) -> Option<u64> {
        match self {
            Self::Echo { lost, .. }
            | Self::DatagramsIn { lost, .. }
            | Self::DatagramsOut { lost } => Some(*lost),
            _ => None,
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
        let mut alone = |what, sums, per_unit| {
            rows.push(Row {
                transport: transport.word(),
                what,
                sums,
                per_unit,
                profile: None,
            });
        };
        for (work, per_unit) in driver.ways() {
            alone(What::Driver { work }, driver.sums, per_unit);
        }
        for datagrams in udp_tx(&prepared, Prepared::connect_tap)? {
            let what = What::Datagram {
                size: datagrams.size,
            };
            alone(what, datagrams.sums, datagrams.per_packet);
        }
        for way in [UdpWay::Sockets, UdpWay::InPlace] {
            let guest = Loaded::start(&machine(way), SENDERS, profile, sink)?;
            if way == UdpWay::Sockets {
                rows.push(boot(&guest)?);
            }
            for (outstanding, senders) in ECHOES {
                let (measured, report) = guest.echoes(echoes, outstanding, senders)?;
                let what = What::Echo {
                    way: way.word(),
                    outstanding,
                    senders,
                    lost: report.lost,
                };
                rows.push(row(&guest, &measured, echoes, what)?);
            }
            if way == UdpWay::Sockets {
                streams(&guest, true, &mut rows)?;
                for path in ["/", "/stats.json"] {
                    let measured = guest.http(path, REQUESTS)?;
                    rows.push(row(&guest, &measured, REQUESTS, What::Http { path })?);
                }
            }
        }
        let features = Some(OFFLOADS.to_owned());
        let without = Settings {
            features,
            ..machine(UdpWay::Sockets)
        };
        let guest = Loaded::start(&without, SENDERS, profile, sink)?;
        streams(&guest, false, &mut rows)?;
    }
    Ok(rows)
}

fn boot(guest: &Loaded) -> Result<Row, SessionError> {
    // The first thing that this guest is asked.
    let sums = Sums::between(&Status::default(), &guest.status()?, 1);
    line(guest, sums, &guest.counts()?, What::Boot)
}

fn streams(guest: &Loaded, offloads: bool, rows: &mut Vec<Row>) -> Result<(), SessionError> {
    let kib = (TRANSFER >> 10) as u64;
    let out = guest.tcp_out(TRANSFER)?;
    rows.push(row(guest, &out, kib, What::TcpOut { offloads })?);
    let into = guest.tcp_in(TRANSFER)?;
    rows.push(row(guest, &into, kib, What::TcpIn { offloads })?);
    Ok(())
}

fn row(guest: &Loaded, measured: &Measured, units: u64, what: What) -> Result<Row, SessionError> {
    line(guest, measured.sums(units), &measured.counts, what)
}

fn line(guest: &Loaded, sums: Sums, counts: &Counts, what: What) -> Result<Row, SessionError> {
    Ok(Row {
        transport: guest.transport,
        what,
        sums,
        per_unit: sums.per_packet(),
        profile: guest.profile(counts, sums.packets)?,
    })
}
