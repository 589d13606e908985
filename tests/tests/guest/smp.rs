//! Several CPUs: they are started, the end of any of them is the guest's, and
//! with a tap device each has a pair of queues.

use std::net::IpAddr;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::guest::Guest;
use kickpath::install::{IPROUTE2, PING};
use kickpath::qemu::Kind;
use kickpath::session::fetch_status;
use kickpath::wire::{FarEnd, HostSockets, Plan, Tap};
use kickpath_abi::config::{Ipv4Config, SelfTest};
use kickpath_tests::{Spec, Suite, UP, Way, setup};

use crate::faults::{expect_failure, expect_on_console};

/// The end of any CPU is the guest's.
pub fn add_faults(suite: &mut Suite) {
    suite.launch(
        "smp::an_xapic_starts_cpus_too",
        machine(Kind::Pc, 2)
            .edit(|machine| machine.cpu = Some("qemu64,-x2apic".into()))
            .config(|config| config.selftest = SelfTest::PanicOther),
        |lab| expect_failure(lab, &["2 CPUs", "on CPU 1"]),
    );
    let faults: [(&str, SelfTest, &[&str]); 3] = [
        ("a_panic", SelfTest::PanicOther, &["panicked at"]),
        (
            "a_page_fault",
            SelfTest::PageFaultOther,
            &["exception 14 #PF", "no page is mapped", "rip ", "cr2 "],
        ),
        (
            "a_stack_overflow",
            SelfTest::StackOverflowOther,
            &["exception 8 #DF", "guard page of the main stack", "rip "],
        ),
    ];
    for (name, selftest, expected) in faults {
        let name = format!("smp::{name}_on_another_cpu_ends_the_guest_with_a_report");
        let spec = machine(Kind::Pc, 3).config(move |config| config.selftest = selftest);
        suite.launch(&name, spec, move |lab| {
            expect_failure(lab, expected)?;
            expect_on_console(lab, &["3 CPUs", "on CPU 2"])
        });
    }
    suite.launch(
        "smp::a_fault_on_another_cpu_needs_one",
        Spec::pc().config(|config| config.selftest = SelfTest::PanicOther),
        |lab| expect_failure(lab, &["needs a second CPU"]),
    );
}

pub fn add(suite: &mut Suite) {
    let way = suite.way();
    for &kind in way.kinds() {
        for cpus in [2, 4] {
            let name = format!("smp::{cpus}_cpus_on_{kind}");
            suite.guest(&name, machine(kind, cpus), move |lab| {
                expect_on_console(lab, &[&format!("{cpus} CPUs")])?;
                lab.check_services()
            });
        }
    }
    suite.needs(setup::lacks_tap(), |suite| {
        // Virtio-mmio has one interrupt, which one CPU hears.
        let spread: &[u8] = if way.is_pci() { &[2, 4] } else { &[] };
        for &cpus in spread {
            let name = format!("smp::flows_are_spread_over_{cpus}_pairs");
            suite.test(&name, move || {
                let site = Site::new(way, cpus, u16::from(cpus), |spec| spec)?;
                site.many_flows()?;
                let status = site.status()?;
                ensure!(
                    status.pairs.len() == usize::from(cpus),
                    "{:?}",
                    status.pairs
                );
                for pair in &status.pairs {
                    let counters = &pair.counters;
                    ensure!(pair.cpu == pair.number, "{pair:?}");
                    ensure!(
                        counters.rx_packets > 0 && counters.tx_packets > 0,
                        "{pair:?}"
                    );
                    ensure!(counters.interrupts > 0, "{pair:?}");
                }
                let sum: u64 = status.pairs.iter().map(|p| p.counters.rx_packets).sum();
                ensure!(sum == status.counters.rx_packets, "{status:?}");
                ensure!(status.cpus.len() == usize::from(cpus), "{:?}", status.cpus);
                Ok(())
            });
        }
        for cpus in [1u8, 4] {
            let name = format!("smp::first_pings_of_strangers_are_answered_by_{cpus}_cpus");
            suite.test(&name, move || {
                let site = Site::new(way, cpus, u16::from(cpus), |spec| spec)?;
                site.strangers_ping()?;
                // A core that has never heard of the host by the time of the
                // first ping, and several at once.
                site.flood_ping()
            });
        }
        let with_one_pair: [(&str, u8, Edit); 3] = [
            ("one_cpu_uses_one_of_two_pairs", 1, |spec| spec),
            ("pairs_without_a_vector_each_are_not_used", 2, |spec| {
                spec.nic(|nic| nic.vectors = Some(3))
            }),
            ("mq_can_be_refused", 2, |spec| {
                spec.config(|config| config.features_off = "mq".into())
            }),
        ];
        for (name, cpus, edit) in with_one_pair {
            suite.test(&format!("smp::{name}"), move || {
                let site = Site::new(way, cpus, 2, edit)?;
                site.many_flows()?;
                let status = site.status()?;
                ensure!(status.pairs.is_empty(), "{:?}", status.pairs);
                let mq = status.device.features_negotiated.contains(&"MQ".to_owned());
                ensure!(!mq, "{:?}", status.device);
                Ok(())
            });
        }
        suite.test("smp::pairs_are_polled_without_interrupts", move || {
            let site = Site::new(way, 2, 2, |spec| {
                spec.config(|config| config.irq = kickpath_abi::config::Irq::Poll)
            })?;
            site.many_flows()?;
            let status = site.status()?;
            ensure!(status.pairs.len() == 2, "{:?}", status.pairs);
            ensure!(status.counters.interrupts == 0, "{:?}", status.counters);
            Ok(())
        });
    });
}

const BOUND: Duration = Duration::from_secs(30);

/// How a machine differs from the others.
type Edit = fn(Spec) -> Spec;

/// A guest at a tap device with several queues. The guest goes first.
struct Site {
    guest: Guest,
    sockets: HostSockets,
    tap: Tap,
}

impl Site {
    fn new(way: Way, cpus: u8, queues: u16, edit: impl FnOnce(Spec) -> Spec) -> Result<Self> {
        setup::setup()?;
        setup::require(&[IPROUTE2, PING])?;
        let plan = Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?;
        let tap = Tap::new(&plan, queues)?;
        let (guest, _) = edit(machine(Kind::Pc, cpus).over(way)).launch_on(tap.net())?;
        guest.wait_for_console(UP, BOUND)?;
        Ok(Self {
            guest,
            sockets: tap.sockets(),
            tap,
        })
    }

    fn address(&self) -> IpAddr {
        Ipv4Config::FALLBACK.address.into()
    }

    fn status(&self) -> Result<kickpath_abi::status::Status> {
        fetch_status(&self.sockets, self.address(), BOUND).context("the guest's report")
    }

    /// Many flows at a time, each from a port of its own; every answer is
    /// compared with what was sent. Nothing of it may end the guest.
    fn many_flows(&self) -> Result<()> {
        let address = self.address();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        for size in (0..1472).step_by(100) {
                            self.sockets.udp_echo(address, size, BOUND)?;
                        }
                        for _ in 0..4 {
                            self.sockets.tcp_echo(address, 100_000, BOUND)?;
                        }
                        self.sockets.http_get(address, "/metrics", BOUND)?;
                        Ok(())
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        self.flood_ping()?;
        ensure!(self.guest.exit().is_none(), "the guest has ended");
        Ok(())
    }

    fn flood_ping(&self) -> Result<()> {
        let target = self.address().to_string();
        let ping = self
            .tap
            .command("ping")
            .args(["-q", "-f", "-c", "300", "-W", "10", &target])
            .output()?;
        expect_no_loss(&ping)
    }

    /// The host has many addresses, and pings from each of them at once. (It
    /// asks for the guest once only, so the guest has heard of none of them.)
    fn strangers_ping(&self) -> Result<()> {
        let addresses: Vec<String> = (100..124).map(|n| format!("10.0.2.{n}")).collect();
        for address in &addresses {
            let added = self
                .tap
                .command("ip")
                .args(["addr", "add", &format!("{address}/24"), "dev", "tap0"])
                .status()?;
            ensure!(added.success(), "ip addr add: {added}");
        }
        let target = self.address().to_string();
        // No more at a time than one core keeps.
        for addresses in addresses.chunks(12) {
            let pings: Vec<_> = addresses
                .iter()
                .map(|address| {
                    self.tap
                        .command("ping")
                        .args(["-q", "-c", "1", "-W", "10", "-I", address, &target])
                        .stdout(Stdio::piped())
                        .spawn()
                })
                .collect::<Result<_, _>>()?;
            for ping in pings {
                expect_no_loss(&ping.wait_with_output()?)?;
            }
        }
        Ok(())
    }
}

fn expect_no_loss(ping: &Output) -> Result<()> {
    let text = String::from_utf8_lossy(&ping.stdout);
    ensure!(text.contains(" 0% packet loss"), "{text}");
    Ok(())
}

fn machine(kind: Kind, cpus: u8) -> Spec {
    Spec::new(kind).edit(move |machine| machine.cpus = cpus)
}
