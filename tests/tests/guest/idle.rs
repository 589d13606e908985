//! What idleness costs, whatever the way to the device and the way to wait for
//! it. The guests idle together, so that the suite waits once.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::guest::Guest;
use kickpath::install::IPROUTE2;
use kickpath::qemu::Kind;
use kickpath::wire::{FarEnd, HostSockets, Plan, Tap};
use kickpath_abi::config::{Ipv4Config, Irq};
use kickpath_tests::{Lab, Spec, Suite, UP, Way, setup};
use serde_json::json;

/// How long the guests have nothing to do.
const TIME: Duration = Duration::from_secs(10);
/// The part of a CPU that QEMU may use meanwhile.
const LIMIT: f64 = 0.03;
const BOUND: Duration = Duration::from_secs(60);

pub fn add(suite: &mut Suite) {
    suite.test("idle::10_seconds_cost_less_than_3_percent_of_a_cpu", || {
        let mut guests = Vec::new();
        for (name, spec) in specs() {
            guests.push((name, Lab::launch(spec)?));
        }
        for (name, lab) in &guests {
            ready(name, lab)
                .map_err(|error| lab.report(&error))
                .context(*name)?;
        }
        let guests: Vec<_> = guests
            .iter()
            .map(|(name, lab)| (*name, &lab.guest))
            .collect();
        check(&guests, TIME)?;
        // It solicits a router three times, 4 s apart, before it is silent (RFC
        // 4861, 6.3.7).
        let alone: Vec<_> = guests
            .into_iter()
            .filter(|(name, _)| *name == ALONE)
            .collect();
        ensure!(!alone.is_empty(), "there is no guest that is alone");
        check(&alone, TIME)
    });
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("idle::four_pairs_cost_less_than_3_percent_of_a_cpu", || {
            setup::setup()?;
            setup::require(&[IPROUTE2])?;
            let sites = [Site::new(Irq::Msix)?, Site::new(Irq::Poll)?];
            for site in &sites {
                site.ready()?;
            }
            let [first, second] = &sites;
            check(&[("msix", &first.guest), ("poll", &second.guest)], TIME)
        });
    });
}

const ALONE: &str = "without a router or a DHCP server";
const LINK_DOWN: &str = "link down";
const LINK_DOWN_POLLED: &str = "link down, polled";

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
        (LINK_DOWN, Spec::pc()),
        (LINK_DOWN_POLLED, irq(Spec::pc(), Irq::Poll)),
    ]
}

/// The guest has served, and from now on it has nothing to do.
fn ready(name: &str, lab: &Lab) -> Result<()> {
    lab.wait_until_up()?;
    lab.check_services()?;
    if [LINK_DOWN, LINK_DOWN_POLLED].contains(&name) {
        let link = json!({ "name": "net0", "up": false });
        lab.guest.qmp("set_link", link)?;
        lab.guest.wait_for_console("the link is down", lab.soon())?;
    }
    Ok(())
}

/// None of these guests may use more than its share of the CPU in this time.
/// That nothing happens for a while is what is tested, so there is no event to
/// wait for.
fn check(guests: &[(&str, &Guest)], time: Duration) -> Result<()> {
    let mut before = Vec::new();
    for (_, guest) in guests {
        before.push(cpu_time(guest.pid())?);
    }
    sleep(time);
    let mut busy = Vec::new();
    for ((name, guest), before) in guests.iter().zip(before) {
        guest.check()?;
        let used = cpu_time(guest.pid())?.saturating_sub(before);
        let share = used.as_secs_f64() / time.as_secs_f64();
        if share >= LIMIT {
            busy.push(format!("{name} {:.1} %", share * 100.0));
        }
    }
    ensure!(
        busy.is_empty(),
        "of a CPU, QEMU used for the guest that is {}",
        busy.join(", for the one that is ")
    );
    Ok(())
}

/// CPU time of a process, all of its threads, user and system.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc(5): the name, in parentheses, may hold anything; utime and stime are
    // the 12th and 13th field behind it.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("no name in /proc/PID/stat")?;
    let mut ticks = 0;
    for field in fields.split(' ').skip(11).take(2) {
        ticks += field.parse::<u64>()?;
    }
    let rate = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    let rate = u64::try_from(rate.context("no CLK_TCK")?)?;
    Ok(Duration::from_micros(ticks * 1_000_000 / rate))
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
            .edit(|machine| machine.cpus = PAIRS)
            .config(move |config| config.irq = irq);
        let (guest, _) = spec.launch_on(tap.net())?;
        let sockets = tap.sockets();
        Ok(Self {
            guest,
            sockets,
            _tap: tap,
        })
    }

    fn ready(&self) -> Result<()> {
        self.guest.wait_for_console(UP, BOUND)?;
        let address = Ipv4Config::FALLBACK.address.into();
        self.sockets.udp_echo(address, 64, BOUND)?;
        self.sockets.tcp_echo(address, 100_000, BOUND)?;
        Ok(())
    }
}
