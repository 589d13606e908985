//! `kickpath run`: boots the guest, talks to it, and tells the story.

mod kick;
mod report;
mod traffic;

use std::io::Write;

use kickpath_abi::status::Status;
use serde::Serialize;

use crate::command::Sink;
use crate::guest::{Cause, Guest};
use crate::install::IPROUTE2;
use crate::ports::Services;
use crate::qemu::{Net, Vmm};
use crate::session::{NetChoice, Prepared, SessionError, Settings, fetch_status, require};
use crate::terminal::Story;
use crate::trace;
use crate::wire::{Echo, FarEnd, HostSockets, Peer, PingReport, Tap};
use traffic::Traffic;

/// Where a guest's services are looked for on the loopback interface.
pub(crate) const FIRST_PORTS: (u16, u16) = (8080, 7007);

/// What a run found, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every reply came back intact.
    pub ok: bool,
    /// What was not as it should be.
    pub failures: Vec<String>,
    /// `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// Why this one.
    pub accelerator_reason: String,
    /// What ran the guest.
    pub vmm: String,
    /// Its version.
    pub vmm_version: String,
    /// The machine type, of QEMU.
    pub machine: &'static str,
    /// The VMM's command line, ready to paste.
    pub command_line: String,
    /// From the start of the VMM until the guest served, in milliseconds.
    pub up_after_ms: f64,
    /// What the guest's log warned of until then, and its errors.
    pub warnings: Vec<String>,
    /// The guest's address with prefix.
    pub address: String,
    /// The pings; `None` where the far end cannot ping.
    pub ping: Option<PingReport>,
    /// The UDP echoes.
    pub udp: Vec<UdpResult>,
    /// The status page.
    pub http: Option<HttpResult>,
    /// The guest's report on itself, fetched at the end.
    pub status: Option<Status>,
}

/// One UDP echo.
#[derive(Debug, Serialize)]
pub struct UdpResult {
    /// Content bytes.
    pub bytes: usize,
    /// What came back intact.
    pub echo: Option<Echo>,
    /// Why nothing intact came back.
    pub error: Option<String>,
}

/// The status page.
#[derive(Debug, Serialize)]
pub struct HttpResult {
    /// The status code.
    pub status: u16,
    /// Length of the page in bytes.
    pub bytes: usize,
    /// Its type.
    pub content_type: String,
}

/// The far end of a run and what keeps it there.
enum Cable {
    Peer(Peer),
    User(HostSockets),
    Tap(Tap, HostSockets),
}

impl Cable {
    fn far_end(&self) -> &dyn FarEnd {
        match self {
            Self::Peer(peer) => peer,
            Self::User(sockets) | Self::Tap(_, sockets) => sockets,
        }
    }

    fn describe(&self, prepared: &Prepared) -> String {
        let host = prepared.plan.host;
        match self {
            Self::Peer(_) => format!(
                "one Ethernet frame a Unix datagram; at the far end a host of our own, {host}"
            ),
            Self::User(_) => format!("QEMU's user network ({host}), ports of 127.0.0.1 forwarded"),
            Self::Tap(tap, _) => format!(
                "tap device; at the far end Linux, {host}, in the network namespace {}",
                tap.namespace()
            ),
        }
    }
}

/// The network of a command line that is printed and not run.
///
/// # Errors
/// No port is free.
pub fn dry_run_net(prepared: &Prepared, choice: NetChoice) -> Result<Net, SessionError> {
    Ok(match choice {
        NetChoice::Dgram => Net::dgram_to_paste(),
        NetChoice::User => prepared.user_net(Services::find(FIRST_PORTS.0, FIRST_PORTS.1)?),
        NetChoice::Tap => Net::TapName {
            name: "tap0".into(),
            queues: match prepared.machine.vmm {
                Vmm::Qemu => prepared.machine.cpus.into(),
                _ => 1,
            },
            namespace: None,
        },
    })
}

/// Starts the VMM at this end of a cable.
fn launch(prepared: &mut Prepared, choice: NetChoice) -> Result<(Guest, Cable), SessionError> {
    match choice {
        NetChoice::Dgram => {
            let peer = prepared.connect_peer()?;
            let mut guest = prepared.launch()?;
            guest.attach_frames(peer.frame_log());
            Ok((guest, Cable::Peer(peer)))
        }
        NetChoice::User => {
            let (guest, services) = prepared.launch_forwarded(FIRST_PORTS)?;
            let sockets = HostSockets::forwarded(services.forwards());
            Ok((guest, Cable::User(sockets)))
        }
        NetChoice::Tap => {
            let tap = prepared.connect_tap()?;
            let guest = prepared.launch()?;
            let sockets = tap.sockets();
            Ok((guest, Cable::Tap(tap, sockets)))
        }
    }
}

/// Boots the guest and talks to it; tells `story`, where there is one, what
/// happens while it happens.
///
/// # Errors
/// The guest does not come up, or stops. A reply that is missing or damaged is
/// not an error here but in the report.
pub fn run<W: Write>(
    settings: &Settings,
    net: NetChoice,
    mut story: Option<&mut Story<W>>,
    sink: &mut Sink<'_>,
) -> Result<Report, SessionError> {
    settings.check_with(net)?;
    if net == NetChoice::Tap {
        Tap::check_rights()?;
        require(&[IPROUTE2], settings.policy, sink)?;
    }
    let mut prepared = settings.prepare(false, sink)?;
    // Only where the far end is ours, and where somebody reads the story.
    let traced = story.is_some() && net == NetChoice::Dgram;
    let tracer = traced.then(|| trace::tracer(&mut prepared).ok());
    let tracer = tracer.flatten();
    if let Some(story) = &mut story {
        report::machine(story, &prepared)?;
    }
    let (guest, cable) = launch(&mut prepared, net)?;
    if let Some(story) = &mut story {
        story.row("Cable", &cable.describe(&prepared))?;
    }
    let far = cable.far_end();
    let up = prepared.wait_until_up(&guest, far)?;
    let bound = prepared.accel().reply_bound();
    let ip = up.ip();

    let mut report = Report {
        ok: false,
        failures: Vec::new(),
        accelerator: prepared.accel().word(),
        accelerator_reason: prepared.decision.reason.clone(),
        vmm: settings.vmm.to_string(),
        vmm_version: version_of(&prepared),
        machine: settings.kind.word(),
        command_line: guest.command_line().to_owned(),
        up_after_ms: up.after.as_secs_f64() * 1e3,
        warnings: warnings(&guest),
        address: format!("{}/{}", up.address.address, up.address.prefix),
        ping: None,
        udp: Vec::new(),
        http: None,
        status: None,
    };
    // TCP comes first: it sends again what is lost while the guest still takes
    // addresses from a router and forgets its neighbours.
    match fetch_status(far, ip, bound) {
        Ok(status) => {
            if let Some(story) = &mut story {
                report::boot(story, &status, &report)?;
                report::warnings(story, &report.warnings)?;
                report::device(story, &status)?;
            }
        }
        Err(error) => report.failures.push(error.to_string()),
    }
    if let Some(story) = &mut story {
        story.section("Traffic")?;
    }
    let mut traffic = Traffic {
        far,
        ip,
        bound,
        report: &mut report,
        story: story.as_deref_mut(),
    };
    traffic.ping()?;
    traffic.udp()?;
    traffic.http()?;
    let patience = traffic.patience();
    match fetch_status(far, ip, patience) {
        Ok(status) => {
            if let Some(story) = &mut story {
                report::counters(story, &status.counters)?;
            }
            report.status = Some(status);
        }
        Err(error) => report.failures.push(error.to_string()),
    }
    if crate::interrupt::requested() {
        return Err(guest.failure(Cause::Interrupted).into());
    }
    // A guest that stopped meanwhile is the cause of what is missing.
    guest.check()?;
    report.ok = report.failures.is_empty();
    if report.ok {
        if let Some(story) = &mut story {
            if let (Some(tracer), Cable::Peer(peer), Some(status)) =
                (&tracer, &cable, &report.status)
            {
                let address = up.address.address;
                kick::tell(story, tracer, &prepared, &guest, peer, address, status)?;
                guest.check()?;
            }
            report::end(story)?;
        }
        return Ok(report);
    }
    if let Some(story) = &mut story {
        story.conclusion(false, "Not every reply came back intact.")?;
        let cause = Cause::Other(report.failures.join("\n"));
        return Err(guest.failure(cause).into());
    }
    Ok(report)
}

/// The lines of the guest's log that tell of something wrong, without their
/// time.
fn warnings(guest: &Guest) -> Vec<String> {
    let lines = guest.console_since(0).into_iter();
    lines.filter_map(|line| warning(&line.text)).collect()
}

/// The rest of a line such as `[    0.054321] warning: what is wrong`.
fn warning(line: &str) -> Option<String> {
    let (_, text) = line.strip_prefix('[')?.split_once("] ")?;
    let is_one = text.starts_with("warning: ") || text.starts_with("error: ");
    is_one.then(|| text.to_owned())
}

/// The version of what runs the machine.
fn version_of(prepared: &Prepared) -> String {
    let machine = &prepared.machine;
    let version = machine.vmm.version(&machine.program);
    version.unwrap_or_else(|| "of unknown version".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_told_from_other_lines() {
        let told = |line| warning(line).unwrap_or_default();
        assert_eq!(told("[    0.054321] warning: x] y"), "warning: x] y");
        assert_eq!(told("[   12.000000] error: mtu"), "error: mtu");
        for line in ["[    0.1] no warning: x", "warning: x", "[", ""] {
            assert_eq!(warning(line), None, "{line}");
        }
    }
}
