//! QEMU's own trace events, as its log backend writes them with `-msg timestamp=on`, a file a
//! thread ([`threads`]): `THREAD@SECONDS.MICROSECONDS:EVENT name value ...`.

pub mod stack;
pub mod threads;

use serde::{Deserialize, Serialize};

/// Events that are recorded from QEMU's start on: few, and they count queues
/// and chains from the first one.
pub const EVENTS: &[&str] = &[
    "virtio_set_status",
    "virtio_queue_notify",
    "virtio_notify",
    // Named otherwise since 8.2. QEMU complains of a name that it does not know, and of a
    // pattern it does not.
    "virtio_notify_irqfd*",
    "virtqueue_pop",
    "virtqueue_fill",
    "virtqueue_flush",
    "virtio_pci_notify_write",
    "virtio_pci_notify_write_pio",
    "kvm_set_ioeventfd_mmio",
    "kvm_set_ioeventfd_pio",
];

/// Events that are recorded only around the packet: every access to a device
/// and every interrupt makes one.
pub const WINDOW_EVENTS: &[&str] = &[
    "memory_region_ops_read",
    "memory_region_ops_write",
    "kvm_run_exit",
    "apic_deliver_irq",
    "ioapic_set_irq",
];

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuRecord {
    /// The thread that it happened in.
    pub thread: u32,
    /// Microseconds on the calendar's clock.
    pub micros: u64,
    /// The event.
    pub event: String,
    /// Its values, by name, as QEMU writes them.
    pub fields: Vec<(String, String)>,
}

impl QemuRecord {
    /// A value as it is written.
    pub fn text(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(field, _)| field == name);
        field.map(|(_, value)| value.as_str())
    }

    /// A value that is a number, decimal or `0x` hexadecimal.
    pub fn number(&self, name: &str) -> Option<u64> {
        number(self.text(name)?)
    }
}

/// A decimal or `0x` hexadecimal number.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The log, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QemuLog {
    /// The events, in the order of the log.
    pub records: Vec<QemuRecord>,
    /// Lines that are not events: QEMU writes other messages there too.
    pub unread: Vec<String>,
}

/// Reads the log.
pub fn parse(log: &str) -> QemuLog {
    let mut parsed = QemuLog::default();
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        match record(line) {
            Some(record) => parsed.records.push(record),
            None => parsed.unread.push(line.to_owned()),
        }
    }
    parsed
}

fn record(line: &str) -> Option<QemuRecord> {
    let (thread, micros, event) = thread_stamp(line)?;
    let (event, values) = event.split_once(' ').unwrap_or((event, ""));
    Some(QemuRecord {
        thread,
        micros,
        event: event.to_owned(),
        fields: fields(values),
    })
}

/// The thread of a line, its time in microseconds since 1970, and its event with the values.
fn thread_stamp(line: &str) -> Option<(u32, u64, &str)> {
    let (thread, rest) = line.split_once('@')?;
    let (time, event) = rest.split_once(':')?;
    let (seconds, micros) = time.split_once('.')?;
    // Six digits, or the number means something else.
    if micros.len() != 6 || !is_event(event) {
        return None;
    }
    let micros: u64 = micros.parse().ok()?;
    let seconds: u64 = seconds.parse().ok()?;
    let micros = seconds.checked_mul(1_000_000)?.checked_add(micros)?;
    Some((thread.parse().ok()?, micros, event))
}

/// Whether this is an event with its values, and not a message of another kind.
fn is_event(text: &str) -> bool {
    let (name, _) = text.split_once(' ').unwrap_or((text, ""));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(is_name)
}

/// Every event has a format of its own: `name value`, `name: value`,
/// `name=value`, `@value` for an address, `, ` in between.
fn fields(values: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut name: Option<&str> = None;
    for word in values.split_whitespace() {
        let word = word.trim_end_matches([',', ':']);
        if let Some(address) = word.strip_prefix('@') {
            fields.push(("address".to_owned(), address.to_owned()));
        } else if let Some((name, value)) = word.split_once('=') {
            fields.push((name.to_owned(), value.to_owned()));
        } else if let Some(name) = name.take() {
            let value = word.trim_matches('\'');
            fields.push((name.to_owned(), value.to_owned()));
        } else {
            name = Some(word);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_read() {
        let log = "\
13865@1795498459.488656:memory_region_ops_write cpu 0 mr 0x5649 addr 0xc010 value 0x1 size 2 name 'virtio-pci'
13915@1795498459.488660:virtio_queue_notify vdev 0x56490a65cb00 n 1 vq 0x7fd1fa96f0a8
7@1.000002:kvm_run_exit cpu_index 0, reason 2
7@1.000003:kvm_set_ioeventfd_pio fd: 15 @0xc010 val=0x1 assign: 1 size: 2 match: 1
7@1.000004:virtqueue_flush vq 0x7fd1 count 1
";
        let log = parse(log);
        assert_eq!((log.records.len(), log.unread.len()), (5, 0));
        let [access, notify, exit, ioeventfd, flush] = log.records.as_slice() else {
            unreachable!()
        };
        assert_eq!(access.thread, 13865);
        assert_eq!(access.micros, 1_795_498_459_488_656);
        assert_eq!(access.number("addr"), Some(0xc010));
        assert_eq!(access.text("name"), Some("virtio-pci"));
        assert_eq!(notify.number("n"), Some(1));
        assert_eq!(notify.number("vq"), Some(0x7fd1_fa96_f0a8));
        assert_eq!(exit.number("reason"), Some(2));
        assert_eq!(ioeventfd.number("address"), Some(0xc010));
        assert_eq!(ioeventfd.number("val"), Some(1));
        assert_eq!(ioeventfd.number("size"), Some(2));
        assert_eq!(flush.text("absent"), None);
    }

    #[test]
    fn odd_lines_are_kept_and_harmless() {
        for line in [
            "qemu-system-x86_64: warning: host doesn't support requested feature",
            "2026-11-24T05:30:43.123456Z qemu-system-x86_64: info: x",
            // Its thread is in the name of its file, and was not added.
            "2026-11-24T05:30:43.123456Z virtio_notify vdev 0x1 vq 0x2",
            "1@2:virtio_notify",
            "1@2.5:virtio_notify vq 0x1",
            "x@1.000001:virtio_notify",
            "1@1.00000x:virtio_notify",
            "1@99999999999999999999.000001:e",
            "1@18446744073709551615.000001:e",
            "1@1.000001:",
            "1@1.000001:a-b c",
            "4294967296@1.000001:e",
            "1@1.0000",
            "\u{fffd}",
        ] {
            let log = parse(line);
            assert_eq!((log.records.len(), log.unread), (0, vec![line.to_owned()]));
        }
        assert_eq!(parse("\n \n"), QemuLog::default());
    }

    #[test]
    fn an_event_may_have_no_values_or_half_of_one() {
        let log = parse("1@1.000001:virtio_notify\n1@1.000002:virtio_notify vq");
        assert!(log.unread.is_empty());
        assert!(log.records.iter().all(|record| record.fields.is_empty()));
        assert_eq!(number("0xzz"), None);
        assert_eq!(number("-1"), None);
    }
}
