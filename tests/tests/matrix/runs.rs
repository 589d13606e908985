//! The guests of one way, which all features take together.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use etherparse::PacketBuilder;
use kickpath::guest::{Cause, Guest};
use kickpath::install::IPROUTE2;
use kickpath::qemu::GUEST_MAC;
use kickpath::session::fetch_status;
use kickpath::wire::peer::{PEER_MAC, PeerOptions};
use kickpath::wire::{Dgram, FarEnd, Peer, Plan, Recorder, Tap};
use kickpath_abi::config::Ipv4Config;
use kickpath_abi::status::Status;
use kickpath_tests::{Lab, Spec, UP, setup};
use virtio_net::net::Features;

use crate::table::{Cell, Results};
use crate::{IN_ORDER_SINCE, Way};

/// The bound for what takes seconds at most.
const BOUND: Duration = Duration::from_secs(30);

/// UDP echoes in each guest, one after the other.
const ECHOES: usize = 200;

/// Resets of single queues, for `RING_RESET`.
const RESETS: u32 = 6;

const MTU: u32 = 9000;
const SPEED: u32 = 25_000;

/// QEMU offers these only where the far end can do the work, or has several
/// queues: at a tap.
const AT_A_TAP: Features = Features::OFFLOADS
    .union(Features::SEVERAL_PAIRS)
    .union(Features::HASH_REPORT);

/// All that a way says.
pub fn results(way: &Way) -> Result<Results> {
    let qemu = qemu_version()?;
    let cells = cells(way);
    for (feature, cell) in &cells {
        if let Cell::Failed(error) = cell {
            eprintln!("matrix: {}, {feature}: {error}", way.title);
        }
    }
    Ok(Results {
        way: way.title,
        qemu,
        cells,
    })
}

fn qemu_version() -> Result<String> {
    let output = Command::new(&setup::setup()?.qemu)
        .arg("--version")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .split_whitespace()
        .skip_while(|word| *word != "version");
    let version = version.into_iter().nth(1);
    Ok(version.context("QEMU tells no version")?.to_owned())
}

fn cells(way: &Way) -> Vec<(String, Cell)> {
    let all = run(way, Features::empty());
    let mut cells: Vec<_> = Features::all()
        .iter()
        .zip(Features::all().names())
        .map(|(feature, name)| {
            let cell = match &all {
                Ok(all) => cell(way, all, feature),
                Err(error) => Cell::Failed(format!("with every feature: {error:#}")),
            };
            (format!("`{name}`"), cell)
        })
        .collect();
    let none = run(way, Features::IMPLEMENTED - needed(way));
    let none = none.map_or_else(|error| Cell::Failed(format!("{error:#}")), |_| Cell::Pass);
    cells.push(("all refused".to_owned(), none));
    cells
}

/// What cannot be refused: the guest would not drive the device, or it would be
/// another column.
fn needed(way: &Way) -> Features {
    if way.packed {
        Features::VERSION_1 | Features::RING_PACKED
    } else {
        Features::VERSION_1
    }
}

fn cell(way: &Way, all: &Status, feature: Features) -> Cell {
    if feature == Features::RING_PACKED && !way.packed {
        return Cell::Other;
    }
    let is_offered = features(&all.device.features_offered).contains(feature);
    if !Features::IMPLEMENTED.contains(feature) {
        // Traffic has passed without it.
        return match is_offered {
            true => Cell::Refused,
            false => Cell::NotOffered,
        };
    }
    if AT_A_TAP.contains(feature)
        && let Some(reason) = setup::lacks_tap()
    {
        return Cell::Skipped(reason);
    }
    let result = if feature == Features::MQ {
        several_pairs(way, [Features::RSS, Features::SEVERAL_PAIRS])
    } else if feature == Features::ACCESS_PLATFORM && way.is_version_1() {
        access_platform(way)
    } else if is_not_done(all).contains(feature) {
        return Cell::NotDone;
    } else if !is_offered {
        return Cell::NotOffered;
    } else if feature == Features::RSS {
        several_pairs(way, [Features::MQ, Features::empty()])
    } else {
        on_and_off(way, feature)
    };
    match result {
        Ok(()) => Cell::Pass,
        Err(error) => Cell::Failed(format!("{error:#}")),
    }
}

/// With every feature, this one too, traffic has passed already ([`run`]).
fn on_and_off(way: &Way, feature: Features) -> Result<()> {
    if feature == Features::RING_RESET {
        reset_queues(way)?;
    }
    // Without VERSION_1 there is no modern interface.
    if feature != Features::VERSION_1 {
        run(way, feature).context("refused")?;
    }
    Ok(())
}

/// What a device offers and does not do: the driver has tried it, and does not
/// take it.
fn is_not_done(all: &Status) -> Features {
    let offered = features(&all.device.features_offered);
    let negotiated = features(&all.device.features_negotiated);
    Features::RING_RESET & (offered - negotiated)
}

/// A device that demands it, which QEMU's does only if it is told to. (A driver
/// that refuses it does not get the device.)
fn access_platform(way: &Way) -> Result<()> {
    let spec = offering(way.spec()).property("iommu_platform", "on");
    let status = traffic_of(spec, Features::SEVERAL_PAIRS)?;
    let negotiated = features(&status.device.features_negotiated);
    ensure!(
        negotiated.contains(Features::ACCESS_PLATFORM),
        "{negotiated}"
    );
    Ok(())
}

/// The properties of QEMU's device that it does not have by default.
fn offering(spec: Spec) -> Spec {
    let (major, minor) = IN_ORDER_SINCE;
    // Without a set-up there is no guest either.
    let spec = match setup::qemu_is_at_least(major, minor) {
        Ok(true) => spec.property("in_order", "on"),
        _ => spec,
    };
    spec.property("host_mtu", "9000")
        .property("speed", "25000")
        .property("duplex", "full")
        .property("rss", "on")
        .property("hash", "on")
}

/// Boots a guest that refuses these features and no others: exactly what is
/// left is negotiated, is seen to work or not to, and traffic passes.
fn run(way: &Way, refused: Features) -> Result<Status> {
    // One CPU uses one pair of queues.
    traffic_of(
        refusing(offering(way.spec()), refused),
        refused | Features::SEVERAL_PAIRS,
    )
}

/// What a guest reports that was given some traffic.
fn traffic_of(spec: Spec, refused: Features) -> Result<Status> {
    let site = Site::new(spec, 1)?;
    site.run(|| {
        site.traffic()?;
        let status = site.status()?;
        check_negotiated(&status, refused | site.not_taken())?;
        Ok(status)
    })
}

fn refusing(spec: Spec, refused: Features) -> Spec {
    let names: Vec<_> = refused.names().map(str::to_lowercase).collect();
    spec.config(move |config| config.features_off = names.join(","))
}

fn check_negotiated(status: &Status, refused: Features) -> Result<()> {
    let offered = features(&status.device.features_offered);
    let negotiated = features(&status.device.features_negotiated);
    let expected = (offered & (Features::IMPLEMENTED - refused)).without_dangling();
    ensure!(
        negotiated == expected,
        "negotiated is '{negotiated}', expected '{expected}'"
    );
    for (feature, is_seen) in seen(status) {
        ensure!(
            is_seen == negotiated.intersects(feature),
            "{feature} is negotiated: {}; it is seen at work: {is_seen}",
            negotiated.intersects(feature)
        );
    }
    Ok(())
}

/// What the guest's report shows of features at work, of several any one.
fn seen(status: &Status) -> [(Features, bool); 11] {
    let (device, counters) = (&status.device, &status.counters);
    let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let has_control_queue = status.queues.iter().any(|queue| queue.name == "control");
    [
        (Features::MAC, device.mac == mac),
        (Features::MTU, device.mtu == MTU),
        (Features::SPEED_DUPLEX, device.speed_mbps == Some(SPEED)),
        (Features::CTRL_VQ, has_control_queue),
        (Features::SEVERAL_PAIRS, !status.pairs.is_empty()),
        (
            Features::RSS,
            status.pairs.iter().any(|pair| pair.rss_entries > 0),
        ),
        (Features::HASH_REPORT, counters.rx_hashed > 0),
        (Features::CSUM, counters.tx_checksum_offloaded > 0),
        (Features::GUEST_CSUM, counters.rx_checksum_valid > 0),
        // smoltcp makes the large segments over IPv4, the driver those over
        // IPv6.
        (
            Features::HOST_TSO4,
            counters.tx_segmented > counters.tx_coalesced,
        ),
        (Features::HOST_TSO6, counters.tx_coalesced > 0),
    ]
}

/// The names of the report.
fn features(names: &[String]) -> Features {
    names
        .iter()
        .filter_map(|name| Features::by_name(name))
        .collect()
}

/// Two CPUs with a pair of queues each, unless all that gives them is refused.
fn several_pairs(way: &Way, refused: [Features; 2]) -> Result<()> {
    for refused in refused {
        let irq = way.irq;
        let spec = refusing(offering(way.spec()), refused)
            .config(move |config| config.irq = irq)
            .edit(|machine| machine.cpus = 2);
        let site = Site::new(spec, 2)?;
        site.run(|| {
            site.traffic()?;
            let status = site.status()?;
            check_negotiated(&status, refused | site.not_taken())?;
            for pair in &status.pairs {
                ensure!(
                    pair.counters.rx_packets > 0 && pair.counters.tx_packets > 0,
                    "no traffic on pair {}: {:?}",
                    pair.number,
                    pair.counters
                );
            }
            Ok(())
        })
        .with_context(|| format!("two CPUs, refused: '{refused}'"))?;
    }
    Ok(())
}

/// Each queue reset alone while requests come.
fn reset_queues(way: &Way) -> Result<()> {
    let spec = way
        .spec()
        .no_router()
        .config(|config| config.reset_queues = RESETS);
    let lab = Lab::launch(spec)?;
    let work = || {
        lab.wait_until_up()?;
        let mut request = Vec::new();
        PacketBuilder::ethernet2(PEER_MAC, GUEST_MAC)
            .ipv4([10, 0, 2, 2], lab.ipv4().octets(), 64)
            .udp(4321, 7)
            .write(&mut request, &[0x5a; 400])?;
        let done = format!("reopened {RESETS} times");
        let deadline = Instant::now() + BOUND;
        loop {
            for _ in 0..32 {
                lab.peer.send_frame(&request);
            }
            let lines = lab.guest.console_since(0);
            if lines.iter().any(|line| line.text.contains(&done)) {
                break;
            }
            let mut errors = lines
                .iter()
                .filter_map(|line| line.text.split_once("error: "));
            if let Some((_, error)) = errors.next() {
                bail!("{error}");
            }
            lab.guest.check()?;
            ensure!(
                Instant::now() < deadline,
                "no {RESETS} resets of a queue within {BOUND:?}"
            );
        }
        // The guest may have to ask for the host's hardware address again.
        lab.status()?;
        lab.check_services()?;
        lab.check_health()
    };
    work().map_err(|error| anyhow!("{error:#}\n{}", lab.report(&error)))
}

/// The IPv6 address on the link that a guest with this hardware address gives
/// itself (RFC 4291, appendix A).
fn link_local(mac: &str) -> Result<IpAddr> {
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    let [a, b, c, d, e, f] = bytes;
    let prefix = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];
    let id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let mut address = [0; 16];
    address[..8].copy_from_slice(&prefix);
    address[8..].copy_from_slice(&id);
    Ok(IpAddr::from(address))
}

/// A guest at a tap, or where there is none at a datagram cable. The guest goes
/// first, the namespace last.
struct Site {
    guest: Guest,
    far: Box<dyn FarEnd>,
    _tap: Option<Tap>,
}

impl Site {
    fn new(spec: Spec, queues: u16) -> Result<Self> {
        setup::setup()?;
        let plan = Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?;
        let site = if setup::lacks_tap().is_none() {
            setup::require(&[IPROUTE2])?;
            let tap = Tap::new(&plan, queues)?;
            let (guest, _) = spec.launch_on(tap.net())?;
            Self {
                guest,
                far: Box::new(tap.sockets()),
                _tap: Some(tap),
            }
        } else {
            let wire = Dgram::new(Recorder::new(None)?)?;
            let net = wire.net();
            let options = PeerOptions {
                dhcp: false,
                router: false,
            };
            let peer = Peer::new(wire, plan, options)?;
            let (guest, _) = spec.launch_on(net)?;
            Self {
                guest,
                far: Box::new(peer),
                _tap: None,
            }
        };
        site.guest.wait_for_console(UP, BOUND)?;
        Ok(site)
    }

    fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        work().map_err(|error| {
            let cause = Cause::Other(format!("{error:#}"));
            anyhow!("{error:#}\n{}", self.guest.failure(cause))
        })
    }

    /// What the guest says that the device offers and does not do.
    fn not_taken(&self) -> Features {
        const LINE: &str = "RING_RESET is offered and not taken: queue 0: the device does not";
        let lines = self.guest.console_since(0);
        let mut features = Features::empty();
        features.set(
            Features::RING_RESET,
            lines.iter().any(|line| line.text.contains(LINE)),
        );
        features
    }

    fn address(&self) -> IpAddr {
        Ipv4Config::FALLBACK.address.into()
    }

    fn status(&self) -> Result<Status> {
        fetch_status(self.far.as_ref(), self.address(), BOUND).context("the guest's report")
    }

    /// Every answer is compared with what was sent.
    fn traffic(&self) -> Result<()> {
        let address = self.address();
        for size in (0..ECHOES).map(|number| 1 + number * 1471 / ECHOES) {
            self.far.udp_echo(address, size, BOUND)?;
        }
        // By now every CPU of the guest knows the host. One that does not yet
        // drops a ping, and asks.
        let report = self.far.ping(address, 3, 56, BOUND)?;
        ensure!(
            report.lost() == 0 && report.corrupted == 0,
            "3 pings: {report:?}"
        );
        self.far.tcp_echo(address, 256 << 10, BOUND)?;
        let link_local = link_local(&self.status()?.device.mac)?;
        self.far.tcp_echo(link_local, 256 << 10, BOUND)?;
        let counters = self.status()?.counters;
        ensure!(
            counters.rx_errors == 0 && counters.tx_errors == 0,
            "the guest has counted errors of the device: {counters:?}"
        );
        ensure!(self.guest.exit().is_none(), "QEMU has ended");
        Ok(())
    }
}
