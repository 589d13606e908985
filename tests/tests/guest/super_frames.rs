//! TCP segments over IPv6 that the guest puts together, with Linux at the far end
//! of a tap. Needs root.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Result, ensure};
use kickpath::install::{ETHTOOL, TCPDUMP};
use kickpath_tests::{Spec, Suite, Way, setup};

use crate::evidence::{Capture, LARGEST_FRAME, Seen, ethtool, large_among, no_errors};
use crate::site::{BOUND, LINK_LOCAL, Site, pull};

const MIB: usize = 1 << 20;

pub fn add(suite: &mut Suite) {
    suite.needs(setup::lacks_tap(), |suite| {
        let name = "super_frames::leave_the_guest";
        Site::test(suite, name, Spec::pc(), leave_the_guest);
        let name = "super_frames::of_several_connections";
        Site::test(suite, name, Spec::pc(), several_connections);
        if suite.way() == Way::Modern {
            let spec = Spec::pc().property("packed", "on");
            let name = "super_frames::leave_a_packed_queue";
            Site::test(suite, name, spec, leave_the_guest);
        }
    });
}

/// Frames from the guest with TCP over IPv6.
const FROM_GUEST: &str = "ip6 and tcp and src host fe80::5054:ff:fe4b:5001";

fn leave_the_guest(site: &Site) -> Result<()> {
    setup::require(&[TCPDUMP, ETHTOOL])?;
    ensure!(
        ethtool(site, "tx-tcp6-segmentation")?,
        "the tap does not segment TCP over IPv6"
    );
    let chargen = site.over_ipv6(19)?;
    let Seen { average, lengths } =
        Seen::during(site, FROM_GUEST, "rx", || pull(chargen, 16 * MIB))?;
    let large = large_among(&lengths);
    eprintln!(
        "super_frames: {average} bytes a frame; of {} captured {large} were large, the largest \
         had {:?} bytes",
        lengths.len(),
        lengths.iter().max()
    );
    ensure!(average > 8 * LARGEST_FRAME, "{average} bytes a frame");
    ensure!(large > 100, "{large} large frames: {lengths:?}");

    // The page, as a browser gets it, over both.
    let capture = Capture::begin(site, &format!("{FROM_GUEST} and src port 80"))?;
    let page = site.curl(&format!("http://[{LINK_LOCAL}%25tap0]/"))?;
    ensure!(page == site.curl("http://10.0.2.15/")?, "another page");
    let lengths = capture.end()?;
    ensure!(large_among(&lengths) > 0, "no large frame: {lengths:?}");

    echo(site, 4 * MIB)?;
    coalesced_more_than(site, 500)
}

/// Sends bytes and gets them back, all compared.
fn echo(site: &Site, length: usize) -> Result<()> {
    let echo = site.over_ipv6(7)?;
    site.inside(|| {
        let mut stream = TcpStream::connect_timeout(&echo, BOUND)?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.set_write_timeout(Some(BOUND))?;
        let request: Vec<u8> = (0..length)
            .map(|at| (at ^ at >> 8 ^ at >> 16) as u8)
            .collect();
        let mut answer = Vec::with_capacity(length);
        std::thread::scope(|scope| {
            let mut sender = stream.try_clone()?;
            let request = &request;
            let sent = scope.spawn(move || {
                sender.write_all(request)?;
                sender.shutdown(Shutdown::Write)
            });
            stream.read_to_end(&mut answer)?;
            sent.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            anyhow::Ok(())
        })?;
        ensure!(answer == request, "{} bytes came back", answer.len());
        Ok(())
    })
}

/// So many super-frames were put together, and nothing was lost.
fn coalesced_more_than(site: &Site, least: u64) -> Result<()> {
    let counters = no_errors(site)?;
    ensure!(counters.tx_coalesced > least, "{counters:?}");
    Ok(())
}

/// Their segments come in turns.
fn several_connections(site: &Site) -> Result<()> {
    setup::require(&[TCPDUMP])?;
    let (chargen, discard) = (site.over_ipv6(19)?, site.over_ipv6(9)?);
    let capture = Capture::begin(site, FROM_GUEST)?;
    site.inside(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| scope.spawn(move || pull(chargen, 4 * MIB)))
                .chain([scope.spawn(move || crate::site::push(discard, 4 * MIB))])
                .collect();
            for thread in threads {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })
    })?;
    let lengths = capture.end()?;
    let large: Vec<_> = lengths
        .iter()
        .filter(|length| u64::from(**length) > LARGEST_FRAME)
        .map(|length| u64::from(*length))
        .collect();
    let average = large.iter().sum::<u64>() / (large.len() as u64).max(1);
    eprintln!(
        "super_frames: three connections, {} large frames of {average} bytes",
        large.len()
    );
    ensure!(
        large.len() > 100 && average > 4 * LARGEST_FRAME,
        "{} large frames of {average} bytes",
        large.len()
    );
    coalesced_more_than(site, 100)
}
