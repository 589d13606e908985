//! What a host does to a running machine: it stops it and lets it go on, resets
//! it, saves and restores it, and moves it to another QEMU process, all in the
//! middle of traffic.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use kickpath::guest::{Exit, Guest};
use kickpath::qemu::{Accel, Boot, Kind, Machine, Nic};
use kickpath::wire::peer::Connection;
use kickpath::wire::{Peer, Plan, Tap};
use kickpath_abi::config::Ipv4Config;
use kickpath_tests::migration::{Mover, Route, refused};
use kickpath_tests::{Lab, Spec, Suite, UP, Way, setup};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::site::Site;
use crate::smp;

/// Environment variable: how often a guest moves in a row. 2 if it is not set,
/// which is there and back.
pub const MOVES_VARIABLE: &str = "KICKPATH_MOVES";

/// Time for a test in which connections wait for TCP's timer.
const BOUND: Duration = Duration::from_secs(180);

pub fn add(suite: &mut Suite) {
    let layouts: &[_] = match suite.way().is_version_1() {
        true => &[("", "off"), ("_packed", "on")],
        false => &[("", "off")],
    };
    for &(layout, packed) in layouts {
        let spec = || Spec::pc().property("packed", packed).bound(BOUND);
        let mut add = |name: &str, body: fn(&mut Lab) -> Result<()>| {
            suite.guest(&format!("host::{name}{layout}"), spec(), body);
        };
        add("stop_and_cont_in_the_middle_of_tcp", stop_and_cont);
        add("a_reset_in_the_middle_of_traffic", reset);
        add("two_resets_20_ms_apart", two_resets);
        add("saved_and_loaded", save_and_load);
        add("migrated_in_the_middle_of_tcp", |lab| {
            migrate(lab, Route::Live)
        });
        add("saved_to_a_file_in_the_middle_of_tcp", |lab| {
            migrate(lab, Route::File)
        });
    }
    let spec = Spec::pc().property("host_mtu", "1400");
    suite.guest("host::another_mtu_is_refused", spec, another_mtu);
    if suite.way().is_pci() {
        let way = suite.way();
        suite.needs(setup::lacks_tap(), |suite| {
            suite.test("host::another_number_of_queues_is_refused", move || {
                let spec = smp::machine(Kind::Pc, 2).over(way);
                Site::with_queues(spec, 2)?.run(|site| other_queues(site, way))
            });
        });
    }
}

/// The next QEMU's device has no MTU to tell, with which this guest works.
fn another_mtu(lab: &mut Lab) -> Result<()> {
    let echo = SocketAddr::new(lab.address(), 7);
    let connection = lab.peer.tcp_connect(echo, lab.soon())?;
    let mut buffer = [0; PIECE];
    exchange(&lab.peer, &connection, 0, &mut buffer)?;
    let mut other = lab.machine().clone();
    if let Some(nic) = &mut other.nic {
        nic.properties.retain(|(name, _)| name != "host_mtu");
    }
    let (exit, said) = refused(&lab.guest, &other)?;
    is_said(&exit, &said)?;
    // Nothing has happened here.
    exchange(&lab.peer, &connection, PIECE as u64, &mut buffer)?;
    lab.peer.tcp_close(connection);
    none_was_opened_again(&lab.guest)?;
    lab.check_services()
}

/// A QEMU names the features that its device does not have.
fn is_said(exit: &Exit, said: &[String]) -> Result<()> {
    let named = said
        .iter()
        .any(|line| line.contains("unsupported. Allowed features"));
    ensure!(matches!(exit, Exit::Failed(_)) && named, "{exit}: {said:?}");
    Ok(())
}

/// The next QEMU's device has one pair of queues instead of two.
fn other_queues(site: &Site, way: Way) -> Result<()> {
    let setup = setup::setup()?;
    let kernel = Boot::Kernel(setup.kernel.clone());
    let mut other = Machine::new(&setup.qemu, Kind::Pc, Accel::Tcg, kernel);
    other.cpus = 2;
    let tap = Tap::new(&Plan::new(Ipv4Config::Static(Ipv4Config::FALLBACK))?, 1)?;
    let mut nic = Nic::new(tap.net());
    way.apply(&mut other, &mut nic);
    // As many as two pairs have.
    nic.vectors = Some(6);
    other.nic = Some(nic);
    let (exit, said) = refused(&site.guest, &other)?;
    // QEMU 10.0.13 and 11.1 follow a pointer beyond the queues that they have, and are killed.
    let crashes = setup::qemu_is_at_least(10, 0)?;
    if !(crashes && exit == Exit::Signal(Signal::SIGSEGV as i32)) {
        is_said(&exit, &said)?;
    }
    let status = site.status()?;
    ensure!(status.pairs.len() == 2, "{:?}", status.pairs);
    none_was_opened_again(&site.guest)
}

/// A stream through the guest's echo service, checked byte by byte, that goes
/// on until it is told to end.
struct Stream<'a> {
    peer: &'a Peer,
    to: SocketAddr,
    /// Bytes that came back so far.
    echoed: AtomicU64,
    end: AtomicBool,
}

/// Bytes sent before their echo is read: less than the guest's window.
const PIECE: usize = 4096;

impl<'a> Stream<'a> {
    fn new(peer: &'a Peer, to: SocketAddr) -> Self {
        Self {
            peer,
            to,
            echoed: AtomicU64::new(0),
            end: AtomicBool::new(false),
        }
    }

    /// One connection, from the first byte to the last.
    fn run(&self) -> Result<u64> {
        let connection = self.peer.tcp_connect(self.to, BOUND)?;
        let result = self.echo(&connection);
        match &result {
            Ok(_) => self.peer.tcp_close(connection),
            Err(_) => self.peer.tcp_abort(connection),
        }
        result
    }

    fn echo(&self, connection: &Connection) -> Result<u64> {
        let mut buffer = [0; PIECE];
        let mut position = 0_u64;
        while !self.end.load(Ordering::Relaxed) {
            exchange(self.peer, connection, position, &mut buffer)?;
            position += PIECE as u64;
            self.echoed.store(position, Ordering::Relaxed);
        }
        Ok(position)
    }

    /// Waits until more has come back.
    fn goes_on(&self, bytes: u64) -> Result<()> {
        let (start, from) = (Instant::now(), self.echoed.load(Ordering::Relaxed));
        while self.echoed.load(Ordering::Relaxed) < from + bytes {
            ensure!(start.elapsed() < BOUND / 2, "the stream stands at {from}");
            ensure!(!self.end.load(Ordering::Relaxed), "the stream has broken");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Runs `work` while the stream flows; both must succeed.
    fn during<T: Send>(&self, work: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let stream = scope.spawn(|| {
                let result = self.run();
                self.end.store(true, Ordering::Relaxed);
                result
            });
            let worked = work(self);
            self.end.store(true, Ordering::Relaxed);
            let streamed = stream.join().map_err(|_| anyhow!("the stream panicked"))?;
            let worked = worked?;
            ensure!(streamed.context("the stream")? > 0);
            Ok(worked)
        })
    }
}

/// Sends [`PIECE`] bytes that tell their place, and compares what comes back.
fn exchange(peer: &Peer, connection: &Connection, from: u64, buffer: &mut [u8]) -> Result<()> {
    let byte = |at: u64| (at ^ (at >> 8) ^ (at >> 16)) as u8;
    let sent: Vec<u8> = (from..from + PIECE as u64).map(byte).collect();
    peer.tcp_send(connection, &sent, BOUND)?;
    let mut echoed = 0;
    while echoed < PIECE {
        let read = peer.tcp_recv(connection, &mut buffer[..PIECE - echoed], BOUND)?;
        ensure!(read > 0, "the guest has ended the connection");
        ensure!(
            buffer[..read] == sent[echoed..echoed + read],
            "other bytes than were sent after {}",
            from + echoed as u64
        );
        echoed += read;
    }
    Ok(())
}

/// Bytes that show that a stream flows.
const SOME: u64 = 64 * 1024;

fn stop_and_cont(lab: &mut Lab) -> Result<()> {
    let to = SocketAddr::new(lab.address(), 7);
    Stream::new(&lab.peer, to).during(|stream| {
        for pause in [1, 500, 8000] {
            stream.goes_on(SOME)?;
            lab.guest.qmp("stop", Value::Null)?;
            std::thread::sleep(Duration::from_millis(pause));
            lab.guest.qmp("cont", Value::Null)?;
        }
        stream.goes_on(SOME)
    })?;
    none_was_opened_again(&lab.guest)?;
    // A machine that stands still for 8 s has no device that is stuck.
    let counters = lab.status()?.counters;
    let found = (
        counters.kicks_lost,
        counters.interrupts_lost,
        counters.stuck,
    );
    ensure!(found == (0, 0, 0), "{counters:?}");
    lab.check_services()
}

/// Nobody has taken the device for stuck or broken.
fn none_was_opened_again(guest: &Guest) -> Result<()> {
    for line in guest.console_since(0) {
        let faults = ["error:", "opened again"];
        ensure!(
            !faults.iter().any(|word| line.text.contains(word)),
            "{}",
            line.text
        );
    }
    Ok(())
}

/// The number of the next line of the console.
fn next_line(guest: &Guest) -> u64 {
    guest
        .console_since(0)
        .last()
        .map_or(0, |line| line.number + 1)
}

/// Has the machine reset `times` times, each 20 ms after the last, and waits
/// until the guest is up again.
fn reset_machine(lab: &Lab, times: u32) -> Result<()> {
    // A reset must not end QEMU, as one that nobody asked for does.
    let arguments = json!({ "reboot": "reset" });
    lab.guest.qmp("set-action", arguments)?;
    let from = next_line(&lab.guest);
    for time in 0..times {
        if time > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        lab.guest.qmp("system_reset", Value::Null)?;
    }
    lab.guest.wait_for_line(from, UP, lab.left())?;
    Ok(())
}

/// Frames come all the time: while the device is reset, while the guest is
/// loaded, and while it sets the device up.
fn reset(lab: &mut Lab) -> Result<()> {
    for _ in 0..3 {
        under_fire(lab, |lab| reset_machine(lab, 1))?;
        lab.check_services()?;
        lab.check_health()?;
    }
    Ok(())
}

fn two_resets(lab: &mut Lab) -> Result<()> {
    for _ in 0..3 {
        under_fire(lab, |lab| reset_machine(lab, 2))?;
        lab.check_services()?;
        lab.check_health()?;
    }
    Ok(())
}

/// Runs `work` while echo requests come as fast as the machine takes them.
fn under_fire(lab: &Lab, work: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let mut request = Vec::new();
    etherparse::PacketBuilder::ethernet2(kickpath::wire::peer::PEER_MAC, kickpath::qemu::GUEST_MAC)
        .ipv4(lab.peer.plan().host.octets(), lab.ipv4().octets(), 64)
        .udp(4321, 7)
        .write(&mut request, &[0x5a; 400])?;
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                for _ in 0..8 {
                    lab.peer.send_frame(&request);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = work(lab);
        end.store(true, Ordering::Relaxed);
        result
    })?;
    // So many wait for their sender to be found that one more may be lost.
    lab.wait_until_quiet(Duration::from_secs(1))?;
    Ok(())
}

/// The whole state into an image and back: the guest is as it was then, with
/// the connection that was open.
fn save_and_load(lab: &mut Lab) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("state.qcow2");
    make_image(&lab.guest, &image.display().to_string())?;
    let echo = SocketAddr::new(lab.address(), 7);
    let connection = lab.peer.tcp_connect(echo, lab.soon())?;
    let mut buffer = [0; PIECE];
    exchange(&lab.peer, &connection, 0, &mut buffer)?;
    lab.wait_until_quiet(Duration::from_millis(300))?;
    let snapshot = |command: &str, job: &str| -> Result<()> {
        let arguments = json!({
            "job-id": job, "tag": "then", "vmstate": "state", "devices": ["state"]
        });
        lab.guest.qmp(command, arguments)?;
        finish(&lab.guest, job)
    };
    snapshot("snapshot-save", "save")?;
    // What happens now is forgotten; what is on the way is lost or comes twice.
    under_fire(lab, |lab| {
        lab.guest.check()?;
        std::thread::sleep(Duration::from_millis(300));
        snapshot("snapshot-load", "load")
    })?;
    if lab.guest.qmp("query-status", Value::Null)?["running"] != true {
        lab.guest.qmp("cont", Value::Null)?;
    }
    lab.eventually("a reply", || lab.ping(lab.address(), 1, 56))?;
    for round in 1..20 {
        exchange(&lab.peer, &connection, round * PIECE as u64, &mut buffer)?;
    }
    lab.peer.tcp_close(connection);
    none_was_opened_again(&lab.guest)?;
    lab.check_services()
}

/// Makes an image that can hold a machine's state, as block node `state`.
fn make_image(guest: &Guest, file: &str) -> Result<()> {
    let create = |job: &str, options: Value| -> Result<()> {
        let arguments = json!({ "job-id": job, "options": options });
        guest.qmp("blockdev-create", arguments)?;
        finish(guest, job)
    };
    let options = json!({ "driver": "file", "filename": file, "size": 0 });
    create("file", options)?;
    let node = json!({ "driver": "file", "filename": file, "node-name": "file0" });
    guest.qmp("blockdev-add", node)?;
    let options = json!({ "driver": "qcow2", "file": "file0", "size": 1 << 20 });
    create("format", options)?;
    let node = json!({ "driver": "qcow2", "file": "file0", "node-name": "state" });
    guest.qmp("blockdev-add", node)?;
    Ok(())
}

/// Waits until a job of QEMU's is done.
fn finish(guest: &Guest, id: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let jobs = guest.qmp("query-jobs", Value::Null)?;
        let job = jobs.as_array().into_iter().flatten();
        let mut job = job.filter(|job| job["id"] == id);
        let job = job.next().with_context(|| format!("no job {id}: {jobs}"))?;
        if job["status"] == "concluded" {
            ensure!(job["error"].is_null(), "{job}");
            guest.qmp("job-dismiss", json!({ "id": id }))?;
            return Ok(());
        }
        ensure!(start.elapsed() < BOUND / 2, "no end of {job}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How often a guest moves in a row.
fn moves() -> Result<u32> {
    match std::env::var(MOVES_VARIABLE) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{MOVES_VARIABLE}={text}")),
        Err(_) => Ok(2),
    }
}

/// From one QEMU process to the next and on, with one connection over all of
/// them.
fn migrate(lab: &mut Lab, route: Route) -> Result<()> {
    let mut mover = Mover::new(lab.machine())?;
    let moves = moves()?;
    let to = SocketAddr::new(lab.address(), 7);
    let Lab { guest, peer, .. } = lab;
    Stream::new(peer, to).during(|stream| {
        for number in 1..=moves {
            stream.goes_on(SOME)?;
            mover
                .move_on(guest, route)
                .with_context(|| format!("move {number} of {moves}"))?;
        }
        stream.goes_on(SOME)
    })?;
    none_was_opened_again(&lab.guest)?;
    lab.check_services()
}
