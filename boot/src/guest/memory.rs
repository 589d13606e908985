//! A guest's memory, written from outside by QEMU's GDB server: a device that
//! lies, played on a real one.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::gdb::Debugger;
use super::qmp::Monitored;

/// What QEMU knows of a queue (`x-query-virtio-queue-status`); the addresses
/// are the guest's physical ones.
#[derive(Clone, Copy, Debug)]
pub struct QueueStatus {
    /// Number of descriptors.
    pub vring_num: u16,
    /// Where the descriptor table is (specification 2.7.5).
    pub vring_desc: u64,
    /// Where the available ring is (specification 2.7.6).
    pub vring_avail: u64,
    /// Where the used ring is (2.7.8).
    pub vring_used: u64,
    /// The next entry of the available ring that the device takes.
    pub last_avail_idx: u16,
    /// The device's index of the used ring.
    pub used_idx: u16,
}

/// Asks QEMU about a queue of the guest's network device.
///
/// # Errors
/// There is no such device or queue, or the answer is not understood.
pub fn queue_status(guest: &impl Monitored, queue: u16) -> Result<QueueStatus> {
    let devices = guest.qmp("x-query-virtio", json!({}))?;
    let path = devices
        .as_array()
        .into_iter()
        .flatten()
        .find(|device| device["name"] == "virtio-net")
        .and_then(|device| device["path"].as_str())
        .with_context(|| format!("no network device in {devices}"))?;
    let arguments = json!({ "path": path, "queue": queue });
    let answer = guest.qmp("x-query-virtio-queue-status", arguments)?;
    let field = |name: &str| {
        let value = answer[name].as_u64();
        value.with_context(|| format!("no {name} in {answer}"))
    };
    Ok(QueueStatus {
        vring_num: field("vring-num")?.try_into()?,
        vring_desc: field("vring-desc")?,
        vring_avail: field("vring-avail")?,
        vring_used: field("vring-used")?,
        last_avail_idx: field("last-avail-idx")?.try_into()?,
        used_idx: field("used-idx")?.try_into()?,
    })
}

/// Reads a guest's memory by the virtual addresses of its first CPU.
///
/// # Errors
/// QEMU does not do as asked.
pub fn read(guest: &impl Monitored, address: u64, length: usize) -> Result<Vec<u8>> {
    save(guest, "memsave", address, length)
}

/// Reads a guest's memory as its devices see it.
///
/// # Errors
/// As [`read`].
pub fn read_physical(guest: &impl Monitored, address: u64, length: usize) -> Result<Vec<u8>> {
    save(guest, "pmemsave", address, length)
}

fn save(guest: &impl Monitored, command: &str, address: u64, length: usize) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    let arguments = json!({
        // QEMU takes a signed number.
        "val": address.cast_signed(),
        "size": length,
        "filename": file.path(),
    });
    guest.qmp(command, arguments)?;
    Ok(std::fs::read(file.path())?)
}

/// Writes into a guest's physical memory while its CPUs stand still.
///
/// # Errors
/// QEMU's GDB server does not do as asked.
pub fn write(guest: &impl Monitored, address: u64, bytes: &[u8]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut debugger = Debugger::attach(guest, &directory.path().join("gdb"))?;
    debugger.command("Qqemu.PhyMemMode:1")?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    debugger.command(&format!("M{address:x},{:x}:{hex}", bytes.len()))?;
    // To detach lets it run.
    debugger.command("D")?;
    let end = json!({ "command-line": "gdbserver none" });
    guest.qmp("human-monitor-command", end)?;
    Ok(())
}

/// Bytes of a descriptor (specification 2.7.5, 2.8.13).
const DESCRIPTOR: u64 = 16;

/// `RING_EVENT_FLAGS_DISABLE` of a packed ring (specification 2.8.10).
const EVENTS_DISABLED: u16 = 1;

/// The device seems to have used what it was not given: the used index of a split ring is past
/// all that is outstanding, the next descriptor of a packed one is used by an id that there is
/// not. The guest finds it when it looks, if no frame has come before.
///
/// # Errors
/// QEMU does not do as asked.
pub fn lie_of_use(guest: &impl Monitored, queue: u16, is_packed: bool) -> Result<()> {
    let queue = queue_status(guest, queue)?;
    if !is_packed {
        let lie = queue.used_idx.wrapping_add(queue.vring_num + 1);
        return write(guest, queue.vring_used + 2, &lie.to_le_bytes());
    }
    // Behind an address and a length are the id, and flags of which bit 7 (available) and bit
    // 15 (used) are the same when it is used (2.8.1).
    let id = queue.vring_desc + DESCRIPTOR * u64::from(queue.used_idx) + 12;
    let [_, _, low, high] = read_physical(guest, id, 4)?[..] else {
        bail!("QEMU saves other than 4 bytes");
    };
    let used = high & 0x7f | low & 0x80;
    write(guest, id, &[0xff, 0x7f, low, used])
}

/// The device seems to need no kick of a queue for a long time. A queue whose frames are all
/// sent keeps that until the watchdog has it kicked.
///
/// # Errors
/// As [`lie_of_use`].
pub fn hide_kicks(guest: &impl Monitored, queue: u16, is_packed: bool) -> Result<()> {
    let queue = queue_status(guest, queue)?;
    if is_packed {
        // QEMU's name for the device's event suppression structure; its flags are behind the
        // offset.
        return write(guest, queue.vring_used + 2, &EVENTS_DISABLED.to_le_bytes());
    }
    // The field avail_event (specification 2.7.8).
    let avail_event = queue.vring_used + 4 + 8 * u64::from(queue.vring_num);
    let far = queue.last_avail_idx.wrapping_add(0x4000);
    write(guest, avail_event, &far.to_le_bytes())
}

/// The driver seems to have given the device a buffer of no bytes: QEMU takes its device for
/// broken when it comes to it, and asks to be reset where a driver of version 1 can hear it.
///
/// # Errors
/// As [`lie_of_use`].
pub fn offer_nothing(guest: &impl Monitored, queue: u16) -> Result<()> {
    let queue = queue_status(guest, queue)?;
    // Slot and descriptor are the same in the driver's receive and transmit rings.
    let slot = u64::from(queue.last_avail_idx % queue.vring_num);
    let length = queue.vring_desc + DESCRIPTOR * slot + 8;
    write(guest, length, &[0; 4])
}
