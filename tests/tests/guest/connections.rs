//! Clients that take what they can get.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use kickpath::wire::peer::Connection;
use kickpath::wire::{ECHO_PORT, FarEnd, HTTP_PORT};
use kickpath_tests::{Lab, Spec, Suite, Way};

const CHARGEN: u16 = 19;

pub fn add(suite: &mut Suite) {
    suite.guest(
        "connections::200_that_send_nothing_do_not_stop_others",
        Spec::pc().bound(Duration::from_secs(120)),
        |lab| {
            let ports = [ECHO_PORT, HTTP_PORT, ECHO_PORT, CHARGEN];
            crowd(lab, &ports, |_, _| Ok(()))
        },
    );
    suite.guest(
        "connections::200_that_never_read_do_not_stop_others",
        Spec::pc().bound(Duration::from_secs(120)),
        |lab| {
            let ports = [ECHO_PORT, CHARGEN, ECHO_PORT, HTTP_PORT];
            crowd(lab, &ports, fill)
        },
    );
    if suite.way() == Way::Legacy {
        let spec = Spec::pc()
            .edit(|machine| machine.memory = "16M".parse().expect("an amount"))
            .bound(Duration::from_secs(120));
        suite.guest(
            "connections::200_with_16M_of_memory_do_not_stop_others",
            spec,
            |lab| {
                let ports = [ECHO_PORT, HTTP_PORT, CHARGEN];
                crowd(lab, &ports, fill)
            },
        );
    }
}

/// Sends more than the guest's buffers hold and reads nothing; it stops when
/// they are full, or when the guest gives the connection up.
fn fill(lab: &Lab, connection: &Connection) -> Result<()> {
    let data = vec![b'x'; 100 * 1024];
    let _ = lab
        .peer
        .tcp_send(connection, &data, Duration::from_millis(20));
    Ok(())
}

/// Opens 200 connections, all of them, does `with` each what makes them a
/// burden, and sees to it that another client gets its echo, before, during and
/// after.
fn crowd(lab: &Lab, ports: &[u16], with: impl Fn(&Lab, &Connection) -> Result<()>) -> Result<()> {
    let mut held = Vec::new();
    for number in 0..200 {
        let to = SocketAddr::new(lab.address(), ports[number % ports.len()]);
        // A guest that is full refuses one until another has been idle for a
        // while; that is its right. This client insists.
        let connection = lab.eventually("a place for one more", || {
            Ok(lab.peer.tcp_connect(to, lab.soon())?)
        })?;
        with(lab, &connection)?;
        held.push(connection);
        lab.peer.udp_echo(lab.address(), 64, lab.soon())?;
        if number % 20 == 19 {
            others(lab).with_context(|| format!("after {} connections", number + 1))?;
        }
    }
    others(lab)?;
    for connection in held {
        lab.peer.tcp_abort(connection);
    }
    others(lab)
}

/// Another client gets what it wants, perhaps at the second try.
fn others(lab: &Lab) -> Result<()> {
    lab.echo_flood(200, 64)?;
    lab.eventually("TCP echo beside the crowd", || {
        let bound = Duration::from_secs(5);
        Ok(lab.peer.tcp_echo(lab.address(), 16 * 1024, bound)?)
    })?;
    lab.eventually("HTTP beside the crowd", || lab.status())?;
    Ok(())
}
