//! Several pairs of queues at a tap device with as many, a CPU each: flows on
//! every pair, the link down and up, pairs that break, the device opened again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kickpath::qemu::{Accel, Kind};
use kickpath::trace::image::Image;
use kickpath::trace::records::{self, HEADER_LENGTH, Header};
use kickpath::wire::FarEnd;
use kickpath_abi::config::Irq;
use kickpath_tests::memory::{self, queue_status};
use kickpath_tests::{Spec, Suite, Way, setup};
use kickpath_trace::{Event, RING_SYMBOL};
use serde_json::json;

use crate::site::{BOUND, GUEST, Site, connect, output};
use crate::smp::machine;

pub fn add(suite: &mut Suite) {
    let way = suite.way();
    suite.needs(setup::lacks_tap(), |suite| {
        // Virtio-mmio has one interrupt, which one CPU hears.
        let spread: &[u8] = if way.is_pci() { &[2, 4] } else { &[] };
        for &cpus in spread {
            let name = format!("multiqueue::flows_are_spread_over_{cpus}_pairs");
            suite.test(&name, move || {
                site(way, cpus, |spec| spec)?.run(|site| spread_flows(site, cpus))
            });
        }
        if way.is_pci() {
            suite.test(
                "multiqueue::each_cpu_takes_the_interrupts_of_its_own_pair",
                move || site(way, 4, |spec| spec)?.run(|site| own_interrupts(site, 4)),
            );
        }
        suite.test(
            "multiqueue::pairs_are_polled_without_interrupts",
            move || {
                let edit = |spec: Spec| spec.config(|config| config.irq = Irq::Poll);
                let site = site(way, 2, edit)?;
                many_flows(&site)?;
                let status = site.status()?;
                ensure!(status.pairs.len() == 2, "{:?}", status.pairs);
                ensure!(status.counters.interrupts == 0, "{:?}", status.counters);
                Ok(())
            },
        );
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
            suite.test(&format!("multiqueue::{name}"), move || {
                let spec = edit(machine(Kind::Pc, cpus).over(way));
                let site = Site::with_queues(spec, 2)?;
                many_flows(&site)?;
                let status = site.status()?;
                ensure!(status.pairs.is_empty(), "{:?}", status.pairs);
                let mq = status.device.features_negotiated.contains(&"MQ".to_owned());
                ensure!(!mq, "{:?}", status.device);
                Ok(())
            });
        }
    });
}

/// What can happen to several pairs. It has nothing to do with the transport.
pub fn add_faults(suite: &mut Suite) {
    suite.needs(setup::lacks_tap(), |suite| {
        for cpus in [1u8, 4] {
            let name = format!("multiqueue::first_pings_of_strangers_are_answered_by_{cpus}_cpus");
            suite.test(&name, move || {
                site(Way::Legacy, cpus, |spec| spec)?.run(strangers_ping)
            });
        }
        for cpus in [2u8, 4] {
            let name = format!("multiqueue::the_link_of_{cpus}_pairs_goes_down_and_up");
            suite.test(&name, move || {
                site(Way::Legacy, cpus, |spec| spec)?.run(|site| pull_and_plug(site, cpus))
            });
            let name = format!("multiqueue::{cpus}_pairs_are_opened_again_under_traffic");
            suite.test(&name, move || {
                let edit = |spec: Spec| spec.config(|config| config.reopen = 50);
                site(Way::Legacy, cpus, edit)?.run(|site| reopen(site, cpus))
            });
        }
        suite.test("multiqueue::up_is_said_when_every_core_answers", || {
            let edit = |spec: Spec| {
                // Its CPUs take turns, so that the last one begins late.
                let spec = spec.edit(|machine| machine.icount = Some(0));
                spec.config(|config| config.irq = Irq::Poll)
            };
            (0..6).try_for_each(|_| site(Way::Legacy, 4, edit)?.run(first_datagrams))
        });
        for (name, queue) in [
            ("the_first_pair_that_lies_is_opened_again", 0),
            ("another_pair_that_lies_is_opened_again", 2),
        ] {
            suite.test(&format!("multiqueue::{name}"), move || {
                site(Way::Legacy, 2, |spec| spec)?.run(|site| break_pair(site, queue))
            });
        }
        let kvm = setup::kvm();
        suite.needs(kvm.as_ref().err().cloned(), |suite| {
            suite.test("multiqueue::two_pairs_on_kvm", || {
                let spec = machine(Kind::Pc, 2).accel(kvm.unwrap_or(Accel::Tcg));
                // A software KVM takes its time.
                let site = Site::launch(spec, 2, Duration::from_secs(200))?;
                site.run(|site| {
                    for talk in &mut conversations(site, 2)? {
                        talk.exchange(20)?;
                    }
                    let status = site.status()?;
                    ensure!(status.boot.hypervisor == "KVMKVMKVM", "{:?}", status.boot);
                    for pair in &status.pairs {
                        ensure!(pair.counters.interrupts > 0, "{pair:?}");
                    }
                    Ok(())
                })
            });
        });
        suite.test("multiqueue::records_of_a_trace_name_their_cpu", || {
            let edit = |spec: Spec| {
                spec.config(|config| {
                    config.trace = true;
                    // Buffers leave records, too, and none may be lost.
                    config.queue_size = Some(64);
                })
            };
            site(Way::Modern, 4, edit)?.run(|site| trace(site, 4))
        });
        suite.test("multiqueue::a_device_that_needs_a_reset_gets_it", || {
            // A legacy one has no way to say so.
            site(Way::Modern, 4, |spec| spec)?.run(|site| needs_reset(site, 4))
        });
    });
}

/// A guest with so many CPUs and pairs.
fn site(way: Way, cpus: u8, edit: impl FnOnce(Spec) -> Spec) -> Result<Site> {
    let spec = edit(machine(Kind::Pc, cpus).over(way));
    Site::with_queues(spec, cpus.into())
}

/// The first datagrams of many flows are answered, on whichever core they arrive.
fn first_datagrams(site: &Site) -> Result<()> {
    let guest = SocketAddr::new(site.address(), 7);
    site.inside(|| {
        let socket = |number: u8| -> Result<(u8, UdpSocket)> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(BOUND))?;
            socket.send_to(&[number; 64], guest)?;
            Ok((number, socket))
        };
        let flows: Vec<_> = (0..16).map(socket).collect::<Result<_>>()?;
        for (number, socket) in &flows {
            let mut answer = [0; 100];
            let length = socket.recv(&mut answer);
            let length = length.with_context(|| format!("flow {number} of {}", flows.len()))?;
            ensure!(
                answer[..length] == [*number; 64],
                "flow {number}: {answer:?}"
            );
        }
        Ok(())
    })
}

fn spread_flows(site: &Site, cpus: u8) -> Result<()> {
    many_flows(site)?;
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
    let metrics = site.curl(&format!("http://{GUEST}/metrics"))?;
    for pair in 0..cpus {
        for sample in [
            format!("kickpath_pair_packets_total{{queue=\"rx{pair}\",cpu=\"{pair}\"}} "),
            format!("kickpath_pair_bytes_total{{queue=\"tx{pair}\",cpu=\"{pair}\"}} "),
            format!("kickpath_pair_kicks_total{{pair=\"{pair}\",cpu=\"{pair}\"}} "),
            format!(
                "kickpath_queue_used_index{{queue=\"transmit\",index=\"{}\"}} ",
                2 * pair + 1
            ),
        ] {
            let mut lines = metrics.lines();
            let value = lines.find_map(|line| line.strip_prefix(&sample));
            ensure!(
                value.is_some_and(|value| value != "0"),
                "no {sample}in {metrics}"
            );
        }
    }
    Ok(())
}

/// While one pair talks, its vector interrupts its CPU and no other one: each
/// counts the interrupts that it takes itself.
fn own_interrupts(site: &Site, pairs: u8) -> Result<()> {
    const TIMES: u64 = 200;
    let interrupts = || -> Result<Vec<u64>> {
        let pairs = site.status()?.pairs;
        Ok(pairs.iter().map(|pair| pair.counters.interrupts).collect())
    };
    for mut talk in conversations(site, pairs)? {
        let before = interrupts()?;
        let deadline = Instant::now() + BOUND;
        for round in 1.. {
            talk.exchange(TIMES as usize)?;
            let after = interrupts()?;
            let taken: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            // Asking for the report has a flow of its own, of some frames.
            for (pair, taken) in (0u16..).zip(&taken) {
                ensure!(
                    pair == talk.pair || *taken <= round * TIMES / 8,
                    "{taken} interrupts on CPU {pair} while pair {} talks",
                    talk.pair
                );
            }
            // Each answer is waited for, so nearly each request wakes the CPU.
            // On a busy host the next one can be there before the CPU sleeps.
            let own = taken[usize::from(talk.pair)];
            if own >= TIMES / 2 {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "{own} interrupts on CPU {} for {round} times {TIMES} requests",
                talk.pair
            );
        }
    }
    Ok(())
}

/// How a machine differs from the others.
type Edit = fn(Spec) -> Spec;

/// Many flows at a time, each from a port of its own; every answer is compared
/// with what was sent. Nothing of it may end the guest.
fn many_flows(site: &Site) -> Result<()> {
    let address = site.address();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    for size in (0..1472).step_by(100) {
                        site.sockets.udp_echo(address, size, BOUND)?;
                    }
                    for _ in 0..4 {
                        site.sockets.tcp_echo(address, 100_000, BOUND)?;
                    }
                    site.sockets.http_get(address, "/metrics", BOUND)?;
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
    site.ping(&["-f", "-c", "300", GUEST])?;
    ensure!(site.guest.exit().is_none(), "the guest has ended");
    Ok(())
}

/// The host has many addresses, and pings from each of them at once. (It asks
/// for the guest once only, so the guest has heard of none of them.)
fn strangers_ping(site: &Site) -> Result<()> {
    let addresses: Vec<String> = (100..124).map(|n| format!("10.0.2.{n}")).collect();
    for address in &addresses {
        let mut add = site.tap.command("ip");
        add.args(["addr", "add", &format!("{address}/24"), "dev", "tap0"]);
        output(&mut add)?;
    }
    // No more at a time than one core keeps.
    for addresses in addresses.chunks(12) {
        let pings: Vec<_> = addresses
            .iter()
            .map(|address| {
                let mut ping = site.tap.command("ping");
                ping.args(["-q", "-c", "1", "-W", "10", "-I", address, GUEST])
                    .stdout(Stdio::piped())
                    .spawn()
            })
            .collect::<Result<_, _>>()?;
        for ping in pings {
            let text = String::from_utf8(ping.wait_with_output()?.stdout)?;
            ensure!(text.contains(" 0% packet loss"), "{text}");
        }
    }
    site.ping(&["-f", "-c", "300", GUEST])
}

/// A TCP connection to the echo service, and how far it has come.
struct Conversation {
    stream: TcpStream,
    pair: u16,
    sent: usize,
    received: usize,
}

impl Conversation {
    /// What is said at this place.
    fn byte(&self, at: usize) -> u8 {
        (at / 251 + at * usize::from(self.pair + 3)) as u8
    }

    fn send(&mut self, length: usize) -> Result<()> {
        let data: Vec<u8> = (self.sent..self.sent + length)
            .map(|at| self.byte(at))
            .collect();
        self.stream.write_all(&data)?;
        self.sent += length;
        Ok(())
    }

    /// Reads the echo of all that was sent.
    fn hear(&mut self) -> Result<()> {
        let mut echo = vec![0; self.sent - self.received];
        let heard = self.stream.read_exact(&mut echo);
        heard.with_context(|| format!("the echo on pair {}", self.pair))?;
        for byte in echo {
            ensure!(
                byte == self.byte(self.received),
                "byte {} on pair {} is {byte:#x}",
                self.received,
                self.pair
            );
            self.received += 1;
        }
        Ok(())
    }

    fn exchange(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            self.send(100)?;
            self.hear()?;
        }
        Ok(())
    }
}

/// A connection on each pair. Where a flow arrives is for the kernel's hash
/// to say: as many are tried as it takes, and those that are double let go.
fn conversations(site: &Site, pairs: u8) -> Result<Vec<Conversation>> {
    const PACKETS: u64 = 100;
    let received = || -> Result<Vec<u64>> {
        let pairs = site.status()?.pairs;
        Ok(pairs.iter().map(|pair| pair.counters.rx_packets).collect())
    };
    let mut found: Vec<Conversation> = Vec::new();
    let end = Instant::now() + BOUND;
    while found.len() < usize::from(pairs) {
        ensure!(Instant::now() < end, "no flow on {:?}", {
            let with: Vec<_> = found.iter().map(|found| found.pair).collect();
            (0..pairs)
                .filter(|n| !with.contains(&(*n).into()))
                .collect::<Vec<_>>()
        });
        let before = received()?;
        let mut conversation = Conversation {
            stream: site.inside(|| connect(SocketAddr::new(site.address(), 7)))?,
            pair: 0,
            sent: 0,
            received: 0,
        };
        conversation.exchange(PACKETS as usize)?;
        let after = received()?;
        let busiest = (0u16..)
            .zip(after.iter().zip(&before))
            .max_by_key(|(_, (a, b))| *a - *b);
        let (pair, (after, before)) = busiest.context("no pairs")?;
        ensure!(after - before >= PACKETS, "{after} and {before} packets");
        if found.iter().all(|found| found.pair != pair) {
            // From here on it says what is particular to the pair.
            (conversation.sent, conversation.received) = (0, 0);
            conversation.pair = pair;
            found.push(conversation);
        }
    }
    Ok(found)
}

fn set_link(site: &Site, up: bool) -> Result<()> {
    let arguments = json!({ "name": "net0", "up": up });
    site.guest.qmp("set_link", arguments)?;
    Ok(())
}

/// How many lines of the console have this text.
fn count(site: &Site, text: &str) -> usize {
    let lines = site.guest.console_since(0);
    lines.iter().filter(|line| line.text.contains(text)).count()
}

/// Waits for the n-th line with this text.
fn wait_for(site: &Site, text: &str, n: usize) -> Result<()> {
    let mut from = 0;
    for _ in 0..n {
        from = site.guest.wait_for_line(from, text, BOUND)?.number + 1;
    }
    Ok(())
}

/// Frames that the far end has had from the guest.
fn arrived(site: &Site) -> Result<u64> {
    let mut command = site.tap.command("cat");
    command.arg("/sys/class/net/tap0/statistics/rx_packets");
    Ok(output(&mut command)?.trim().parse()?)
}

fn pull_and_plug(site: &Site, pairs: u8) -> Result<()> {
    let mut talks = conversations(site, pairs)?;
    for round in 1..=3 {
        for talk in &mut talks {
            talk.exchange(3)?;
        }
        set_link(site, false)?;
        wait_for(site, "the link is down", round)?;
        let before = arrived(site)?;
        for talk in &mut talks {
            // It stays on this side.
            talk.send(3000)?;
        }
        let mut ping = site.tap.command("ping");
        let text = ping.args(["-q", "-c", "1", "-W", "1", GUEST]).output()?;
        let text = String::from_utf8(text.stdout)?;
        ensure!(text.contains("100% packet loss"), "{text}");
        ensure!(
            arrived(site)? == before,
            "frames through a link that is down"
        );
        set_link(site, true)?;
        wait_for(site, "the link is up", round)?;
        for talk in &mut talks {
            talk.hear()?;
            talk.exchange(3)?;
        }
        many_flows(site)?;
        ensure!(site.status()?.device.link_up, "the report says it is down");
    }
    for text in ["the link is down", "the link is up"] {
        let count = count(site, text);
        ensure!(count == 3, "'{text}' was logged {count} times");
    }
    Ok(())
}

/// Floods every pair with echo requests until the guest has opened the device
/// so often; some connections last all the time.
fn reopen(site: &Site, pairs: u8) -> Result<()> {
    let address = site.address();
    let mut stream = site.inside(|| connect(SocketAddr::new(address, 7)))?;
    let done = AtomicBool::new(false);
    let line = thread::scope(|scope| {
        let floods: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    site.inside(|| {
                        let sockets: Vec<UdpSocket> = (0..4)
                            .map(|_| {
                                let socket = UdpSocket::bind(("0.0.0.0", 0))?;
                                socket.connect(SocketAddr::new(address, 7))?;
                                Ok(socket)
                            })
                            .collect::<Result<_>>()?;
                        while !done.load(Ordering::Relaxed) {
                            for socket in &sockets {
                                // What is lost is lost.
                                let _ = socket.send(&[0x5a; 400]);
                            }
                            thread::sleep(Duration::from_millis(2));
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        let line = site
            .guest
            .wait_for_console("kickpath: reopened 50 times", Duration::from_secs(180));
        done.store(true, Ordering::Relaxed);
        for flood in floods {
            flood
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        anyhow::Ok(line?)
    })?;
    let figures = |part: &str| -> Result<(u64, u64)> {
        let (_, part) = line.text.split_once(part).context("figures")?;
        let mut numbers = part.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.find(|word| !word.is_empty()).context("a figure");
        Ok((next()?.parse()?, next()?.parse()?))
    };
    let (before, after) = (figures("before: ")?, figures("after: ")?);
    ensure!(before.0 > 0 && before.0 == after.0, "leaked: {}", line.text);
    // Other cores may just have had mail; a buffer leaked each time would be
    // 50 times as long as one.
    ensure!(
        after.1.abs_diff(before.1) < 50 * 1500,
        "leaked: {}",
        line.text
    );
    for line in site.guest.console_since(0) {
        let is_fault = ["error:", "warning:"]
            .iter()
            .any(|word| line.text.contains(word));
        ensure!(!is_fault, "{}", line.text);
    }
    // The connection has outlived all of it.
    stream.write_all(&[0x77; 1000])?;
    let mut echo = [0; 1000];
    stream.read_exact(&mut echo)?;
    ensure!(echo == [0x77; 1000], "not an echo");
    for talk in &mut conversations(site, pairs)? {
        talk.exchange(10)?;
    }
    many_flows(site)
}

const OPENED_AGAIN: &str = "the device was reset and opened again";

/// The used ring of a receive queue says that more was used than there is. The
/// whole device is opened again, and every core goes on.
fn break_pair(site: &Site, queue: u16) -> Result<()> {
    let mut talks = conversations(site, 2)?;
    for round in 1..=2 {
        let ends = Instant::now() + BOUND;
        while count(site, OPENED_AGAIN) < round {
            ensure!(Instant::now() < ends, "it does not break");
            let status = queue_status(&site.guest, queue)?;
            let lie = status.used_idx.wrapping_add(status.vring_num + 1);
            memory::write(&site.guest, status.vring_used + 2, &lie.to_le_bytes())?;
            // Every core looks at its queues then, and no frame comes between
            // that would put the index right.
            set_link(site, false)?;
            wait_for(site, "the link is down", count(site, "the link is up") + 1)?;
            set_link(site, true)?;
            wait_for(site, "the link is up", count(site, "the link is down"))?;
        }
        for talk in &mut talks {
            talk.exchange(10)?;
        }
        many_flows(site)?;
        // It is opened again once a second at most.
        thread::sleep(Duration::from_millis(1100));
    }
    let told = format!("queue {queue}");
    ensure!(count(site, &told) > 0, "'{told}' is not named");
    Ok(())
}

/// The available ring of a receive queue has a descriptor that is none: QEMU
/// gives up, and asks for a reset.
fn needs_reset(site: &Site, pairs: u8) -> Result<()> {
    let mut talks = conversations(site, pairs)?;
    let receive = 2 * (u16::from(pairs) - 1);
    // No frame may take the descriptor that is next before it is forged, nor
    // wait for the machine, which stands still for that: QEMU 7.2 delivers those
    // that wait while it writes the status anew, and with that takes back that
    // it asks for a reset (`virtio_set_status`).
    let tap = |state: &str| {
        let mut link = site.tap.command("ip");
        output(link.args(["link", "set", "tap0", state]))
    };
    tap("down")?;
    let status = queue_status(&site.guest, receive)?;
    let next = u64::from(status.last_avail_idx % status.vring_num);
    let address = status.vring_avail + 4 + 2 * next;
    memory::write(&site.guest, address, &0x7777u16.to_le_bytes())?;
    tap("up")?;
    for talk in &mut talks {
        talk.send(1000)?;
    }
    site.guest.wait_for_console(OPENED_AGAIN, BOUND)?;
    for talk in &mut talks {
        talk.hear()?;
        talk.exchange(10)?;
    }
    many_flows(site)?;
    ensure!(count(site, OPENED_AGAIN) == 1, "more than once");
    Ok(())
}

/// Every CPU leaves records with its number, and those about the queues of a
/// pair are its CPU's. The first one sets up all queues.
fn trace(site: &Site, cpus: u8) -> Result<()> {
    let image = Image::read(&setup::setup()?.kernel)?;
    let address = image.symbol(RING_SYMBOL)?;
    let end = Instant::now() + BOUND;
    loop {
        for _ in 0..8 {
            site.sockets.udp_echo(site.address(), 64, BOUND)?;
        }
        // In between no record may come.
        site.guest.qmp("stop", json!({}))?;
        let header = Header::parse(&memory::read(&site.guest, address, HEADER_LENGTH)?)?;
        let bytes = memory::read(&site.guest, address, header.length())?;
        site.guest.qmp("cont", json!({}))?;
        let ring = records::parse(&bytes, &image)?;
        ensure!(ring.unresolved == 0, "{:?}", ring.ring_use);
        for record in &ring.records {
            let Some(queue) = record.queue.filter(|queue| *queue < 2 * u16::from(cpus)) else {
                continue;
            };
            let mine = u16::from(record.cpu) == queue / 2;
            ensure!(mine || record.cpu == 0, "{record:?}");
            if record.event == Event::PopUsed {
                ensure!(mine, "{record:?}");
            }
        }
        let popped = |cpu| {
            let mut records = ring.records.iter();
            records.any(|record| record.cpu == cpu && record.event == Event::PopUsed)
        };
        if (0..cpus).all(popped) {
            return Ok(());
        }
        ensure!(
            Instant::now() < end && ring.ring_use.lost == 0,
            "not every CPU left a record"
        );
    }
}
