//! The status page that the guest serves.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Result, ensure};
use kickpath_tests::Suite;
use kickpath_tests::browser::View;
use kickpath_tests::program::{Running, loopback_address};

use crate::support::{Page, WIDTHS, desk};

pub fn add(suite: &mut Suite) {
    suite.test("status::a_live_guest", a_live_guest);
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
    for ring in ["receive (queue 0)", "transmit (queue 1)"] {
        shows(&mut page, "#rings", &[ring, "256 descriptors"])?;
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
    for width in WIDTHS {
        for dark in [false, true] {
            let view = View {
                width,
                ..desk(dark)
            };
            page.view(view)?;
            page.check()?;
            page.picture(&format!("status-{width}-{dark}"), view, true)?;
        }
    }
    Ok(())
}
