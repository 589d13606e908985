//! A far end that stops reading: the transmit queue fills, frames wait, and
//! none is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::guest::{Cause, Guest};
use kickpath::qemu::GUEST_MAC;
use kickpath_tests::frames::{self, Route};
use kickpath_tests::{RawWire, Spec, Suite, UP};

const HOST_MAC: [u8; 6] = [0x02, 0x4b, 0x50, 0, 0, 3];
const BOUND: Duration = Duration::from_secs(30);

/// Frames that fit into the device's queues, one each way.
const FIT: usize = 512;

pub fn add(suite: &mut Suite) {
    let way = suite.way();
    for &irq in way.rungs() {
        let name = irq.word().replace('-', "_");
        let name = format!("transmit_queue::a_full_one_loses_nothing_{name}");
        suite.test(&name, move || {
            let wire = RawWire::new()?;
            let spec = Spec::pc().over(way).config(move |config| config.irq = irq);
            let (guest, plan) = spec.launch_on(wire.net())?;
            let route = Route {
                from: HOST_MAC,
                from_ipv4: plan.host,
                from_ipv6: "fe80::3".parse()?,
                to: GUEST_MAC,
                to_ipv4: plan.guest.address,
                to_ipv6: "fe80::5054:ff:fe4b:5001".parse()?,
            };
            stop_and_go(&wire, &guest, &route).map_err(|error| {
                anyhow::anyhow!("{}", guest.failure(Cause::Other(format!("{error:#}"))))
            })
        });
    }
}

fn stop_and_go(wire: &RawWire, guest: &Guest, route: &Route) -> Result<()> {
    guest.wait_for_console(UP, BOUND)?;
    for round in 0..3 {
        // The first answer needs our hardware address, and shows that the
        // guest is awake.
        let first = 100 + round;
        echo(wire, route, first)?;
        // Nobody reads from here on. QEMU's socket takes some answers, then its
        // queue stands still, then the guest's, then we are not read either.
        let mut sent = BTreeSet::new();
        for number in 1000..20_000 {
            let payload = [number as u8; 1000];
            // A QEMU that waits for a CPU does not read either: so many fit for certain.
            let patience = match sent.len() > FIT {
                true => Duration::from_millis(500),
                false => BOUND,
            };
            if !wire.send(&route.udp4(number, &payload), patience)? {
                break;
            }
            sent.insert(number);
        }
        ensure!(sent.len() < 19_000, "QEMU never stopped reading");
        ensure!(
            sent.len() > FIT,
            "only {} frames fit into both queues",
            sent.len()
        );
        // And now everything must come.
        let total = sent.len();
        let what = format!("round {round}: all {total} answers");
        let mut twice = None;
        let done = wire.receive_until(&what, BOUND, |frame| {
            if let Some(number) = frames::answered(frame)
                && !sent.remove(&number)
            {
                twice.get_or_insert(number);
            }
            sent.is_empty().then_some(())
        });
        done.with_context(|| {
            let missing: Vec<_> = sent.iter().take(10).collect();
            format!(
                "{} of {total} answers are missing, as {missing:?}",
                sent.len()
            )
        })?;
        ensure!(
            twice.is_none(),
            "{twice:?} was answered twice or never asked"
        );
        echo(wire, route, first + 50)?;
    }
    Ok(())
}

/// One echo; answers the guest's question for our hardware address.
fn echo(wire: &RawWire, route: &Route, number: u16) -> Result<()> {
    ensure!(
        wire.send(&route.udp4(number, b"first"), BOUND)?,
        "QEMU does not read"
    );
    wire.receive_until("an echo", BOUND, |frame| {
        if let Some(reply) = frames::arp_reply(frame, route.from_ipv4, route.from) {
            // A reply that QEMU does not take shows as a missing echo.
            let _ = wire.send(&reply, BOUND);
        }
        (frames::answered(frame) == Some(number)).then_some(())
    })
}
