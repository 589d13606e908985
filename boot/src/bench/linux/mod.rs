//! `bench --guest linux`: our guest and Debian's kernel, side by side in one run.
//!
//! Both are at a tap with the offloads that QEMU offers by default, and the same clients ask them.
//! What they execute, and how often they kick and are interrupted, is counted from outside, the
//! same for both ([`count`]). Time is measured in pairs ([`pairs`]).

pub mod count;
pub mod pairs;
mod table;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use kickpath_abi::config::{Ipv4Cidr, Ipv4Config, LogLevel, Transport};
use serde::Serialize;

use super::wrong;
use crate::accel::{AccelChoice, Decision};
use crate::command::{Progress, Sink};
use crate::doctor;
use crate::guest::Guest;
use crate::linux::initramfs::Entry;
use crate::linux::{GUEST, Linux};
use crate::linux_guest::{self, RELEASE, Service};
use crate::qemu::{Accel, Machine};
use crate::scratch::Scratch;
use crate::session::{Mismatch, NetChoice, SessionError, Settings, UP};
use crate::terminal::Story;
use crate::wire::{FarEnd, HostSockets, Tap, WireError};
use count::Row;
use pairs::Times;

/// How long a Linux whose instructions are counted may take to boot on a busy host.
const BOOT_BOUND: Duration = Duration::from_secs(600);
/// How long one piece of work may take.
const WORK_BOUND: Duration = Duration::from_secs(300);

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How often each cost is measured, and how many pairs of transfers are timed each way.
    pub rounds: usize,
    /// UDP echoes of the shorter of two measurements.
    pub echoes: u64,
    /// KiB of the shorter transfer by TCP.
    pub kib: u64,
    /// HTTP requests of the shorter series.
    pub requests: u64,
    /// MiB of a transfer that is timed.
    pub mib: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 9,
            echoes: 500,
            kib: 16 << 10,
            requests: 20,
            mib: 64,
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The release of the Linux kernel, such as `6.1.0-48-cloud-amd64`.
    pub linux: String,
    /// The interface of both devices.
    pub transport: &'static str,
    /// The command lines of QEMU, ours and Linux's, while instructions are counted.
    pub command_lines: [String; 2],
    /// What is executed per echo, KiB or request.
    pub counts: Vec<Row>,
    /// TCP in time.
    pub times: Times,
}

/// Several measurements of one quantity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of these values; of none it is 0.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let at = |place: usize| values.get(place).copied().unwrap_or_default();
        let median = match values.len() {
            length if length > 0 && length.is_multiple_of(2) => (at(middle - 1) + at(middle)) / 2.0,
            _ => at(middle),
        };
        Self {
            median,
            least: at(0),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

/// One of the two.
enum Which<'a> {
    Ours,
    /// With the page that it serves.
    Linux(&'a Linux, Vec<u8>),
}

/// A guest that serves at a tap.
struct AtTap {
    guest: Guest,
    address: Ipv4Addr,
    /// The host's end.
    host: Ipv4Addr,
    sockets: HostSockets,
    /// Held for their drop, after the guest's.
    _tap: Tap,
    files: Scratch,
}

impl AtTap {
    /// Starts one, on a machine that `edit` changes when it has its network device.
    fn start(
        which: &Which<'_>,
        settings: &Settings,
        edit: impl FnOnce(&mut Machine, &Scratch),
        sink: &mut Sink<'_>,
    ) -> Result<Self, SessionError> {
        let mut settings = settings.clone();
        if let Which::Linux(linux, _) = which {
            settings.kernel = Some(linux.kernel());
        }
        let mut prepared = settings.prepare(false, sink)?;
        let files = Scratch::new("beside-linux")?;
        let (machine, plan) = (&mut prepared.machine, prepared.plan);
        if let Which::Linux(linux, page) = which {
            let page = Entry::text("www/index.html", page.clone());
            linux_guest::boot(machine, files.path(), linux, &plan, &Service::ALL, [page])?;
        }
        let tap = prepared.connect_tap()?;
        if matches!(which, Which::Linux(..)) {
            linux_guest::tell_device(&mut prepared.machine, &settings);
        }
        edit(&mut prepared.machine, &files);
        let guest = prepared.launch()?;
        guest.wait_for_console(UP, BOOT_BOUND)?;
        Ok(Self {
            guest,
            address: plan.guest.address,
            host: plan.host,
            sockets: tap.sockets(),
            _tap: tap,
            files,
        })
    }

    fn ip(&self) -> IpAddr {
        self.address.into()
    }

    /// The release of a Linux.
    fn release(&self) -> Result<String, SessionError> {
        let line = self.guest.wait_for_console(RELEASE, WORK_BOUND)?;
        let release = line.text.split_once(RELEASE).map(|(_, release)| release);
        Ok(release.unwrap_or_default().trim().to_owned())
    }

    fn tell<T>(&self, result: Result<T, WireError>) -> Result<T, SessionError> {
        result.map_err(|error| {
            // A guest that stopped is the better explanation.
            let stopped = self.guest.check().err();
            stopped.map_or_else(
                || wrong(&self.guest, &error.to_string()),
                SessionError::from,
            )
        })
    }

    /// So many bytes by TCP, out of the guest or into it.
    fn transfer(&self, way: Way, bytes: usize) -> Result<(), SessionError> {
        self.tell(match way {
            Way::Out => self.sockets.tcp_read(self.ip(), bytes, WORK_BOUND),
            Way::In => self.sockets.tcp_write(self.ip(), bytes, WORK_BOUND),
        })
    }

    /// The first page, by HTTP.
    fn page(&self) -> Result<Vec<u8>, SessionError> {
        let answer = self.tell(self.sockets.http_get(self.ip(), "/", WORK_BOUND))?;
        match answer.status {
            200 => Ok(answer.body),
            other => Err(wrong(&self.guest, &format!("GET /: status {other}"))),
        }
    }
}

/// Which way bytes go, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The guest sends.
    Out,
    /// The guest receives.
    In,
}

impl Way {
    /// Its name.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// Refuses what cannot be compared.
///
/// # Errors
/// The option.
pub fn check(settings: &Settings) -> Result<(), Mismatch> {
    linux_guest::check(settings)?;
    settings.check_with(NetChoice::Tap)
}

/// Measures both; tells `story`, where there is one, the results.
///
/// # Errors
/// No root, no Linux to be had, a guest that does not come up or stops.
pub fn bench<W: Write>(
    settings: &Settings,
    options: Options,
    mut story: Option<&mut Story<W>>,
    sink: &mut Sink<'_>,
) -> Result<Report, SessionError> {
    check(settings)?;
    Tap::check_rights()?;
    let accel = Decision::new(settings.accel, &doctor::kvm())?;
    if let Accel::Kvm { emulated: true } = accel.accel {
        return Err(Mismatch::Decided {
            option: "--accel kvm",
            why: "this machine's KVM emulates every instruction, and a Linux would take most of \
                  an hour to boot",
        }
        .into());
    }
    let linux = Linux::get(GUEST, settings.policy, sink)?;
    let address = Ipv4Cidr {
        address: Ipv4Addr::new(10, 9, 0, 15),
        prefix: 16,
    };
    let settings = Settings {
        // Our guest would take the legacy interface of a device that has both, Linux the other one.
        transport: match settings.transport {
            Transport::Legacy => Transport::Legacy,
            _ => Transport::Modern,
        },
        ipv4: Ipv4Config::Static(address),
        log: LogLevel::Info,
        ..settings.clone()
    };
    let counted = Settings {
        accel: AccelChoice::Tcg,
        ..settings.clone()
    };
    sink(Progress::Step("Counting what our guest executes"));
    let ours = count::measure(&Which::Ours, &counted, options, sink)?;
    sink(Progress::Step("Counting what Linux executes"));
    let theirs = Which::Linux(&linux, ours.page.clone());
    let theirs = count::measure(&theirs, &counted, options, sink)?;
    let release = theirs.release.unwrap_or_default();
    let counts = count::rows(ours.costs, theirs.costs);
    if let Some(story) = &mut story {
        table::counts(story, &release, settings.transport, &counts)?;
    }
    let both = [Which::Ours, Which::Linux(&linux, ours.page)];
    let times = pairs::measure(&both, &settings, accel, options, sink)?;
    if let Some(story) = &mut story {
        table::times(story, &times)?;
    }
    Ok(Report {
        linux: release,
        transport: settings.transport.word(),
        command_lines: [ours.command_line, theirs.command_line],
        counts,
        times,
    })
}

/// How long `work` takes.
fn timed(work: impl FnOnce() -> Result<(), SessionError>) -> Result<Duration, SessionError> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        let spread = |values: &[f64]| {
            let Spread {
                median,
                least,
                most,
            } = Spread::of(values.iter().copied());
            (least, median, most)
        };
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (1.0, 2.5, 4.0));
        assert_eq!(spread(&[5.0]), (5.0, 5.0, 5.0));
        assert_eq!(spread(&[]), (0.0, 0.0, 0.0));
    }
}
