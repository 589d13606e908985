//! A cable that is pulled and plugged in again.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use kickpath::wire::FarEnd;
use kickpath::wire::peer::Connection;
use kickpath_tests::{Lab, Spec, Suite};
use serde_json::json;

use crate::{control, netconsole};

const DOWN: &str = "the link is down";
const UP: &str = "the link is up";

pub fn add(suite: &mut Suite) {
    for &irq in suite.way().rungs() {
        let spec = Spec::pc().config(move |config| config.irq = irq);
        let name = irq.word().replace('-', "_");
        let name = format!("link::down_and_up_again_{name}");
        suite.guest(&name, spec, pull_and_plug);
    }
    // The log wants to be sent, with the line that says so at its end.
    let spec = netconsole::to_peer(Spec::pc());
    suite.guest("link::nothing_is_sent_while_it_is_down", spec, |lab| {
        nothing_is_sent(lab)
    });
    for (layout, packed) in [("split", "off"), ("packed", "on")] {
        let name = format!("link::an_announcement_waits_for_it_{layout}");
        let spec = Spec::pc().property("packed", packed);
        suite.guest(&name, spec, announcement_waits);
    }
    let spec = Spec::pc().config(|config| config.features_off = "status".into());
    suite.guest("link::a_guest_that_cannot_be_told_goes_on", spec, |lab| {
        set_link(lab, false)?;
        let patience = Duration::from_millis(500);
        let report = lab.peer.http_get(lab.address(), "/stats.json", patience);
        ensure!(report.is_err(), "the link is not down");
        set_link(lab, true)?;
        ensure!(
            lab.eventually("the report", || lab.status())?
                .device
                .link_up,
            "link down"
        );
        lab.check_services()
    });
}

/// The guest has something to send while the link is down, and sends it after.
fn nothing_is_sent(lab: &mut Lab) -> Result<()> {
    lab.peer.capture(4096);
    lab.check_services()?;
    for round in 1..=2 {
        // The guest still answers what came before.
        lab.wait_until_quiet(Duration::from_millis(200))?;
        set_link(lab, false)?;
        let down = wait_for(lab, DOWN, round)?;
        // Longer than the guest waits for anything before it asks again.
        std::thread::sleep(Duration::from_millis(1200));
        let before = lab.peer.counters().from_guest;
        set_link(lab, true)?;
        let up = wait_for(lab, UP, round)?;
        let sent = |line: &str| {
            let (_, sent) = line.split_once("sent ")?;
            sent.split_once(" frames")?.0.parse::<u64>().ok()
        };
        ensure!(
            sent(&down).is_some() && sent(&down) == sent(&up),
            "'{down}', then '{up}'"
        );
        // All that waited goes now.
        netconsole::lines_until(lab, &down)?;
        netconsole::lines_until(lab, &up)?;
        ensure!(lab.peer.counters().from_guest >= before + 2);
        lab.check_services()?;
    }
    Ok(())
}

/// The device asks for an announcement while no frame can go out. QEMU would break over a frame
/// that it drops from a packed ring.
fn announcement_waits(lab: &mut Lab) -> Result<()> {
    // All that the guest sends of itself when it comes up has gone by then.
    lab.wait_until_quiet(Duration::from_millis(1500))?;
    set_link(lab, false)?;
    let from = lab.guest.wait_for_line(0, DOWN, lab.soon())?.number;
    control::announce_self(lab)?;
    // Several of QEMU's intervals.
    std::thread::sleep(Duration::from_millis(300));
    set_link(lab, true)?;
    lab.guest.wait_for_line(from, UP, lab.soon())?;
    lab.guest
        .wait_for_line(from, control::ANNOUNCED, lab.soon())?;
    let lines = lab.guest.console_since(from);
    let place = |text| lines.iter().position(|line| line.text.contains(text));
    ensure!(place(UP) < place(control::ANNOUNCED), "{lines:?}");
    lab.check_services()?;
    let report = lab.status()?;
    ensure!(report.outages.recovered == 0, "{:?}", report.outages);
    ensure!(report.counters.kicks_lost == 0, "{:?}", report.counters);
    Ok(())
}

fn pull_and_plug(lab: &mut Lab) -> Result<()> {
    let chargen = SocketAddr::new(lab.address(), 19);
    let connection = lab.peer.tcp_connect(chargen, lab.soon())?;
    let mut stream = Stream::new(connection);
    for round in 1..=3 {
        stream.read(lab, 20_000)?;
        set_link(lab, false)?;
        wait_for(lab, DOWN, round)?;
        let silence = lab
            .peer
            .ping(lab.address(), 1, 56, Duration::from_millis(300))?;
        ensure!(silence.lost() == 1, "an answer through a link that is down");
        set_link(lab, true)?;
        wait_for(lab, UP, round)?;
        lab.check_services()?;
        lab.echo_flood(500, 64)?;
        ensure!(
            lab.status()?.device.link_up,
            "the report says that the link is down"
        );
    }
    // The connection that was open before the first time still is, and nothing
    // is missing.
    stream.read(lab, 200_000)?;
    // Once each time, not more often.
    for text in [DOWN, UP] {
        let count = count(lab, text);
        ensure!(count == 3, "'{text}' was logged {count} times");
    }
    Ok(())
}

/// What a chargen service sends: RFC 864's rotating lines.
struct Stream {
    connection: Connection,
    length: usize,
}

impl Stream {
    fn new(connection: Connection) -> Self {
        let length = 0;
        Self { connection, length }
    }

    /// Reads on, at least `count` bytes, and checks each.
    fn read(&mut self, lab: &Lab, count: usize) -> Result<()> {
        let end = self.length + count;
        let mut buffer = [0; 4096];
        while self.length < end {
            let read = lab
                .peer
                .tcp_recv(&self.connection, &mut buffer, lab.soon())?;
            ensure!(read > 0, "the guest has ended the connection");
            for byte in &buffer[..read] {
                let (line, column) = (self.length / 74, self.length % 74);
                let expected = match column {
                    72 => b'\r',
                    73 => b'\n',
                    _ => b' ' + ((line + column) % 95) as u8,
                };
                ensure!(*byte == expected, "byte {} is {byte:#x}", self.length);
                self.length += 1;
            }
        }
        Ok(())
    }
}

fn set_link(lab: &Lab, up: bool) -> Result<()> {
    lab.guest
        .qmp("set_link", json!({ "name": "net0", "up": up }))?;
    Ok(())
}

fn count(lab: &Lab, text: &str) -> usize {
    let lines = lab.guest.console_since(0);
    lines.iter().filter(|line| line.text.contains(text)).count()
}

/// Waits for the n-th line with this text.
fn wait_for(lab: &Lab, text: &str, n: usize) -> Result<String> {
    let (mut from, mut found) = (0, String::new());
    for _ in 0..n {
        let line = lab.guest.wait_for_line(from, text, lab.soon())?;
        (from, found) = (line.number + 1, line.text);
    }
    Ok(found)
}
