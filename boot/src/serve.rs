//! `kickpath serve`: keeps the guest up until Ctrl-C.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use crate::command::Sink;
use crate::guest::{Cause, Guest};
use crate::install::IPROUTE2;
use crate::interrupt;
use crate::ports::Services;
use crate::qemu::{Net, Vmm};
use crate::run;
use crate::session::{NetChoice, Prepared, SessionError, Settings, Up, require};
use crate::terminal::Story;
use crate::wire::{FarEnd, HostSockets, Tap};

/// The far end of `serve`: forwards by QEMU's own network; of other VMMs, a tap.
pub fn net(vmm: Vmm) -> NetChoice {
    match vmm {
        Vmm::Qemu => NetChoice::User,
        _ => NetChoice::Tap,
    }
}

/// The preferred ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// First TCP port that is tried for the status page.
    pub http: u16,
    /// First port that is tried for the UDP and TCP echo.
    pub echo: u16,
}

/// The network of `serve` on a machine that is described and not run.
///
/// # Errors
/// No port is free.
pub fn dry_run_net(prepared: &Prepared, options: ServeOptions) -> Result<Net, SessionError> {
    if prepared.machine.vmm != Vmm::Qemu {
        return run::dry_run_net(prepared, NetChoice::Tap);
    }
    let services = Services::find(options.http, options.echo)?;
    Ok(prepared.user_net(services))
}

/// Serves until Ctrl-C, which is success, or until the guest ends, which is
/// not.
///
/// # Errors
/// The guest does not come up, or ends.
pub fn serve<W: Write>(
    settings: &Settings,
    options: ServeOptions,
    story: &mut Story<W>,
    sink: &mut Sink<'_>,
) -> Result<(), SessionError> {
    let net = net(settings.vmm);
    settings.check_with(net)?;
    if net == NetChoice::Tap {
        Tap::check_rights()?;
        require(&[IPROUTE2], settings.policy, sink)?;
    }
    let mut prepared = settings.prepare(false, sink)?;
    story.section("Machine")?;
    story.row("Accelerator", &prepared.decision.to_string())?;
    let served = if net == NetChoice::Tap {
        let tap = prepared.connect_tap()?;
        let guest = prepared.launch()?;
        until_up(&prepared, &guest, &tap.sockets(), story).and_then(|up| {
            addresses_inside(story, &tap, up.ip())?;
            stream(&guest, up.next_line, story)
        })
    } else {
        let (guest, services) = prepared.launch_forwarded((options.http, options.echo))?;
        let far = HostSockets::forwarded(services.forwards());
        until_up(&prepared, &guest, &far, story).and_then(|up| {
            addresses(story, services)?;
            stream(&guest, up.next_line, story)
        })
    };
    match served {
        Err(SessionError::Guest(failure)) if matches!(failure.cause, Cause::Interrupted) => {
            story.line("")?;
            let vmm = settings.vmm;
            story.line(&format!(
                "Stopped. {vmm} has ended, and nothing is left behind."
            ))?;
            Ok(())
        }
        other => other,
    }
}

/// Shows the boot.
fn until_up<W: Write>(
    prepared: &Prepared,
    guest: &Guest,
    far: &dyn FarEnd,
    story: &mut Story<W>,
) -> Result<Up, SessionError> {
    let up = prepared.wait_until_up(guest, far)?;
    story.section("Guest")?;
    for line in guest.console_since(0) {
        if line.number < up.next_line {
            story.faint(&format!("  {}", line.text))?;
        }
    }
    Ok(up)
}

/// Where the services are of a guest at a tap.
fn addresses_inside<W: Write>(
    story: &mut Story<W>,
    tap: &Tap,
    ip: IpAddr,
) -> Result<(), SessionError> {
    let inside = format!("ip netns exec {}", tap.namespace());
    story.section("Open, in a network namespace of its own")?;
    story.row("Namespace", tap.namespace())?;
    story.row("Status page", &format!("http://{ip}/"))?;
    story.row("JSON", &format!("http://{ip}/stats.json"))?;
    story.row("Prometheus", &format!("http://{ip}/metrics"))?;
    story.row("Echo", &format!("{ip} port 7, UDP and TCP"))?;
    story.section("Try, in another terminal")?;
    story.line(&format!("  {inside} curl http://{ip}/stats.json"))?;
    story.line(&format!("  {inside} ping {ip}"))?;
    story.section("The guest's log follows; Ctrl-C ends it all")?;
    Ok(())
}

fn addresses<W: Write>(story: &mut Story<W>, services: Services) -> Result<(), SessionError> {
    let Services { http, echo } = services;
    story.section("Open")?;
    story.row("Status page", &format!("http://127.0.0.1:{http}/"))?;
    story.row("JSON", &format!("http://127.0.0.1:{http}/stats.json"))?;
    story.row("Prometheus", &format!("http://127.0.0.1:{http}/metrics"))?;
    story.row("Echo", &format!("127.0.0.1:{echo}, UDP and TCP"))?;
    story.section("Try, in another terminal")?;
    story.line(&format!("  curl http://127.0.0.1:{http}/stats.json"))?;
    story.line(&format!("  echo hello | nc -u -w1 127.0.0.1 {echo}"))?;
    story.line(&format!("  echo hello | nc -N 127.0.0.1 {echo}"))?;
    story.section("The guest's log follows; Ctrl-C ends it all")?;
    Ok(())
}

fn stream<W: Write>(
    guest: &Guest,
    mut next: u64,
    story: &mut Story<W>,
) -> Result<(), SessionError> {
    loop {
        for line in guest.next_lines(next, Duration::from_secs(1))? {
            story.faint(&format!("  {}", line.text))?;
            next = line.number + 1;
        }
        if interrupt::requested() {
            return Err(guest.failure(Cause::Interrupted).into());
        }
    }
}
