//! The results beside their limits and beside other guests.

use std::io::{self, Write};

use super::peer::PeerDriver;
use super::profile::Profile;
use super::tap::Row;
use super::{DriverTx, PerPacket, UdpEcho, UdpTx};
use crate::terminal::{Story, WIDTH, thousands};

/// A limit of one quantity, per packet.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What is limited.
    pub name: &'static str,
    /// How to get it.
    value: fn(&PerPacket) -> f64,
    /// The largest value that passes, if there is a limit.
    pub at_most: Option<f64>,
}

/// Limits of the driver's transmit path alone.
pub const DRIVER_LIMITS: [Limit; 4] = [
    limit("instructions", |p| p.instructions, Some(25.0)),
    limit("kicks", |p| p.kicks, None),
    limit("register accesses", |p| p.register_accesses, None),
    limit("heap allocations", |p| p.heap_allocations, Some(0.0)),
];

/// Limits of a UDP echo.
pub const ECHO_LIMITS: [Limit; 5] = [
    limit("instructions", |p| p.instructions, Some(2400.0)),
    limit("kicks", |p| p.kicks, Some(0.15)),
    limit("interrupts", |p| p.interrupts, None),
    limit("register accesses", |p| p.register_accesses, None),
    // None of an echo's; beside it the guest reports its groups and announces its
    // addresses.
    limit("heap allocations", |p| p.heap_allocations, Some(0.001)),
];

const fn limit(name: &'static str, value: fn(&PerPacket) -> f64, at_most: Option<f64>) -> Limit {
    Limit {
        name,
        value,
        at_most,
    }
}

/// Other guests, counted in the same way (QEMU 7.2, TCG, one CPU,
/// virtio-net-pci): instructions of the driver for a packet sent; instructions,
/// kicks and register accesses of a 64-byte UDP echo at 32 outstanding; echoes
/// lost. `-` is not measured.
const PEERS: [[&str; 6]; 4] = [
    ["Unikraft + lwIP", "-", "7,328", "0.15", "0.37", "hung"],
    ["Hermit + smoltcp", "-", "8,762", "0.30", "0.57", "2 to 4 %"],
    [
        "ArceOS + virtio-drivers",
        "-",
        "3,951",
        "2.00",
        "6.0",
        "2 to 4 %",
    ],
    [
        "bare loop, virtio-drivers",
        "270",
        "2,762",
        "1.0",
        "3.0",
        "-",
    ],
];

impl Limit {
    fn missed(&self, per_packet: &PerPacket) -> Option<f64> {
        let value = (self.value)(per_packet);
        self.at_most.filter(|most| value > *most).map(|_| value)
    }
}

pub(super) fn introduction<W: Write>(story: &mut Story<W>) -> io::Result<()> {
    story.section("Bench")?;
    story.row(
        "Method",
        "guest instructions by the TSC of TCG under -icount shift=0, idle left out; every kick \
         counted (ioeventfd=off). Instructions repeat from run to run; kicks may vary a little.",
    )
}

pub(super) fn driver<W: Write>(story: &mut Story<W>, result: &DriverTx) -> io::Result<()> {
    let packets = thousands(result.sums.packets);
    story.section(&format!(
        "Driver alone: {packets} prebuilt frames sent, 64 outstanding"
    ))?;
    rows(story, &DRIVER_LIMITS, &result.per_packet)?;
    for (name, way) in [
        ("one by one", &result.each),
        ("with a checksum", &result.offloaded),
        ("60 bytes copied in", &result.copied),
        ("60 bytes received", &result.received),
        ("received one by one", &result.received_each),
        ("received in place", &result.received_in_place),
    ] {
        row(story, name, &number(way.instructions), None, true)?;
    }
    Ok(())
}

/// Below ours: the driver of `virtio-drivers`, or why it is not measured.
pub(super) fn peer<W: Write>(
    story: &mut Story<W>,
    result: Result<PeerDriver, &str>,
) -> io::Result<()> {
    match result {
        Ok(PeerDriver { sent, received }) => {
            for (name, sums) in [
                ("VirtIONetRaw, sent", sent),
                ("VirtIONetRaw, received", received),
            ] {
                row(story, name, &number(sums.each()), None, true)?;
            }
            Ok(())
        }
        Err(why) => story.line(&format!("  VirtIONetRaw of virtio-drivers: skipped, {why}")),
    }
}

pub(super) fn udp_tx<W: Write>(story: &mut Story<W>, results: &[UdpTx]) -> io::Result<()> {
    story.section("UDP from a socket, network stack included, 64 outstanding")?;
    story.line(&format!(
        "  {:22}{:>12}{:>12}{:>18}",
        "per packet", "instructions", "kicks", "heap allocations"
    ))?;
    results.iter().try_for_each(|result| {
        let UdpTx {
            size, per_packet, ..
        } = result;
        story.line(&format!(
            "  {:22}{:>12}{:>12}{:>18}",
            format!("{} bytes", thousands(*size as u64)),
            number(per_packet.instructions),
            number(per_packet.kicks),
            number(per_packet.heap_allocations)
        ))
    })
}

pub(super) fn echo<W: Write>(story: &mut Story<W>, result: &UdpEcho) -> io::Result<()> {
    let UdpEcho {
        size,
        outstanding,
        flood,
        ..
    } = result;
    let sent = thousands(flood.sent);
    story.section(&format!(
        "UDP echo: {sent} requests of {size} bytes, {outstanding} outstanding"
    ))?;
    rows(story, &ECHO_LIMITS, &result.per_packet)?;
    let lost = thousands(flood.lost);
    row(story, "lost", &lost, Some("0"), flood.lost == 0)?;
    if flood.corrupted + flood.unexpected > 0 {
        let damaged = thousands(flood.corrupted);
        row(story, "damaged", &damaged, Some("0"), flood.corrupted == 0)?;
        let repeated = thousands(flood.unexpected);
        row(
            story,
            "repeated",
            &repeated,
            Some("0"),
            flood.unexpected == 0,
        )?;
    }
    if let Some(of) = &result.profile {
        profile(story, "an echo at the cable", of)?;
    }
    Ok(())
}

fn rows<W: Write>(
    story: &mut Story<W>,
    limits: &[Limit],
    per_packet: &PerPacket,
) -> io::Result<()> {
    story.line(&format!(
        "  {:22}{:>12}{:>12}",
        "per packet", "counted", "limit"
    ))?;
    for limit in limits {
        let value = number((limit.value)(per_packet));
        let most = limit.at_most.map(number);
        let good = limit.missed(per_packet).is_none();
        row(story, limit.name, &value, most.as_deref(), good)?;
    }
    Ok(())
}

fn row<W: Write>(
    story: &mut Story<W>,
    name: &str,
    value: &str,
    limit: Option<&str>,
    good: bool,
) -> io::Result<()> {
    let verdict = match (limit, good) {
        (None, _) => "",
        (Some(_), true) => "kept",
        (Some(_), false) => "MISSED",
    };
    let limit = limit.unwrap_or("-");
    let line = format!("  {name:22}{value:>12}{limit:>12}  {verdict}");
    story.line(line.trim_end())
}

pub(super) fn tracepoint<W: Write>(
    story: &mut Story<W>,
    result: &super::Tracepoint,
) -> io::Result<()> {
    use super::Tracepoint;
    story.section("A tracepoint of the kick path")?;
    story.line(&format!("  {:22}{:>12}{:>12}", "each", "counted", "limit"))?;
    let [off, on] = result.each();
    for (state, value, most) in [("off", off, Tracepoint::OFF), ("on", on, Tracepoint::ON)] {
        let name = format!("instructions, {state}");
        let good = value <= most + 0.1;
        row(story, &name, &number(value), Some(&number(most)), good)?;
    }
    Ok(())
}

/// What was measured at a tap, a column an interface of the device.
pub(super) fn tap<W: Write>(story: &mut Story<W>, rows: &[Row]) -> io::Result<()> {
    story.section("At a tap with QEMU's default offers, Linux at the far end")?;
    let Some(first) = rows.first() else {
        return story.line("  skipped: a tap needs root");
    };
    let head = format!("  {:52}", "instructions (kicks)");
    let columns: Vec<&[Row]> = rows.chunk_by(|a, b| a.transport == b.transport).collect();
    let heads = columns.iter().filter_map(|rows| rows.first());
    story.line(&heads.fold(head, |line, row| line + &format!("{:>15}", row.transport)))?;
    let mine = rows
        .iter()
        .take_while(|row| row.transport == first.transport);
    for (index, row) in mine.enumerate() {
        let mut line = format!("  {:52}", row.what.name());
        for column in &columns {
            let each = column.get(index).map(|row| row.per_unit);
            let cell = each.map_or_else(String::new, |each| {
                format!(
                    "{} ({})",
                    number(each.instructions.round()),
                    number(each.kicks)
                )
            });
            line += &format!("{cell:>15}");
        }
        story.line(&line)?;
    }
    for row in rows {
        if let Some(of) = &row.profile {
            profile(
                story,
                &format!("{}, {}", row.what.name(), row.transport),
                of,
            )?;
        }
    }
    Ok(())
}

/// Where the instructions of one measurement went.
pub(super) fn profile<W: Write>(
    story: &mut Story<W>,
    name: &str,
    profile: &Profile,
) -> io::Result<()> {
    story.section(&format!("Where they go: {name}"))?;
    let line = |instructions: f64, layer: &str, name: &str| {
        let line = format!("  {:>12}  {layer:17}{name}", number(instructions));
        line.chars().take(WIDTH).collect::<String>()
    };
    for layer in &profile.layers {
        story.line(&line(layer.instructions, &layer.name, ""))?;
    }
    story.line("")?;
    for function in &profile.functions {
        story.line(&line(function.instructions, function.layer, &function.name))?;
    }
    Ok(())
}

pub(super) fn peers<W: Write>(
    story: &mut Story<W>,
    driver: &DriverTx,
    echo: &UdpEcho,
) -> io::Result<()> {
    story.section("Beside others (64-byte echo, 32 outstanding; QEMU 7.2, TCG)")?;
    let heads = ["guest", "driver TX", "echo", "kicks", "accesses", "lost"];
    story.line(&columns(heads))?;
    for peer in PEERS {
        story.line(&columns(peer))?;
    }
    let lost = thousands(echo.flood.lost);
    story.line(&columns([
        "Kickpath, this run",
        &number(driver.per_packet.instructions),
        &number(echo.per_packet.instructions),
        &number(echo.per_packet.kicks),
        &number(echo.per_packet.register_accesses),
        &lost,
    ]))?;
    story.faint("  Linux, measured here: cargo run -- bench --guest linux")
}

fn columns([guest, rest @ ..]: [&str; 6]) -> String {
    let mut line = format!("  {guest:26}");
    for cell in rest {
        line += &format!("{cell:>12}");
    }
    line
}

pub(super) fn missed(driver: &DriverTx, echo: &UdpEcho) -> Vec<String> {
    let mut missed = Vec::new();
    let mut check = |what: &str, limits: &[Limit], per_packet: &PerPacket| {
        for limit in limits {
            if let (Some(value), Some(most)) = (limit.missed(per_packet), limit.at_most) {
                let (name, value, most) = (limit.name, number(value), number(most));
                missed.push(format!("{what}: {value} {name} a packet, at most {most}"));
            }
        }
    };
    check("driver alone", &DRIVER_LIMITS, &driver.per_packet);
    check("UDP echo", &ECHO_LIMITS, &echo.per_packet);
    for (count, what) in [
        (echo.flood.lost, "lost"),
        (echo.flood.corrupted, "damaged"),
        (echo.flood.unexpected, "repeated"),
    ] {
        if count > 0 {
            let of = thousands(echo.flood.sent);
            missed.push(format!("UDP echo: {} of {of} {what}", thousands(count)));
        }
    }
    if echo.flood.cut_short {
        missed.push("UDP echo: the series did not end in time".to_owned());
    }
    missed
}

pub(super) fn conclusion<W: Write>(story: &mut Story<W>, missed: &[String]) -> io::Result<()> {
    if missed.is_empty() {
        return story.conclusion(true, "Every limit is kept.");
    }
    story.conclusion(false, "Not every limit is kept.")?;
    missed
        .iter()
        .try_for_each(|line| story.line(&format!("  {line}")))
}

/// Large numbers whole, small ones with four digits after the point at most.
pub(super) fn number(value: f64) -> String {
    if value == value.round() || value >= 1000.0 {
        thousands(value.round() as u64)
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Sums;
    use crate::wire::peer::FloodReport;

    fn results(instructions: u64, lost: u64) -> (DriverTx, UdpEcho) {
        let sums = Sums {
            packets: 1000,
            instructions: 1000 * instructions,
            kicks: 100,
            kicks_suppressed: 0,
            interrupts: 100,
            register_accesses: 200,
            heap_allocations: 0,
        };
        let per_packet = sums.per_packet();
        let flood = FloodReport {
            sent: 1000,
            received: 1000 - lost,
            lost,
            ..FloodReport::default()
        };
        let echo = UdpEcho {
            size: 64,
            outstanding: 32,
            flood,
            sums,
            per_packet,
            profile: None,
        };
        let driver = DriverTx {
            sums,
            per_packet,
            each: per_packet,
            offloaded: per_packet,
            copied: per_packet,
            received: per_packet,
            received_each: per_packet,
            received_in_place: per_packet,
        };
        (driver, echo)
    }

    #[test]
    fn a_missed_limit_is_named() {
        let (driver, echo) = results(25, 0);
        assert_eq!(missed(&driver, &echo), Vec::<String>::new());
        let (driver, echo) = results(26, 2);
        assert_eq!(
            missed(&driver, &echo),
            [
                "driver alone: 26 instructions a packet, at most 25",
                "UDP echo: 2 of 1,000 lost"
            ]
        );
    }

    #[test]
    fn numbers_are_as_long_as_they_need() {
        for (value, text) in [
            (0.0, "0"),
            (0.15, "0.15"),
            (0.00001, "0"),
            (60.0, "60"),
            (2.0, "2"),
            (38.25, "38.2"),
            (2000.0, "2,000"),
            (12_700.4, "12,700"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn the_tables_fit_into_the_width() {
        let (driver_tx, udp_echo) = results(1234, 7);
        let mut bytes = Vec::new();
        let mut story = Story::new(&mut bytes);
        introduction(&mut story).unwrap();
        driver(&mut story, &driver_tx).unwrap();
        echo(&mut story, &udp_echo).unwrap();
        peers(&mut story, &driver_tx, &udp_echo).unwrap();
        let text = anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= crate::terminal::WIDTH, "{line}");
        }
        assert!(
            text.contains("instructions                 1,234          25  MISSED"),
            "{text}"
        );
    }
}
