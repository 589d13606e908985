//! `kickpath serve`: keeps the guest up until Ctrl-C.

use std::io::Write;
use std::time::Duration;

use crate::command::Sink;
use crate::guest::{Cause, Guest};
use crate::interrupt;
use crate::ports::Services;
use crate::qemu::Net;
use crate::session::{NetChoice, Prepared, SessionError, Settings};
use crate::terminal::Story;
use crate::wire::HostSockets;

/// The far end of `serve`: its forwards need QEMU's own network.
pub const NET: NetChoice = NetChoice::User;

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
    settings.check_with(NET)?;
    let mut prepared = settings.prepare(false, sink)?;
    story.section("Machine")?;
    story.row("Accelerator", &prepared.decision.to_string())?;
    let (guest, services) = prepared.launch_forwarded((options.http, options.echo))?;
    let far = HostSockets::forwarded(services.forwards());
    let served = until_up(&prepared, &guest, &far, story).and_then(|seen| {
        addresses(story, services)?;
        stream(&guest, seen, story)
    });
    match served {
        Err(SessionError::Guest(failure)) if matches!(failure.cause, Cause::Interrupted) => {
            story.line("")?;
            story.line("Stopped. QEMU has ended, and nothing is left behind.")?;
            Ok(())
        }
        other => other,
    }
}

/// Shows the boot; returns the number of the first line not shown.
fn until_up<W: Write>(
    prepared: &Prepared,
    guest: &Guest,
    far: &HostSockets,
    story: &mut Story<W>,
) -> Result<u64, SessionError> {
    let up = prepared.wait_until_up(guest, far)?;
    story.section("Guest")?;
    for line in guest.console_since(0) {
        if line.number < up.next_line {
            story.faint(&format!("  {}", line.text))?;
        }
    }
    Ok(up.next_line)
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
