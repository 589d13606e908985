//! What idleness costs, whatever the way to the device and the way to wait for
//! it. The guests idle together, so that the suite waits once.
//!
//! QEMU counts the instructions of guests that run under `-icount`, exactly. A guest wakes
//! up by its own timers, and a busy host makes that later, never more often: so what is
//! counted in a time does not grow with the host's load.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kickpath::guest::{Cause, Guest};
use kickpath::install::IPROUTE2;
use kickpath::qemu::{Kind, Machine};
use kickpath::wire::{FarEnd, HostSockets, Plan, Tap};
use kickpath_abi::config::{Ipv4Config, Irq};
use kickpath_tests::{Lab, Spec, Suite, UP, Way, setup};
use serde_json::{Value, json};

/// How long the guests have nothing to do.
const TIME: Duration = Duration::from_secs(10);
/// Instructions a second that all CPUs of a guest may execute meanwhile. One CPU that waits for
/// interrupts takes some hundreds for each time that it wakes up; one that polls does so a
/// thousand times a second.
const LIMIT: f64 = 30_000.0;
const LIMIT_POLLED: f64 = 2e6;
const BOUND: Duration = Duration::from_secs(60);

pub fn add(suite: &mut Suite) {
    suite.test("idle::10_seconds_take_few_instructions", || {
        let mut guests = Vec::new();
        for (name, spec) in specs() {
            let lab = Lab::launch(spec.edit(counting))?;
            guests.push((name, lab));
        }
        for (name, lab) in &guests {
            let ready = lab.wait_until_up().and_then(|()| lab.check_services());
            ready.map_err(|error| lab.report(&error)).context(*name)?;
        }
        let links_down = |up: bool| -> Result<()> {
            let mut down = guests.iter().filter(|(name, _)| LINK_DOWN.contains(name));
            down.try_for_each(|(_, lab)| set_link(lab, up))
        };
        let counted: Vec<_> = guests
            .iter()
            .map(|(name, lab)| Idler {
                name,
                polls: lab.machine().config.irq == Irq::Poll,
                guest: &lab.guest,
            })
            .collect();
        links_down(false)?;
        check(&counted)?;
        links_down(true)?;
        // It solicits a router three times, 4 s apart, before it is silent (RFC
        // 4861, 6.3.7).
        let alone: Vec<_> = counted
            .into_iter()
            .filter(|guest| guest.name == ALONE)
            .collect();
        ensure!(!alone.is_empty(), "there is no guest that is alone");
        check(&alone)?;
        for (name, lab) in &guests {
            let serves = lab.status().and_then(|_| lab.check_health());
            serves.map_err(|error| lab.report(&error)).context(*name)?;
        }
        Ok(())
    });
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("idle::four_pairs_take_few_instructions", || {
            setup::setup()?;
            setup::require(&[IPROUTE2])?;
            let sites = [Site::new(Irq::Msix)?, Site::new(Irq::Poll)?];
            for site in &sites {
                site.ready()?;
            }
            let [first, second] = &sites;
            check(&[first.idler("msix", false), second.idler("poll", true)])?;
            sites.iter().try_for_each(Site::ready)
        });
    });
}

const ALONE: &str = "without a router or a DHCP server";
const LINK_DOWN: [&str; 2] = ["link down", "link down, polled"];

fn specs() -> Vec<(&'static str, Spec)> {
    let irq = |spec: Spec, irq: Irq| spec.config(move |config| config.irq = irq);
    let pc = |way: Way| Spec::pc().over(way);
    vec![
        (ALONE, Spec::pc().dhcp(false).no_router()),
        ("legacy", pc(Way::Legacy)),
        ("modern", pc(Way::Modern)),
        ("modern, kicked by a port", pc(Way::ModernPortNotify)),
        ("virtio-mmio version 1", pc(Way::MmioV1)),
        ("virtio-mmio version 2", pc(Way::MmioV2)),
        ("q35", Spec::new(Kind::Q35)),
        ("one shared vector", irq(Spec::pc(), Irq::MsixShared)),
        ("INTx", irq(Spec::pc(), Irq::Intx)),
        ("polled", irq(Spec::pc(), Irq::Poll)),
        ("virtio-mmio, polled", irq(pc(Way::MmioV2), Irq::Poll)),
        ("four CPUs", Spec::pc().edit(|machine| machine.cpus = 4)),
        (LINK_DOWN[0], Spec::pc()),
        (LINK_DOWN[1], irq(Spec::pc(), Irq::Poll)),
    ]
}

/// A guest that has nothing to do.
struct Idler<'a> {
    name: &'static str,
    /// Whether it looks for work by itself.
    polls: bool,
    guest: &'a Guest,
}

impl Idler<'_> {
    /// The instructions that its CPUs have executed since it was started.
    fn instructions(&self) -> Result<u64> {
        let answer = self.guest.qmp("query-replay", Value::Null)?;
        let count = answer["icount"].as_u64();
        count.with_context(|| format!("{}: no count in {answer}", self.name))
    }
}

/// None of these guests may execute more instructions than its share in this time. That nothing
/// happens for a while is what is tested, so there is no event to wait for.
fn check(guests: &[Idler]) -> Result<()> {
    let mut before = Vec::new();
    for guest in guests {
        before.push((Instant::now(), guest.instructions()?));
    }
    sleep(TIME);
    let mut busy = Vec::new();
    for (guest, (since, before)) in guests.iter().zip(before) {
        let instructions = guest.instructions()? - before;
        let a_second = instructions as f64 / since.elapsed().as_secs_f64();
        eprintln!("idle: {}: {a_second:.0} instructions a second", guest.name);
        let limit = if guest.polls { LIMIT_POLLED } else { LIMIT };
        if a_second >= limit {
            busy.push(format!("{}: {a_second:.0} of {limit}", guest.name));
        }
        ensure!(instructions > 0, "{}: it stands still", guest.name);
    }
    ensure!(
        busy.is_empty(),
        "instructions a second without anything to do: {}",
        busy.join(", ")
    );
    Ok(())
}

/// QEMU counts the instructions.
fn counting(machine: &mut Machine) {
    machine.icount = Some(0);
}

/// Takes the link down or up, and waits until the guest says so.
fn set_link(lab: &Lab, up: bool) -> Result<()> {
    let arguments = json!({ "name": "net0", "up": up });
    lab.guest.qmp("set_link", arguments)?;
    let said = if up {
        "the link is up"
    } else {
        "the link is down"
    };
    lab.guest.wait_for_console(said, lab.soon())?;
    Ok(())
}

/// Four CPUs, each with a pair of queues, at a tap device. The guest goes
/// first.
struct Site {
    guest: Guest,
    sockets: HostSockets,
    _tap: Tap,
}

impl Site {
    fn new(irq: Irq) -> Result<Self> {
        const PAIRS: u8 = 4;
        let plan = Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?;
        let tap = Tap::new(&plan, PAIRS.into())?;
        let spec = Spec::pc()
            .edit(|machine| {
                machine.cpus = PAIRS;
                counting(machine);
            })
            .config(move |config| config.irq = irq);
        let (guest, _) = spec.launch_on(tap.net())?;
        let sockets = tap.sockets();
        Ok(Self {
            guest,
            sockets,
            _tap: tap,
        })
    }

    fn idler(&self, name: &'static str, polls: bool) -> Idler<'_> {
        let guest = &self.guest;
        Idler { name, polls, guest }
    }

    fn ready(&self) -> Result<()> {
        self.guest.wait_for_console(UP, BOUND)?;
        let address = Ipv4Config::FALLBACK.address.into();
        let udp = self.sockets.udp_echo(address, 64, BOUND);
        let echoes = udp.and_then(|_| self.sockets.tcp_echo(address, 100_000, BOUND));
        match echoes {
            Ok(_) => Ok(()),
            Err(error) => Err(self.guest.failure(Cause::Other(error.to_string())).into()),
        }
    }
}
