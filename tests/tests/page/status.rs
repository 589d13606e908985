//! The status page that the guest serves.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Result, ensure};
use kickpath_abi::status::{CpuLoad, Outages, Pair, Queue, Status};
use kickpath_tests::Suite;
use kickpath_tests::program::{Running, loopback_address};

use crate::contrast;
use crate::support::{Page, picture_name, views};

pub fn add(suite: &mut Suite) {
    suite.test("status::a_live_guest", a_live_guest);
    suite.test("status::several_pairs", several_pairs);
}

/// Page, figures and drawing come from the guest; new figures come without
/// loading it again.
fn a_live_guest() -> Result<()> {
    let mut serving = Running::start(&["serve", "--http-port", "18081", "--echo-port", "17008"])?;
    let web = loopback_address(&serving.line_with("http://127.0.0.1:")?, "127.0.0.1:")?;
    let echo = loopback_address(&serving.line_with("UDP and TCP")?, "127.0.0.1:")?;
    let mut page = Page::served(format!("http://{web}/"))?;
    page.eventually("document.getElementById('state').textContent === 'Live'")?;

    let shows = |page: &mut Page, selector: &str, words: &[&str]| -> Result<()> {
        let text = page.text(selector)?;
        for word in words {
            ensure!(text.contains(word), "{selector} lacks {word}: {text}");
        }
        Ok(())
    };
    shows(
        &mut page,
        "#network",
        &["up", "10.0.2.15", "52:54:00", "1,500"],
    )?;
    shows(&mut page, "#device", &["1af4:1000", "legacy", "port"])?;
    shows(&mut page, "#ladder", &["msix", "taken"])?;
    shows(&mut page, "#features", &["MAC", "EVENT_IDX"])?;
    shows(&mut page, "#boot", &["PVH"])?;
    // QEMU 10.0 says of every queue that it has 1,024.
    let rings = page.text("#rings")?;
    for ring in ["receive (queue 0)", "transmit (queue 1)"] {
        let is_drawn =
            [256, 1024].map(|size| rings.contains(&format!("{ring}: {size} descriptors")));
        ensure!(is_drawn.contains(&true), "{ring} is not in {rings}");
    }
    ensure!(page.count("#rings svg.ring")? >= 2, "two rings are drawn");

    // The figures of what happens now, in the table and at the ring.
    let sent =
        "Number(document.querySelector('#traffic td:nth-child(3)').textContent.replace(/,/g, ''))";
    let index = "document.querySelector('#rings figure:nth-of-type(2) .avail text').textContent";
    let before = page.evaluate(sent)?.as_f64().unwrap_or(f64::NAN);
    let index_before = page.evaluate(index)?;
    ensure!(before > 0.0, "{before} packets sent");
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = [0; 100];
    for _ in 0..20 {
        socket.send_to(b"to be counted", echo)?;
        socket.recv(&mut buffer)?;
    }
    page.eventually(&format!("{sent} >= {before} + 20"))?;
    page.eventually(&format!("{index} !== {index_before}"))?;
    page.eventually("document.querySelectorAll('#chart path').length > 0")?;

    page.click("#pause")?;
    page.eventually("document.getElementById('state').textContent === 'Paused'")?;
    page.click("#pause")?;
    page.eventually("document.getElementById('state').textContent === 'Live'")?;

    page.check()?;
    for view in views() {
        page.view(view)?;
        page.check()?;
        page.picture(&picture_name("status", view), view, true)?;
    }
    Ok(())
}

/// The figures of a guest with four pairs, which go on from second to second.
fn report(second: u64) -> Status {
    let mut status = Status {
        version: "0.1.0".into(),
        ..Status::default()
    };
    status.cpu.uptime_us = 5_000_000 + second * 1_000_000;
    status.cpu.cycles = 2_600 * status.cpu.uptime_us;
    status.device.link_up = true;
    status.device.doorbell = "outw 1 -> port 0xc010".into();
    status.interrupts.rung = "msix".into();
    status.network.ipv4 = vec!["10.0.2.15/24".into()];
    status.outages = Outages {
        recovered: 3,
        total_us: 10_000_712,
        last_us: 181,
        frames_lost: 256,
    };
    for number in 0..4u16 {
        let share = u64::from(number + 1);
        let mut pair = Pair {
            number,
            cpu: number,
            ..Pair::default()
        };
        let counters = &mut pair.counters;
        counters.rx_packets = 100_000 * share + 1_000 * share * second;
        counters.rx_bytes = 80 * counters.rx_packets;
        counters.tx_packets = counters.rx_packets - 7;
        counters.tx_bytes = 90 * counters.tx_packets;
        counters.kicks = counters.tx_packets / 20;
        counters.kicks_suppressed = counters.tx_packets / 3;
        counters.interrupts = counters.rx_packets / 30;
        status.counters.rx_packets += counters.rx_packets;
        status.counters.tx_packets += counters.tx_packets;
        status.pairs.push(pair);
        status.cpus.push(CpuLoad {
            number,
            apic_id: number.into(),
            // Busy by 20, 30, 40 and 50 percent.
            idle_cycles: status.cpu.cycles / 10 * (9 - share),
        });
        for (name, index) in [("receive", 2 * number), ("transmit", 2 * number + 1)] {
            status.queues.push(Queue {
                name: name.into(),
                index,
                size: 256,
                avail_idx: 1000 + index,
                used_idx: 900 + index,
                last_used_idx: 890 + index,
                free: 3,
                ..Queue::default()
            });
        }
    }
    status
}

/// The page, with a guest of four pairs in the place of one that answers.
pub fn html() -> Result<String> {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../kernel/services/src/http/status.html"
    );
    let reports = (0..60).map(report).collect::<Vec<_>>();
    let guest = format!(
        "<script>const reports = {}; let turn = 0; \
         window.fetch = async () => ({{ ok: true, json: async () => reports[turn++ % 60] }});\
         </script><script>",
        serde_json::to_string(&reports)?
    );
    Ok(std::fs::read_to_string(file)?.replacen("<script>", &guest, 1))
}

/// Each pair has its row, with its own figures, and the totals remain.
fn several_pairs() -> Result<()> {
    let mut page = Page::open(&html()?)?;
    page.eventually("turn >= 3 && document.querySelectorAll('#pairs tr').length === 4")?;
    ensure!(page.count("#rings svg.ring")? == 8, "eight rings are drawn");
    for number in 0..4 {
        let row = page.text(&format!("#pairs tr:nth-of-type({})", number + 1))?;
        let share = number + 1;
        for words in [
            format!("rx{number}, tx{number}"),
            format!("{}0 %", share + 1),
            format!("{share},000"),
            format!("{}", 900 + 2 * number),
            format!("{}", 901 + 2 * number),
        ] {
            ensure!(row.contains(&words), "no {words} in {row}");
        }
    }
    let total = page.text("#traffic tr")?;
    ensure!(total.contains("1,0"), "the total is not a million: {total}");
    let counted = page.text("#counters")?;
    for words in ["opened again3", "10.0 s181 µs the last time", "queues256"] {
        ensure!(counted.contains(words), "no {words} in {counted}");
    }
    // Nothing is beside the page, also where the table is wider.
    for view in views() {
        page.view(view)?;
        page.check()?;
        contrast::check(&mut page)?;
        page.picture(&picture_name("pairs", view), view, true)?;
    }
    // An answer that was on its way does not end a pause.
    let state = page.evaluate(
        "(async () => { const answer = refresh(); document.getElementById('pause').click(); \
         await answer; return document.getElementById('state').textContent; })()",
    )?;
    ensure!(state == "Paused", "while paused: {state}");
    Ok(())
}
