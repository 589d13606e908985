//! The VMMs that the guest was run on, and what docs/vmm.md says of those runs.
//!
//! A VMM that is on the path, or that a variable names ([`crate::vmms::find`]), is run anew; what was
//! recorded of others stays.

use anyhow::{Context, Result, ensure};
use kickpath::compare::vmms::{Taken, VmmRow};
use kickpath::qemu::Vmm;
use kickpath_abi::status::Status;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{COMMAND, recorded, workspace};
use crate::setup;
use crate::vmms::Programs;

/// The file.
const VMMS: &str = "vmm.json";

/// Features whose absence is told; the first is not for legacy interfaces.
pub const FEATURES: [&str; 10] = [
    "RING_PACKED",
    "CSUM",
    "GUEST_CSUM",
    "HOST_TSO4",
    "GUEST_TSO4",
    "MRG_RXBUF",
    "STATUS",
    "CTRL_VQ",
    "INDIRECT_DESC",
    "EVENT_IDX",
];

/// A VMM with one of its transports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Its command line, without this machine's directories.
    command_line: String,
    /// How the guest came up, such as `PVH`.
    protocol: String,
    /// Descriptors of the transmit queue.
    queue_size: u16,
    /// The names of the features that the device offers.
    offered: Vec<String>,
    /// Who takes a kick, by `kickpath compare --vmm`.
    kick: VmmRow,
    /// By `kickpath bench`.
    counts: Vec<Counts>,
}

/// A row of `kickpath bench`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Counts {
    name: String,
    kicks: f64,
    interrupts: f64,
    register_accesses: f64,
    returns_to_vmm: Option<f64>,
}

impl Seen {
    /// The VMM.
    pub fn vmm(&self) -> &str {
        &self.kick.vmm
    }

    /// What the device does not offer, of what the driver has.
    pub fn absent(&self) -> Vec<&'static str> {
        let is_legacy = usize::from(self.kick.transport == "legacy");
        let names = FEATURES.into_iter().skip(is_legacy);
        let is_absent = |name: &&str| self.offered.iter().all(|offered| offered != name);
        names.filter(is_absent).collect()
    }
}

/// What was recorded.
///
/// # Errors
/// It is of another schema.
pub fn read() -> Result<Vec<Seen>> {
    match std::fs::read_to_string(recorded(VMMS)) {
        Ok(text) => serde_json::from_str(&text)
            .with_context(|| format!("docs/recorded/{VMMS} is of another schema; see {COMMAND}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(VMMS),
    }
}

/// Runs those of these VMMs that are here; `tell` hears of each.
///
/// # Errors
/// One of them does not run the guest.
pub fn record(vmms: &[Vmm], mut tell: impl FnMut(&str)) -> Result<()> {
    if vmms.is_empty() {
        return Ok(());
    }
    if let Some(reason) = setup::lacks_tap().or_else(|| setup::kvm().err()) {
        tell(&format!("The VMMs' recorded runs stay: {reason}"));
        return Ok(());
    }
    let programs = Programs::new()?;
    for &vmm in vmms {
        if vmm != Vmm::Qemu && crate::vmms::find(vmm).is_err() {
            tell(&format!("{vmm} is not here; its recorded runs stay"));
            continue;
        }
        tell(&format!("Recording {vmm}"));
        let now = runs(vmm, &programs).with_context(|| vmm.to_string())?;
        let mut seen = read()?;
        seen.retain(|run| run.vmm() != vmm.to_string());
        seen.extend(now);
        let place = |run: &Seen| Vmm::ALL.iter().position(|vmm| vmm.to_string() == run.vmm());
        seen.sort_by_key(place);
        let text = serde_json::to_string_pretty(&seen)? + "\n";
        std::fs::write(recorded(VMMS), text)?;
    }
    Ok(())
}

/// Runs one, on each of its transports.
fn runs(vmm: Vmm, programs: &Programs) -> Result<Vec<Seen>> {
    let run =
        |words: &[&str]| -> Result<Value> { Ok(serde_json::from_str(&programs.run(words)?)?) };
    let compared = run(&["compare", "--json", "--vmm", vmm.word()])?;
    ensure!(compared["absent"] == serde_json::json!([]), "{compared}");
    let rows: Vec<VmmRow> = serde_json::from_value(compared["rows"].clone())?;
    // Where the project lies is nobody's business.
    let top = format!("{}/", workspace().canonicalize()?.display());
    let each = rows.into_iter().map(|kick| {
        let on = match (vmm, kick.transport.as_str()) {
            (Vmm::Qemu, "mmio") => vec!["--accel", "kvm", "--machine", "microvm"],
            (Vmm::Qemu, transport) => vec!["--accel", "kvm", "--transport", transport],
            (_, transport) => vec!["--vmm", vmm.word(), "--transport", transport],
        };
        let ran = run(&[&["run", "--json", "--net", "tap"], &on[..]].concat())?;
        let counted = run(&[&["bench", "--json", "--echoes", "10000"], &on[..]].concat())?;
        let status: Status = serde_json::from_value(ran["status"].clone())?;
        let queue = status.queues.iter().find(|queue| queue.name == "transmit");
        let line = ran["command_line"].as_str().context("no command line")?;
        Ok(Seen {
            command_line: programs.without_directory(line).replace(&top, ""),
            protocol: status.boot.protocol,
            queue_size: queue.context("no transmit queue")?.size,
            offered: status.device.features_offered,
            counts: serde_json::from_value(counted["rows"].clone())?,
            kick,
        })
    });
    each.collect()
}

/// The block of a document that is made of these runs, if `name` is one.
pub fn block(name: &str, seen: &[Seen]) -> Option<Result<String>> {
    let text = match name {
        "VMMs" => table(
            "VMM|version|entry|transport|queues|interrupts|the device does not offer",
            seen.iter().map(offers),
        ),
        "VMMs' kicks" => table(
            "VMM|kick|KVM|hears the kick|sends the frame|raises the interrupt",
            seen.iter().map(kick),
        ),
        "VMMs' echoes" => table(
            "VMM|kicks|interrupts|accesses|returns",
            seen.iter().map(echo),
        ),
        "VMMs' counts" => {
            let names = seen.first().map(|run| run.counts.iter().skip(1));
            let names = names.into_iter().flatten().map(|row| row.name.as_str());
            let heads = ["VMM"].into_iter().chain(names).collect::<Vec<_>>();
            table(&heads.join("|"), seen.iter().map(counts))
        }
        _ => {
            let vmm = name.strip_prefix("command line of ")?;
            command_line(seen.iter().find(|run| run.vmm() == vmm))
        }
    };
    Some(text)
}

fn table(heads: &str, rows: impl Iterator<Item = Vec<String>>) -> Result<String> {
    let line = |cells: &str| format!("| {cells} |\n");
    let heads: Vec<_> = heads.split('|').collect();
    let mut text = line(&heads.join(" | ")) + &line(&vec!["---"; heads.len()].join(" | "));
    let mut rows = rows.peekable();
    ensure!(rows.peek().is_some(), "nothing was recorded");
    for cells in rows {
        ensure!(cells.len() == heads.len(), "{cells:?} is not {heads:?}");
        text += &line(&cells.join(" | "));
    }
    Ok(text)
}

fn title(run: &Seen) -> String {
    let bus = match run.kick.transport.as_str() {
        "mmio" => "virtio-mmio",
        "legacy" => "legacy PCI",
        _ => "PCI",
    };
    format!("{}, {bus}", run.vmm())
}

fn offers(run: &Seen) -> Vec<String> {
    let transport = match run.kick.transport.as_str() {
        "mmio" => "virtio-mmio",
        "legacy" => "legacy PCI",
        _ => "modern PCI",
    };
    let absent = run.absent().into_iter();
    let absent: Vec<_> = absent.map(|name| format!("`{name}`")).collect();
    vec![
        run.vmm().to_owned(),
        run.kick.version.trim_start_matches('v').to_owned(),
        run.protocol.clone(),
        transport.to_owned(),
        run.queue_size.to_string(),
        match run.kick.interrupts.as_str() {
            "msix" => "MSI-X, a vector a queue".to_owned(),
            "intx" => "one line".to_owned(),
            other => other.to_owned(),
        },
        absent.join(" "),
    ]
}

fn kick(run: &Seen) -> Vec<String> {
    let kick = &run.kick;
    let instruction = kick.access.split_whitespace().next().unwrap_or_default();
    let to = match kick.access.contains("port") {
        true => "a port",
        false => "memory",
    };
    let told = |text: &Option<String>| match text {
        Some(text) => format!("`{text}`"),
        None => "-".to_owned(),
    };
    vec![
        title(run),
        format!("`{instruction}` to {to}"),
        kick.taken.map_or("-", Taken::title).to_owned(),
        told(&kick.heard_by),
        told(&kick.sent_by),
        told(&kick.raised_by),
    ]
}

fn number(value: f64) -> String {
    format!("{value:.2}")
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

fn echo(run: &Seen) -> Vec<String> {
    let kick = &run.kick;
    vec![
        title(run),
        number(kick.kicks_per_echo),
        number(kick.interrupts_per_echo),
        or_dash(kick.accesses_per_echo),
        or_dash(kick.userspace_exits_per_echo),
    ]
}

fn counts(run: &Seen) -> Vec<String> {
    let rows = run.counts.iter().skip(1).map(|row| {
        let each = [row.kicks, row.interrupts, row.register_accesses].map(number);
        format!("{} / {}", each.join(" / "), or_dash(row.returns_to_vmm))
    });
    [title(run)].into_iter().chain(rows).collect()
}

fn command_line(run: Option<&Seen>) -> Result<String> {
    let run = run.context("it was never recorded")?;
    let lines = run.command_line.lines();
    Ok(lines.map(|line| format!("    {line}\n")).collect())
}
