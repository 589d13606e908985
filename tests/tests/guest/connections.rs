//! Clients that take what they can get, and what idleness costs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::wire::peer::Connection;
use kickpath::wire::{ECHO_PORT, FarEnd, HTTP_PORT};
use kickpath_tests::{Lab, Spec, Suite};

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
            crowd(lab, &ports, |lab, connection| {
                // More than the guest's buffers; it stops when they are full,
                // or when the guest gives the connection up.
                let data = vec![b'x'; 100 * 1024];
                let _ = lab
                    .peer
                    .tcp_send(connection, &data, Duration::from_millis(20));
                Ok(())
            })
        },
    );
    suite.guest(
        "connections::10_idle_seconds_cost_less_than_3_percent_of_a_cpu",
        Spec::pc(),
        |lab| {
            lab.check_services()?;
            idle(lab, Duration::from_secs(10), 0.03)
        },
    );
    suite.guest(
        "connections::idle_without_a_router_or_dhcp_server_costs_little_too",
        Spec::pc().dhcp(false).no_router(),
        |lab| {
            // Three solicitations, 4 s apart, then silence (RFC 4861, 6.3.7).
            lab.check_services()?;
            idle(lab, Duration::from_secs(20), 0.03)
        },
    );
}

/// Opens 200 connections, all of them, does `with` each what makes them a burden, and sees
/// to it that another client gets its echo, before, during and after.
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
        let bound = Duration::from_secs(2);
        Ok(lab.peer.tcp_echo(lab.address(), 16 * 1024, bound)?)
    })?;
    lab.eventually("HTTP beside the crowd", || lab.status())?;
    Ok(())
}

/// The one thing here that is about time: nothing happens for a while, and
/// QEMU must have had nothing to do.
fn idle(lab: &Lab, time: Duration, limit: f64) -> Result<()> {
    let before = cpu_time(lab.guest.pid())?;
    std::thread::sleep(time);
    let used = cpu_time(lab.guest.pid())? - before;
    let share = used.as_secs_f64() / time.as_secs_f64();
    ensure!(share < limit, "QEMU used {:.1} % of a CPU", share * 100.0);
    Ok(())
}

/// CPU time of a process, all of its threads, user and system.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc(5): the name, in parentheses, may hold anything; utime and stime are
    // the 12th and 13th field behind it.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("no name in /proc/PID/stat")?;
    let mut ticks = 0;
    for field in fields.split(' ').skip(11).take(2) {
        ticks += field.parse::<u64>()?;
    }
    let rate = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    let rate = u64::try_from(rate.context("no CLK_TCK")?)?;
    Ok(Duration::from_micros(ticks * 1_000_000 / rate))
}
