//! What a Linux guest recorded: its ftrace, read into the same records that our own guest leaves.

use std::collections::{BTreeMap, BTreeSet};

use kickpath_trace::Event;

use super::probes::RETURN;
use crate::trace::kvm::parse::{self, KvmRecord};
use crate::trace::qemu::number;
use crate::trace::records::{GuestRecord, LinuxRecord};
use crate::trace::timeline::NamedValue;

/// From here on an address is memory; below it is a port with [`PORT`] added (Linux,
/// lib/iomap.c).
const MEMORY: u64 = 0x4_0000;
const PORT: u64 = 0xffff;

/// Register `VIRTIO_PCI_QUEUE_NOTIFY` of the legacy interface.
const QUEUE_NOTIFY: u64 = 16;

/// The ladder's rungs, as [`Event::FindVqsTry`] numbers them.
const RUNG_INTX: u64 = 2;

/// `state` of `power:cpu_idle` when the CPU goes on.
const WAKES: &str = "4294967295";

/// Reads a trace. `ports` is the first port of the device's legacy interface.
pub fn read(trace: &str, ports: Option<u64>) -> Vec<GuestRecord> {
    let mut reader = Reader {
        ports,
        ..Reader::default()
    };
    for record in parse::parse(trace) {
        reader.take(&record);
    }
    reader.records
}

#[derive(Default)]
struct Reader {
    records: Vec<GuestRecord>,
    ports: Option<u64>,
    /// Calls that have not returned, and the record of each that has one. The guest has one
    /// CPU, and an interrupt's calls return before those that it interrupted.
    open: Vec<(String, Fields, Option<usize>)>,
    /// Vectors by the interrupt's number.
    vectors: BTreeMap<u64, u64>,
    /// Numbers of interrupts of others whose handler runs.
    other_irqs: BTreeSet<u64>,
    /// Sizes and doorbells by the queue's index.
    sizes: BTreeMap<u16, u64>,
    doorbells: BTreeMap<u16, (u64, u64)>,
    /// Length and queue of the last frame that was given to the driver.
    frame: (u64, Option<u16>),
    /// The MSI-X ladder's last rung did not work.
    fell: bool,
}

/// The values of a record, by name.
#[derive(Clone, Debug, Default)]
struct Fields(Vec<(String, String)>);

impl Fields {
    /// Of `(function+0x0/0x10 [module]) name=value ...` or `name=value ...`.
    fn of(text: &str) -> Self {
        let words = text.split_whitespace();
        let pairs = words.filter_map(|word| word.split_once('='));
        let unquoted = pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').into()));
        Self(unquoted.collect())
    }

    fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<u64> {
        number(self.text(name)?)
    }

    fn queue(&self) -> Option<u16> {
        self.number("index")?.try_into().ok()
    }
}

impl Reader {
    fn take(&mut self, record: &KvmRecord) {
        let fields = Fields::of(&record.text);
        if let Some(function) = record.event.strip_suffix(RETURN) {
            let place = self.open.iter().rposition(|(open, ..)| open == function);
            let call = place.map(|place| self.open.split_off(place).swap_remove(0));
            self.returned(record, function, fields, call);
            return;
        }
        let before = self.records.len();
        self.called(record, &fields);
        let left = (self.records.len() > before).then_some(before);
        self.open.push((record.event.clone(), fields, left));
        // Calls whose return is not recorded.
        if self.open.len() > 64 {
            self.open.remove(0);
        }
    }

    /// Whether the CPU slept, and nothing of interest has happened since.
    fn sleeps(&self) -> bool {
        let last = self.records.last();
        last.is_some_and(|last| last.event == Event::Idle)
    }

    fn called(&mut self, record: &KvmRecord, fields: &Fields) {
        let queue = fields.queue();
        let field = |name| fields.number(name).unwrap_or_default();
        let (event, queue, a, b) = match record.event.as_str() {
            "vp_find_vqs_msix" => {
                let rung = u64::from(field("per_vq_vectors") == 0);
                (Event::FindVqsTry, None, rung, 0)
            }
            "vp_modern_set_queue_size" => {
                self.sizes.extend(queue.map(|queue| (queue, field("size"))));
                return;
            }
            "vp_modern_queue_address" => {
                (Event::SetupQueue, queue, self.size(queue), field("desc"))
            }
            // A queue that is given up has no pages.
            "vp_legacy_set_queue_address" if field("pfn") != 0 => {
                let table = field("pfn") << 12;
                self.push(
                    record,
                    Event::SetupQueue,
                    queue,
                    (self.size(queue), table),
                    fields,
                );
                if let (Some(ports), Some(queue)) = (self.ports, queue) {
                    self.doorbells
                        .insert(queue, (0, ports.wrapping_add(QUEUE_NOTIFY)));
                    (
                        Event::AttachDoorbell,
                        Some(queue),
                        0,
                        ports.wrapping_add(QUEUE_NOTIFY),
                    )
                } else {
                    return;
                }
            }
            "vector_config" => {
                self.vectors.insert(field("irq"), field("vector"));
                return;
            }
            "udp_sendmsg" => (Event::SocketSend, None, field("length"), 0),
            "net_dev_start_xmit" => {
                let pair = u16::try_from(field("queue_mapping")).unwrap_or_default();
                self.frame = (field("len"), pair.checked_mul(2).map(|queue| queue + 1));
                (Event::TxTokenConsume, None, field("len"), 0)
            }
            "start_xmit" => (Event::StartXmit, self.frame.1, self.frame.0, field("skb")),
            "virtqueue_add_outbuf" | "virtqueue_add_inbuf" | "virtqueue_add_inbuf_ctx" => {
                (Event::Add, queue, field("length") << 32, field("data"))
            }
            "virtqueue_notify" => (Event::Notify, queue, 0, 0),
            "vp_notify" => {
                let bell = queue.and_then(|queue| self.doorbells.get(&queue).copied());
                // 3: by a call that is not known.
                let (kind, target) = bell.unwrap_or((3, 0));
                (Event::DoorbellRing, queue, kind, target)
            }
            "irq_handler_entry" => match self.vectors.get(&field("irq")) {
                Some(vector) => (Event::InterruptVector, None, *vector, 0),
                // The device's line: its handler tells of it.
                None if fields
                    .text("name")
                    .is_some_and(|name| name.starts_with("virtio")) =>
                {
                    return;
                }
                None if self.sleeps() => return,
                None => {
                    self.other_irqs.insert(field("irq"));
                    (Event::OtherInterrupt, None, 0, 0)
                }
            },
            "irq_handler_exit" => match self.other_irqs.remove(&field("irq")) {
                true => (Event::OtherInterruptEnd, None, 0, 0),
                false => return,
            },
            // Of a CPU that has nothing to do they have no end.
            "local_timer_entry" | "local_timer_exit" if self.sleeps() => return,
            "local_timer_entry" => (Event::OtherInterrupt, None, field("vector"), 0),
            "local_timer_exit" => (Event::OtherInterruptEnd, None, field("vector"), 0),
            "vring_interrupt" => (Event::VringInterrupt, queue, 0, 0),
            "vp_interrupt" => (Event::IntxInterrupt, None, 0, 0),
            "virtnet_poll" | "virtnet_poll_tx" => (Event::Poll, None, 0, 0),
            "virtqueue_disable_cb" => (Event::DisableInterrupts, queue, 0, 0),
            "virtqueue_enable_cb"
            | "virtqueue_enable_cb_prepare"
            | "virtqueue_enable_cb_delayed" => (Event::EnableInterrupts, queue, 0, 0),
            "netif_receive_skb" => (Event::RxTokenConsume, None, field("len"), 0),
            "cpu_idle" if fields.text("state") != Some(WAKES) => {
                // Once until there is another record: its timer wakes a CPU that has
                // nothing to do.
                if self.sleeps() {
                    return;
                }
                (Event::Idle, None, 0, 0)
            }
            _ => return,
        };
        self.push(record, event, queue, (a, b), fields);
    }

    fn returned(
        &mut self,
        record: &KvmRecord,
        function: &str,
        mut fields: Fields,
        call: Option<(String, Fields, Option<usize>)>,
    ) {
        let value = fields.number("value").unwrap_or_default();
        // Of what the function's type has no room for, the register may hold anything.
        let text = match function {
            "virtqueue_kick_prepare" | "vp_notify" | "vp_interrupt" => (value & 1).to_string(),
            "vp_find_vqs" | "vp_find_vqs_msix" | "udp_recvmsg" => (value as i32).to_string(),
            _ => format!("{value:#x}"),
        };
        fields.0 = vec![("returned".to_owned(), text.clone())];
        let (arguments, left) = call.map_or((Fields::default(), None), |(_, arguments, left)| {
            (arguments, left)
        });
        let queue = arguments.queue();
        fields.0.splice(0..0, arguments.0);
        let worked = u64::from(value as u32 == 0);
        let (event, queue, a, b) = match function {
            "vp_find_vqs_msix" => {
                self.fell = worked == 0;
                let rung = u64::from(fields.number("per_vq_vectors") == Some(0));
                (Event::FindVqsResult, None, rung, worked)
            }
            // Both with MSI-X did not work: what is left is the line.
            "vp_find_vqs" if self.fell => (Event::FindVqsResult, None, RUNG_INTX, worked),
            "vp_modern_map_vq_notify" => {
                let bell = match value {
                    0 => return,
                    port if port < MEMORY => (0, port & PORT),
                    address => (1, address),
                };
                self.doorbells.extend(queue.map(|queue| (queue, bell)));
                (Event::AttachDoorbell, queue, bell.0, bell.1)
            }
            "vp_legacy_get_queue_size" => {
                self.sizes
                    .extend(queue.map(|queue| (queue, value & 0xffff)));
                return;
            }
            "virtqueue_kick_prepare" => (Event::KickPrepare, queue, 0, value & 1),
            "vp_notify" => (Event::DoorbellRang, queue, 0, 0),
            "vp_interrupt" => {
                if let Some(record) = left.and_then(|place| self.records.get_mut(place)) {
                    record.a = value & 1;
                    if let Some(linux) = &mut record.linux {
                        linux.values.push(named("returned", &text));
                    }
                }
                return;
            }
            // Nothing was there.
            "virtqueue_get_buf" | "virtqueue_get_buf_ctx" if value == 0 => return,
            // It is called by the other one.
            "virtqueue_get_buf_ctx"
                if self
                    .open
                    .iter()
                    .any(|(open, ..)| open == "virtqueue_get_buf") =>
            {
                return;
            }
            "virtqueue_get_buf" | "virtqueue_get_buf_ctx" => (Event::PopUsed, queue, 0, value),
            // An error is negative.
            "udp_recvmsg" => match u64::try_from(value as u32 as i32) {
                Ok(bytes) => (Event::SocketReceive, None, bytes, 0),
                Err(_) => return,
            },
            _ => return,
        };
        self.push(record, event, queue, (a, b), &fields);
    }

    fn size(&self, queue: Option<u16>) -> u64 {
        let size = queue.and_then(|queue| self.sizes.get(&queue));
        size.copied().unwrap_or_default()
    }

    fn push(
        &mut self,
        record: &KvmRecord,
        event: Event,
        queue: Option<u16>,
        (a, b): (u64, u64),
        fields: &Fields,
    ) {
        let function = record.event.trim_end_matches(RETURN);
        // What records the call is no part of what led to it.
        let stack = record.stack.iter();
        let stack = stack.skip_while(|name| *name != function).cloned();
        self.records.push(GuestRecord {
            tsc: record.time,
            event,
            queue,
            cpu: 0,
            a,
            b,
            file: String::new(),
            line: 0,
            module: String::new(),
            linux: Some(LinuxRecord {
                function: function.to_owned(),
                values: fields.0.iter().map(|(n, v)| named(n, v)).collect(),
                stack: stack.collect(),
            }),
        });
    }
}

fn named(name: &str, value: &str) -> NamedValue {
    NamedValue {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

/// Where, before the datagram of `bytes` bytes came in last, the CPU slept: the place of the
/// first record behind that.
pub fn woken_for(records: &[GuestRecord], bytes: usize) -> Option<usize> {
    let is = |event: Event| move |record: &GuestRecord| record.event == event;
    let received = records
        .iter()
        .rposition(|r| r.event == Event::SocketReceive && r.a == bytes as u64)?;
    let popped = records[..received].iter().rposition(is(Event::PopUsed))?;
    let slept = records[..popped].iter().rposition(is(Event::Idle))?;
    Some(slept + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace of Linux 6.1, shortened.
    const TRACE: &str = r#"# tracer: nop
   busybox-89 [000] ..... 1: vp_find_vqs_msix: (vp_find_vqs_msix+0x0/0x520 [virtio_pci]) per_vq_vectors=1
   busybox-89 [000] ..... 2: vp_modern_set_queue_size: (vp_modern_set_queue_size+0x0/0x40 [virtio_pci_modern_dev]) index=1 size=256
   busybox-89 [000] ..... 3: vp_modern_queue_address: (vp_modern_queue_address+0x0/0x80 [virtio_pci_modern_dev]) index=1 desc=0x548c000 avail=0x548d000 used=0x548d240
   busybox-89 [000] ..... 4: vp_modern_map_vq_notify: (vp_modern_map_vq_notify+0x0/0xc0 [virtio_pci_modern_dev]) index=1
   busybox-89 [000] ..... 5: vp_modern_map_vq_notify_returns: (setup_vq+0x11e/0x140 [virtio_pci] <- vp_modern_map_vq_notify) value=0xffffc90000055004
   busybox-89 [000] d..2. 6: vector_config: irq=26 vector=40 cpu=0 apicdest=0x00000001
   busybox-89 [000] ..... 7: vp_find_vqs_msix_returns: (vp_find_vqs+0x1d/0x100 [virtio_pci] <- vp_find_vqs_msix) value=0x0
      echo-99 [000] ..... 8: udp_recvmsg_returns: (inet_recvmsg+0x116/0x130 <- udp_recvmsg) value=0xfffffff5
      echo-99 [000] ..... 9: udp_recvmsg_returns: (inet_recvmsg+0x116/0x130 <- udp_recvmsg) value=0x40
      echo-99 [000] b..1. 10: net_dev_start_xmit: dev=eth0 queue_mapping=0 skbaddr=(____ptrval____) len=106 data_len=0
      echo-99 [000] b..1. 11: start_xmit: (start_xmit+0x0/0x5a0 [virtio_net]) skb=0xffff8880044e6a00
      echo-99 [000] b..1. 12: virtqueue_add_outbuf: (virtqueue_add_outbuf+0x0/0x60 [virtio_ring]) index=1 name="output.0" buffers=1 length=118 data=0xffff8880044e6a00
      echo-99 [000] b..1. 13: virtqueue_kick_prepare: (virtqueue_kick_prepare+0x0/0xd0 [virtio_ring]) index=1 name="output.0"
      echo-99 [000] b..1. 14: virtqueue_kick_prepare_returns: (start_xmit+0x265/0x5a0 [virtio_net] <- virtqueue_kick_prepare) value=0xabcdef01
      echo-99 [000] b..1. 15: virtqueue_notify: (virtqueue_notify+0x0/0x40 [virtio_ring]) index=1 name="output.0"
      echo-99 [000] b..1. 16: <stack trace>
 => kprobe_trace_func
 => kprobe_ftrace_handler
 => virtqueue_notify
 => start_xmit
      echo-99 [000] b..1. 17: vp_notify: (vp_notify+0x0/0x20 [virtio_pci]) index=1 name="output.0"
      echo-99 [000] D.h1. 18: irq_handler_entry: irq=0 name=timer
      echo-99 [000] D.h1. 18: irq_handler_exit: irq=0 ret=handled
      echo-99 [000] D.h1. 18: local_timer_entry: vector=236
      echo-99 [000] D.h1. 18: local_timer_exit: vector=236
      echo-99 [000] D.h1. 19: irq_handler_entry: irq=26 name=virtio0-output.0
      echo-99 [000] D.h1. 20: vring_interrupt: (vring_interrupt+0x0/0xd0 [virtio_ring]) irq=26 index=1 name="output.0"
      echo-99 [000] b..1. 21: vp_notify_returns: (virtqueue_notify+0x18/0x40 [virtio_ring] <- vp_notify) value=0x1
      echo-99 [000] ..s2. 22: virtqueue_get_buf: (virtqueue_get_buf+0x0/0x20 [virtio_ring]) index=1 name="output.0"
      echo-99 [000] ..s2. 23: virtqueue_get_buf_ctx: (virtqueue_get_buf_ctx+0x0/0x20 [virtio_ring]) index=1 name="output.0"
      echo-99 [000] ..s2. 24: virtqueue_get_buf_ctx_returns: (x <- virtqueue_get_buf_ctx) value=0xffff8880044e6a00
      echo-99 [000] ..s2. 25: virtqueue_get_buf_returns: (x <- virtqueue_get_buf) value=0xffff8880044e6a00
      echo-99 [000] ..s2. 26: virtqueue_get_buf: (virtqueue_get_buf+0x0/0x20 [virtio_ring]) index=1 name="output.0"
      echo-99 [000] ..s2. 27: virtqueue_get_buf_returns: (x <- virtqueue_get_buf) value=0x0
    <idle>-0 [000] d..1. 28: cpu_idle: state=1 cpu_id=0
    <idle>-0 [000] d.h1. 29: local_timer_entry: vector=236
    <idle>-0 [000] d.h1. 29: local_timer_exit: vector=236
    <idle>-0 [000] d.h1. 29: irq_handler_entry: irq=0 name=timer
    <idle>-0 [000] d.h1. 29: irq_handler_exit: irq=0 ret=handled
    <idle>-0 [000] ...1. 29: cpu_idle: state=4294967295 cpu_id=0
    <idle>-0 [000] d..1. 30: cpu_idle: state=1 cpu_id=0
"#;

    #[test]
    fn functions_become_the_records_of_our_guest() {
        let records = read(TRACE, None);
        let told: Vec<_> = records
            .iter()
            .map(|r| (r.tsc, r.event, r.queue, r.a, r.b))
            .collect();
        let (tx, skb) = (Some(1), 0xffff_8880_044e_6a00);
        let bell = 0xffff_c900_0005_5004;
        assert_eq!(
            told,
            [
                (1, Event::FindVqsTry, None, 0, 0),
                (3, Event::SetupQueue, tx, 256, 0x548_c000),
                (5, Event::AttachDoorbell, tx, 1, bell),
                (7, Event::FindVqsResult, None, 0, 1),
                (9, Event::SocketReceive, None, 64, 0),
                (10, Event::TxTokenConsume, None, 106, 0),
                (11, Event::StartXmit, tx, 106, skb),
                (12, Event::Add, tx, 118 << 32, skb),
                (14, Event::KickPrepare, tx, 0, 1),
                (15, Event::Notify, tx, 0, 0),
                (17, Event::DoorbellRing, tx, 1, bell),
                (18, Event::OtherInterrupt, None, 0, 0),
                (18, Event::OtherInterruptEnd, None, 0, 0),
                (18, Event::OtherInterrupt, None, 236, 0),
                (18, Event::OtherInterruptEnd, None, 236, 0),
                (19, Event::InterruptVector, None, 40, 0),
                (20, Event::VringInterrupt, tx, 0, 0),
                (21, Event::DoorbellRang, tx, 0, 0),
                (25, Event::PopUsed, tx, 0, skb),
                (28, Event::Idle, None, 0, 0),
            ]
        );
        let linux = |event: Event| {
            let mut found = records.iter().filter(|record| record.event == event);
            found.next().unwrap().linux.clone().unwrap()
        };
        assert_eq!(
            linux(Event::Notify).stack,
            ["virtqueue_notify", "start_xmit"]
        );
        let values = linux(Event::KickPrepare).values;
        let values: Vec<_> = values.iter().map(|v| (&*v.name, &*v.value)).collect();
        assert_eq!(
            values,
            [("index", "1"), ("name", "output.0"), ("returned", "1")]
        );
        assert_eq!(linux(Event::PopUsed).function, "virtqueue_get_buf");
    }

    #[test]
    fn the_legacy_interface_and_the_line_are_told() {
        let trace = "\
 b-1 [000] ..... 1: vp_find_vqs_msix: (x) per_vq_vectors=0
 b-1 [000] ..... 2: vp_find_vqs_msix_returns: (x) value=0xffffffe4
 b-1 [000] ..... 3: vp_legacy_get_queue_size: (x) index=1
 b-1 [000] ..... 4: vp_legacy_get_queue_size_returns: (x) value=0xffff0100
 b-1 [000] ..... 5: vp_legacy_set_queue_address: (x) index=1 pfn=1351
 b-1 [000] ..... 6: vp_find_vqs_returns: (x) value=0x0
 b-1 [000] ..... 7: vp_interrupt: (x) irq=11
 b-1 [000] ..... 8: vp_interrupt_returns: (x) value=0x1
 b-1 [000] ..... 9: vp_legacy_set_queue_address: (x) index=1 pfn=0
";
        let records = read(trace, Some(0xc000));
        let told: Vec<_> = records.iter().map(|r| (r.tsc, r.event, r.a, r.b)).collect();
        assert_eq!(
            told,
            [
                (1, Event::FindVqsTry, 1, 0),
                (2, Event::FindVqsResult, 1, 0),
                (5, Event::SetupQueue, 256, 1351 << 12),
                (5, Event::AttachDoorbell, 0, 0xc010),
                (6, Event::FindVqsResult, 2, 1),
                (7, Event::IntxInterrupt, 1, 0),
            ]
        );
    }

    #[test]
    fn a_cut_trace_is_read_as_far_as_it_goes() {
        let all = read(TRACE, None).len();
        for (length, _) in TRACE.char_indices() {
            assert!(read(&TRACE[..length], None).len() <= all);
            read(&TRACE[length..], Some(u64::MAX - 20));
        }
    }
}
