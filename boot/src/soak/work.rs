//! What is done in turn. Each piece either succeeds, with every byte as it should be, or says what
//! was wrong.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kickpath_abi::status::Status;
use serde_json::json;

use super::malformed::{Numbers, spoil};
use super::sample::Sample;
use crate::guest::Guest;
use crate::guest::memory;
use crate::guest::migration::{Mover, Route};
use crate::session::{Prepared, fetch_status};
use crate::wire::peer::{Connection, Flood};
use crate::wire::{ECHO_PORT, FarEnd, Peer};

/// A piece of work: what it moved, in bytes or frames.
pub(super) type Work = fn(&mut Soaked<'_>, usize) -> Result<Done>;

/// What a piece of work came to.
pub(super) enum Done {
    /// So many bytes, frames or times.
    Amount(u64),
    /// Not this time, or not on this machine.
    Nothing,
}

/// Every kind of work, in the order of a round.
pub(super) const KINDS: [(&str, Work); 10] = [
    ("ping", ping),
    ("UDP echo", udp),
    ("TCP echo", tcp),
    ("one connection", connection),
    ("HTTP", http),
    ("malformed frames", malformed),
    ("link down and up", link),
    ("move to another QEMU", move_on),
    ("a lost kick", lost_kick),
    ("a ring that lies", lie),
];

/// Time for what waits for TCP's timers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of one exchange on the connection that stays open.
const PIECE: usize = 4096;

/// A guest that is soaked, and its far end.
pub(super) struct Soaked<'a> {
    guest: Guest,
    peer: Peer,
    mover: Mover,
    prepared: &'a Prepared,
    ip: IpAddr,
    numbers: Numbers,
    connection: Option<Connection>,
    exchanged: u64,
    /// Moves so far.
    pub moves: u64,
    /// Kicks that the device was kept from hearing.
    pub kicks_hidden: u64,
    /// Times that the rings were made to lie.
    pub lies: u64,
}

impl<'a> Soaked<'a> {
    pub fn new(guest: Guest, peer: Peer, mover: Mover, prepared: &'a Prepared, ip: IpAddr) -> Self {
        Self {
            guest,
            peer,
            mover,
            prepared,
            ip,
            numbers: Numbers::new(1),
            connection: None,
            exchanged: 0,
            moves: 0,
            kicks_hidden: 0,
            lies: 0,
        }
    }

    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    pub fn accelerator(&self) -> &'static str {
        self.prepared.accel().word()
    }

    /// Whether the rings are packed (specification 2.8).
    pub fn is_packed(&self) -> bool {
        let nic = self.prepared.machine.nic.as_ref();
        nic.is_some_and(|nic| nic.packed)
    }

    /// Time for one answer. No verdict may depend on how busy the host is.
    fn bound(&self) -> Duration {
        PATIENCE / 2
    }

    /// Frames that the cable has lost, because QEMU or we were not there to take them.
    fn lost_by_cable(&self) -> u64 {
        let counters = self.peer.counters();
        counters.to_guest_dropped + counters.from_guest_dropped
    }

    pub fn status(&self) -> Result<Status> {
        Ok(fetch_status(&self.peer, self.ip, self.bound())?)
    }

    /// A little of everything, whose result is not asked for.
    pub fn warm_up(&mut self) {
        for (_, work) in &KINDS[..5] {
            let _ = work(self, 0);
        }
    }

    /// The guest's report when nothing is on its way any more: no connection, and the heap as it
    /// was a moment ago. Of each queue it has the most descriptors that were free meanwhile.
    pub fn settled(&mut self) -> Result<Status> {
        if let Some(connection) = self.connection.take() {
            self.peer.tcp_close(connection);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut last = self.status()?;
        let mut same = 0;
        // Longer than a closed connection waits for what is late.
        while same < 15 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_secs(1));
            let mut now = self.status()?;
            same = match now.cpu.heap_used == last.cpu.heap_used {
                true => same + 1,
                false => 0,
            };
            if same > 0 {
                for (now, last) in now.queues.iter_mut().zip(&last.queues) {
                    now.free = now.free.max(last.free);
                }
            }
            last = now;
            if crate::interrupt::requested() {
                break;
            }
        }
        Ok(last)
    }

    pub fn sample(&self, at: Duration) -> Result<Sample> {
        let status = self.status()?;
        Ok(Sample::of(&status, at, self.exchanged))
    }

    /// Lines of the log that tell of what the device did wrong.
    fn next_line(&self) -> u64 {
        let lines = self.guest.console_since(0);
        lines.last().map_or(0, |line| line.number + 1)
    }

    fn set_link(&self, up: bool) -> Result<()> {
        let from = self.next_line();
        let arguments = json!({ "name": "net0", "up": up });
        self.guest.qmp("set_link", arguments)?;
        let text = if up {
            "the link is up"
        } else {
            "the link is down"
        };
        self.guest.wait_for_line(from, text, PATIENCE)?;
        Ok(())
    }

    /// Waits until nothing has come or gone on the cable for so long.
    fn quiet(&self, quiet: Duration) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let (mut last, mut since) = (self.peer.counters(), Instant::now());
        while since.elapsed() < quiet {
            ensure!(Instant::now() < deadline, "the cable is never quiet");
            std::thread::sleep(Duration::from_millis(20));
            let now = self.peer.counters();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// One answer, however many attempts it takes within the time.
    fn answers(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !super::answers(&self.peer, self.ip, Duration::from_secs(1)) {
            ensure!(Instant::now() < deadline, "no ping is answered any more");
            ensure!(!crate::interrupt::requested(), "interrupted");
            self.guest.check()?;
        }
        Ok(())
    }
}

fn ping(soaked: &mut Soaked<'_>, round: usize) -> Result<Done> {
    let size = [0, 56, 1000, 1472][round % 4];
    let before = soaked.lost_by_cable();
    let report = soaked.peer.ping(soaked.ip, 10, size, soaked.bound())?;
    let lost = u64::from(report.lost());
    let intact = lost <= soaked.lost_by_cable() - before && report.corrupted == 0;
    ensure!(intact, "{report:?}");
    Ok(Done::Amount(report.received.into()))
}

fn udp(soaked: &mut Soaked<'_>, round: usize) -> Result<Done> {
    let IpAddr::V4(ip) = soaked.ip else {
        bail!("no IPv4 address");
    };
    let flood = Flood {
        count: 2000,
        size: [8, 64, 512, 1472][round % 4],
        outstanding: 32,
        patience: soaked.bound(),
        bound: PATIENCE,
    };
    let before = soaked.lost_by_cable();
    let report = soaked.peer.udp_echo_flood(ip, flood)?;
    let lost = flood.count - report.received;
    let wrong = report.corrupted + report.unexpected;
    let intact = lost <= soaked.lost_by_cable() - before && wrong == 0;
    ensure!(intact, "{report:?}");
    Ok(Done::Amount(report.received))
}

fn tcp(soaked: &mut Soaked<'_>, _: usize) -> Result<Done> {
    let echo = soaked.peer.tcp_echo(soaked.ip, 256 * 1024, PATIENCE)?;
    Ok(Done::Amount(2 * echo.bytes as u64))
}

/// On one connection that lives through all that the others do.
fn connection(soaked: &mut Soaked<'_>, _: usize) -> Result<Done> {
    let connection = match soaked.connection.take() {
        Some(connection) => connection,
        None => {
            let echo = SocketAddr::new(soaked.ip, ECHO_PORT);
            soaked.peer.tcp_connect(echo, PATIENCE)?
        }
    };
    let from = soaked.exchanged;
    let byte = |at: u64| (at ^ (at >> 8) ^ (at >> 16)) as u8;
    let sent: Vec<u8> = (from..from + PIECE as u64).map(byte).collect();
    let exchange = || -> Result<()> {
        soaked.peer.tcp_send(&connection, &sent, PATIENCE)?;
        let (mut buffer, mut echoed) = ([0; PIECE], 0);
        while echoed < PIECE {
            let room = &mut buffer[..PIECE - echoed];
            let read = soaked.peer.tcp_recv(&connection, room, PATIENCE)?;
            ensure!(read > 0, "the guest has ended the connection");
            let same = buffer[..read] == sent[echoed..echoed + read];
            ensure!(same, "other bytes than were sent after {from}");
            echoed += read;
        }
        Ok(())
    };
    let result = exchange();
    match result {
        Ok(()) => {
            soaked.exchanged += PIECE as u64;
            soaked.connection = Some(connection);
            Ok(Done::Amount(2 * PIECE as u64))
        }
        Err(error) => {
            soaked.peer.tcp_abort(connection);
            Err(error)
        }
    }
}

fn http(soaked: &mut Soaked<'_>, _: usize) -> Result<Done> {
    let mut bytes = 0;
    for (path, code) in [
        ("/", 200),
        ("/stats.json", 200),
        ("/metrics", 200),
        ("/none", 404),
    ] {
        let page = soaked.peer.http_get(soaked.ip, path, soaked.bound())?;
        ensure!(page.status == code, "GET {path}: status {}", page.status);
        bytes += page.body.len() as u64;
    }
    Ok(Done::Amount(bytes))
}

fn malformed(soaked: &mut Soaked<'_>, _: usize) -> Result<Done> {
    let frames = soaked.peer.frame_log().frames();
    let models = frames.iter().filter(|frame| !frame.from_guest);
    let models: Vec<_> = models.map(|frame| &frame.bytes).collect();
    ensure!(!models.is_empty(), "no frame was sent");
    const COUNT: usize = 500;
    for _ in 0..COUNT {
        let model = models[soaked.numbers.below(models.len())];
        let frame = spoil(model, &mut soaked.numbers);
        soaked.peer.send_frame(&frame);
    }
    soaked.answers()?;
    Ok(Done::Amount(COUNT as u64))
}

fn link(soaked: &mut Soaked<'_>, _: usize) -> Result<Done> {
    // QEMU breaks over a frame that it drops from a packed ring.
    soaked.quiet(Duration::from_millis(100))?;
    soaked.set_link(false)?;
    let silence = Duration::from_millis(100);
    let answered = super::answers(&soaked.peer, soaked.ip, silence);
    soaked.set_link(true)?;
    ensure!(!answered, "an answer through a link that is down");
    soaked.answers()?;
    Ok(Done::Amount(1))
}

/// Every third round, straight and by a file in turn.
fn move_on(soaked: &mut Soaked<'_>, round: usize) -> Result<Done> {
    if !round.is_multiple_of(3) {
        return Ok(Done::Nothing);
    }
    let route = match soaked.moves % 2 {
        0 => Route::Live,
        _ => Route::File,
    };
    soaked.mover.move_on(&mut soaked.guest, route)?;
    soaked.guest.attach_frames(soaked.peer.frame_log());
    soaked.moves += 1;
    soaked.answers()?;
    Ok(Done::Amount(1))
}

/// The device says that it needs no kick for a long time, and sleeps: the watchdog must find out.
fn lost_kick(soaked: &mut Soaked<'_>, round: usize) -> Result<Done> {
    if round % 3 != 1 {
        return Ok(Done::Nothing);
    }
    let before = soaked.status()?.counters.kicks_lost;
    soaked.quiet(Duration::from_millis(300))?;
    memory::hide_kicks(&soaked.guest, 1, soaked.is_packed())?;
    soaked.kicks_hidden += 1;
    soaked.answers()?;
    // The watchdog counts at its next look. QEMU may have looked by itself, and then nothing was
    // lost.
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let lost = soaked.status()?.counters.kicks_lost > before;
        if lost || Instant::now() > deadline {
            return Ok(Done::Amount(lost.into()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The ring of the receive queue says that what there is not was used: the device is reset and
/// opened again.
fn lie(soaked: &mut Soaked<'_>, round: usize) -> Result<Done> {
    if round % 3 != 2 {
        return Ok(Done::Nothing);
    }
    const OPENED: &str = "the device was reset and opened again";
    let from = soaked.next_line();
    let deadline = Instant::now() + PATIENCE;
    loop {
        soaked.quiet(Duration::from_millis(100))?;
        memory::lie_of_use(&soaked.guest, 0, soaked.is_packed())?;
        // The guest looks at its queues then, and no frame comes between that would put the
        // index right.
        soaked.set_link(false)?;
        soaked.set_link(true)?;
        let soon = Duration::from_secs(2);
        if soaked.guest.wait_for_line(from, OPENED, soon).is_ok() {
            break;
        }
        if Instant::now() > deadline {
            return Err(anyhow!("the lie was not found")).context("a ring that lies");
        }
    }
    soaked.lies += 1;
    soaked.answers()?;
    Ok(Done::Amount(1))
}
