//! What a guest executes, counted from outside: instructions by the plugin of `--profile`, kicks
//! and interrupts by QEMU's own trace events. A CPU that waits executes nothing, so that waiting is
//! left out by itself.
//!
//! A guest does more than what it is asked for: its timers, and what a connection costs, are in
//! every count. So each work is done once and then twice as long, and the difference is what
//! is reported.

use std::fs;
use std::time::Duration;

use serde::Serialize;

use super::{AtTap, Options, Spread, Way, Which};
use crate::bench::profile::Profiler;
use crate::bench::{FLOOD_BOUND, without_ioeventfd, wrong};
use crate::command::Sink;
use crate::qemu::Trace;
use crate::session::{SessionError, Settings};
use crate::trace::qemu::threads;
use crate::wire::peer::Flood;

/// Content bytes of an echo.
const SIZE: usize = 64;
/// What QEMU says of a kick, and of an interrupt (by `virtio_notify_irqfd` as well).
const KICK: &str = "virtio_queue_notify";
const INTERRUPT: &str = "virtio_notify";

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// UDP echoes of 64 bytes.
    Echo {
        /// Requests on their way at a time.
        outstanding: usize,
    },
    /// A KiB by TCP.
    Tcp {
        /// Which way.
        way: Way,
    },
    /// A request of the first page by HTTP, on a connection of its own.
    Http,
}

impl What {
    const ALL: [Self; 5] = [
        Self::Echo { outstanding: 1 },
        Self::Echo { outstanding: 32 },
        Self::Tcp { way: Way::Out },
        Self::Tcp { way: Way::In },
        Self::Http,
    ];

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Echo { outstanding } => format!("UDP echo, {outstanding} outstanding"),
            Self::Tcp { way: Way::Out } => "TCP out, a KiB".to_owned(),
            Self::Tcp { way: Way::In } => "TCP in, a KiB".to_owned(),
            Self::Http => "HTTP request of the page".to_owned(),
        }
    }
}

/// What one echo, KiB or request costs a guest.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// Executed instructions.
    pub instructions: Spread,
    /// Notifications of the device.
    pub kicks: Spread,
    /// Interrupts that the device sent.
    pub interrupts: Spread,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Row {
    /// What is done.
    pub what: What,
    /// Our guest.
    pub kickpath: Cost,
    /// Linux.
    pub linux: Cost,
}

/// A guest, measured.
pub(super) struct Measured {
    /// In the order of [`What::ALL`].
    pub costs: Vec<Cost>,
    /// The page that it serves.
    pub page: Vec<u8>,
    /// Of a Linux.
    pub release: Option<String>,
    pub command_line: String,
}

/// Both guests side by side.
pub(super) fn rows(ours: Vec<Cost>, theirs: Vec<Cost>) -> Vec<Row> {
    let both = ours.into_iter().zip(theirs);
    let rows = What::ALL.into_iter().zip(both);
    rows.map(|(what, (kickpath, linux))| Row {
        what,
        kickpath,
        linux,
    })
    .collect()
}

/// Boots one and measures it.
pub(super) fn measure(
    which: &Which<'_>,
    settings: &Settings,
    options: Options,
    sink: &mut Sink<'_>,
) -> Result<Measured, SessionError> {
    let program = settings.prepare(false, sink)?.machine.program;
    let profiler = Profiler::new(settings.policy, &program, sink)?;
    let guest = AtTap::start(
        which,
        settings,
        |machine, files| {
            machine.icount = Some(0);
            without_ioeventfd(machine);
            profiler.attach(machine);
            machine.trace = Some(Trace {
                // QEMU complains of a name that it does not know, and of a pattern it does not.
                events: vec![KICK.to_owned(), format!("{INTERRUPT}*")],
                directory: files.path().to_owned(),
            });
        },
        sink,
    )?;
    let counted = Counted { guest, profiler };
    let costs = What::ALL.map(|what| counted.cost(what, options));
    let guest = &counted.guest;
    Ok(Measured {
        costs: costs.into_iter().collect::<Result<_, _>>()?,
        page: guest.page()?,
        release: match which {
            Which::Ours => None,
            Which::Linux(..) => Some(guest.release()?),
        },
        command_line: guest.guest.command_line().to_owned(),
    })
}

struct Counted {
    guest: AtTap,
    profiler: Profiler,
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    instructions: u64,
    kicks: u64,
    interrupts: u64,
}

impl Counted {
    fn cost(&self, what: What, options: Options) -> Result<Cost, SessionError> {
        let units = match what {
            What::Echo { .. } => options.echoes,
            What::Tcp { .. } => options.kib,
            What::Http => options.requests,
        };
        // Fills caches, tables and buffers.
        self.work(what, units)?;
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            let first = self.counts()?;
            self.work(what, units)?;
            let second = self.counts()?;
            self.work(what, 2 * units)?;
            rounds.push([first, second, self.counts()?]);
        }
        let spread = |of: fn(&Counts) -> u64| {
            Spread::of(rounds.iter().map(|counts| {
                let [first, second, third] = counts.each_ref().map(|c| of(c) as f64);
                ((third - second) - (second - first)) / units as f64
            }))
        };
        Ok(Cost {
            instructions: spread(|counts| counts.instructions),
            kicks: spread(|counts| counts.kicks),
            interrupts: spread(|counts| counts.interrupts),
        })
    }

    fn work(&self, what: What, units: u64) -> Result<(), SessionError> {
        let guest = &self.guest;
        match what {
            What::Echo { outstanding } => {
                let flood = Flood {
                    count: units,
                    size: SIZE,
                    outstanding,
                    patience: Duration::from_secs(20),
                    bound: FLOOD_BOUND,
                };
                let done = guest
                    .sockets
                    .udp_echo_flood(guest.address, &[guest.host], flood);
                let report = guest.tell(done)?;
                match report.received == units && !report.cut_short {
                    true => Ok(()),
                    false => Err(wrong(&guest.guest, &format!("echoes: {report:?}"))),
                }
            }
            What::Tcp { way } => guest.transfer(way, (units as usize) << 10),
            What::Http => (0..units).try_for_each(|_| guest.page().map(drop)),
        }
    }

    fn counts(&self) -> Result<Counts, SessionError> {
        let mut counts = Counts {
            instructions: self.profiler.read()?.instructions(),
            ..Counts::default()
        };
        for file in Trace::files(self.guest.files.path())?.values() {
            counts.add(&fs::read_to_string(file)?);
        }
        Ok(counts)
    }
}

impl Counts {
    /// Adds what a log of QEMU's says.
    fn add(&mut self, log: &str) {
        for event in log.lines().filter_map(threads::event) {
            match event.split_once(' ').map_or(event, |(name, _)| name) {
                KICK => self.kicks += 1,
                name if name.starts_with(INTERRUPT) => self.interrupts += 1,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kicks_and_interrupts_are_told_from_the_rest_of_a_log() {
        let mut counts = Counts::default();
        counts.add(
            "7@1.000001:virtio_queue_notify vdev 0x1 n 1 vq 0x2\n\
             7@1.000002:virtio_notify vdev 0x1 vq 0x2\n\
             8@1.000003:virtio_notify_irqfd_deferred_fn vdev 0x1 vq 0x2\n\
             7@1.000004:virtio_notify_config vdev 0x1\n\
             a message: of another kind\n\
             2026-11-29T01:17:55Z virtio_queue_notify vdev 0x1 n 0 vq 0x3\n",
        );
        assert_eq!((counts.kicks, counts.interrupts), (2, 3));
    }
}
