//! Finds the datagram of the window among the guest's records.

use std::ops::Range;

use kickpath_trace::Event;

use super::records::GuestRecord;

/// Where the datagram's records are, as places in the list of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journey {
    /// From waking up for the frame until the CPU sleeps again.
    pub awake: Range<usize>,
    /// The received chain is taken out of the used ring.
    pub pop_received: usize,
    /// smoltcp reads the frame.
    pub rx_token: usize,
    /// The socket gives the datagram out.
    pub socket_receive: usize,
    /// The answer is given to a socket.
    pub socket_send: usize,
    /// The answer's frame is put into the transmit queue.
    pub start_xmit: usize,
    /// Its chain is in the available ring.
    pub add: usize,
    /// The device was told of it; `None` when it did not want to know.
    pub doorbell: Option<usize>,
    /// Its buffer is taken back, later; `None` when no record tells of that.
    pub reclaim: Option<usize>,
    /// What is told of that: the record itself, in a Linux guest with the interrupt that it was
    /// woken by. Empty when it lies in `awake`.
    pub back: Range<usize>,
}

/// Finds the last datagram with `bytes` bytes of content that came in at or
/// after record `from` and whose echo went out.
pub fn find(records: &[GuestRecord], from: usize, bytes: usize) -> Option<Journey> {
    let candidates = records.iter().enumerate().skip(from).rev();
    let mut candidates = candidates
        .filter(|(_, record)| record.event == Event::SocketReceive && record.a == bytes as u64);
    candidates.find_map(|(place, _)| follow(records, from, place, bytes as u64))
}

fn follow(
    records: &[GuestRecord],
    from: usize,
    socket_receive: usize,
    bytes: u64,
) -> Option<Journey> {
    // What happens to a packet, one CPU does.
    let cpu = records.get(socket_receive)?.cpu;
    let before = |end: usize, event: Event| {
        let found = records
            .get(from..end)?
            .iter()
            .rposition(|r| r.event == event && r.cpu == cpu);
        found.map(|place| from + place)
    };
    let after = |start: usize, wanted: &dyn Fn(&GuestRecord) -> bool| {
        let mut records = records.get(start..)?.iter();
        let found = records.position(|r| r.cpu == cpu && wanted(r));
        found.map(|place| start + place)
    };
    let rx_token = before(socket_receive, Event::RxTokenConsume)?;
    let pop_received = before(rx_token, Event::PopUsed)?;
    let socket_send = after(socket_receive, &|r| {
        r.event == Event::SocketSend && r.a == bytes
    })?;
    let start_xmit = after(socket_send, &|r| r.event == Event::StartXmit)?;
    let queue = records[start_xmit].queue;
    let add = after(start_xmit, &|r| r.event == Event::Add && r.queue == queue)?;
    let sleep = after(add, &|r| r.event == Event::Idle);
    let end = sleep.map_or(records.len(), |place| place + 1);
    let start = before(pop_received, Event::Idle).map_or(from, |place| place + 1);
    let doorbell = after(add, &|r| r.event == Event::DoorbellRing && r.queue == queue);
    let added = &records[add];
    // A buffer of the same head before it was taken back is an older one's.
    let reclaim = after(add, &|r| {
        let same = match r.linux {
            None => r.a as u16 == added.a as u16,
            // What was given with the buffer is returned for it.
            Some(_) => r.b == added.b,
        };
        r.event == Event::PopUsed && r.queue == queue && same
    });
    let back = match reclaim {
        Some(place) if place >= end => {
            // An interrupt of its own, or something else that woke the CPU.
            let woken = before(place, Event::Idle).map_or(place, |slept| slept + 1);
            let own = records[woken..place].iter().all(|r| match r.event {
                Event::PopUsed => false,
                Event::VringInterrupt => r.queue == queue,
                _ => r.linux.is_some(),
            });
            if own {
                woken..place + 1
            } else {
                place..place + 1
            }
        }
        _ => end..end,
    };
    Some(Journey {
        back,
        awake: start..end,
        pop_received,
        rx_token,
        socket_receive,
        socket_send,
        start_xmit,
        add,
        doorbell: doorbell.filter(|place| *place < end),
        reclaim,
    })
}

impl Journey {
    /// Length in bytes of the header before the received frame.
    pub fn receive_header(&self, records: &[GuestRecord]) -> Option<u64> {
        let written = records[self.pop_received].a >> 32;
        written.checked_sub(records[self.rx_token].a)
    }

    /// The address of the received buffer: that of the last chain with its
    /// head that was added before.
    pub fn receive_buffer(&self, records: &[GuestRecord]) -> Option<u64> {
        let pop = &records[self.pop_received];
        let head = pop.a as u16;
        let chain = records[..self.pop_received]
            .iter()
            .rposition(|r| r.event == Event::Add && r.queue == pop.queue && r.a as u16 == head)?;
        // A chain of several has its first descriptors before.
        let mut first = &records[chain];
        for record in records[..chain].iter().rev() {
            match record.event {
                Event::Descriptor if record.queue == pop.queue => {
                    first = record;
                    if record.a as u16 == head {
                        break;
                    }
                }
                _ => break,
            }
        }
        Some(first.b & !(1 << 63))
    }

    /// Address of the sent frame behind its header, and its length.
    pub fn sent_frame(&self, records: &[GuestRecord]) -> Option<(u64, u64)> {
        let xmit = &records[self.start_xmit];
        let add = &records[self.add];
        let last = add.a >> 32;
        // In one descriptor with its header, or in one of its own.
        let header = match last.checked_sub(xmit.a)? {
            0 => (add.b & !(1 << 63)).checked_sub(xmit.b)?,
            header => header,
        };
        Some((xmit.b.checked_add(header)?, xmit.a))
    }

    /// Whether the sent frame's buffer was given to another frame since.
    pub fn sent_buffer_used_again(&self, records: &[GuestRecord]) -> bool {
        let address = records[self.start_xmit].b;
        let later = records.get(self.start_xmit + 1..).unwrap_or_default();
        later
            .iter()
            .any(|r| r.event == Event::StartXmit && r.b == address)
    }

    /// Whether the received frame's buffer was filled again since.
    pub fn received_buffer_used_again(&self, records: &[GuestRecord]) -> bool {
        let pop = &records[self.pop_received];
        let later = records.get(self.pop_received + 1..).unwrap_or_default();
        later.iter().any(|r| {
            r.event == Event::PopUsed && r.queue == pop.queue && r.a as u16 == pop.a as u16
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record with nothing but its meaning.
    pub fn record(event: Event, queue: Option<u16>, a: u64, b: u64) -> GuestRecord {
        GuestRecord {
            tsc: 0,
            event,
            queue,
            cpu: 0,
            a,
            b,
            file: "kernel/x.rs".into(),
            line: 1,
            module: "x".into(),
            linux: None,
        }
    }

    /// One echo of `bytes` bytes, with headers of 10 bytes before its frames.
    pub fn echo(bytes: u64, rx_head: u64, tx_head: u64, slot: u64) -> Vec<GuestRecord> {
        let (rx, tx) = (Some(0), Some(1));
        let frame = bytes + 42;
        let length = (frame + 10) << 32;
        vec![
            record(Event::InterruptVector, None, 49, 0),
            record(Event::VringInterrupt, None, 0, 0),
            record(Event::Poll, None, 0, 0),
            record(Event::PopUsed, rx, rx_head | slot << 16 | length, slot + 1),
            record(Event::RxTokenConsume, None, frame, 0),
            record(
                Event::Add,
                rx,
                rx_head | slot << 16 | 1524 << 32,
                (0x10_0000 + rx_head * 2048) | 1 << 63,
            ),
            record(Event::SocketReceive, None, bytes, 5000),
            record(Event::SocketSend, None, bytes, 5000),
            record(Event::TxTokenConsume, None, frame, 0),
            record(Event::StartXmit, tx, frame, 0x20_0000 + tx_head * 2048),
            record(
                Event::Add,
                tx,
                tx_head | slot << 16 | length,
                0x20_0000 + tx_head * 2048,
            ),
            record(Event::Publish, tx, slot + 1, slot),
            record(
                Event::KickPrepare,
                tx,
                (slot + 1) | slot << 16 | slot << 32 | 1 << 48,
                1,
            ),
            record(Event::Notify, tx, 0, 0),
            record(Event::DoorbellRing, tx, 0, 0xc010),
            record(Event::DoorbellRang, tx, 0, 0xc010),
            record(Event::Idle, None, 0, 0),
        ]
    }

    fn two_echoes() -> Vec<GuestRecord> {
        let mut records = vec![
            record(Event::Add, Some(0), 1524 << 32, 0x10_0000 | 1 << 63),
            record(Event::Idle, None, 0, 0),
        ];
        records.extend(echo(64, 0, 3, 0));
        let idle = records.pop().unwrap();
        records.push(idle.clone());
        records.extend(echo(48, 1, 4, 1));
        let idle = records.pop().unwrap();
        records.push(record(Event::PopUsed, Some(1), 3, 2));
        records.push(idle);
        records
    }

    #[test]
    fn a_datagram_is_followed_from_wake_to_sleep_and_its_buffer_back() {
        let records = two_echoes();
        let journey = find(&records, 1, 64).unwrap();
        assert_eq!(records[journey.awake.start].event, Event::InterruptVector);
        assert_eq!(records[journey.awake.end - 1].event, Event::Idle);
        assert_eq!(journey.awake.len(), 17);
        assert_eq!(
            records[journey.doorbell.unwrap()].event,
            Event::DoorbellRing
        );
        assert_eq!(journey.receive_header(&records), Some(10));
        assert_eq!(journey.receive_buffer(&records), Some(0x10_0000));
        assert_eq!(
            journey.sent_frame(&records),
            Some((0x20_0000 + 3 * 2048 + 10, 106))
        );
        assert!(!journey.sent_buffer_used_again(&records));
        assert!(!journey.received_buffer_used_again(&records));
        let reclaim = journey.reclaim.unwrap();
        assert_eq!(records[reclaim].queue, Some(1));
        assert!(reclaim > journey.awake.end);
    }

    #[test]
    fn what_was_not_recorded_is_not_found() {
        let records = two_echoes();
        assert_eq!(find(&records, 1, 63), None);
        assert_eq!(find(&records, records.len(), 64), None);
        assert_eq!(find(&records, records.len() + 9, 64), None);
        // The ring was full before the frame went out.
        for end in 0..records.len() {
            let journey = find(&records[..end], 0, 64);
            assert_eq!(journey.is_some(), end > 12, "{end}");
        }
        // The device did not want to be told.
        let mut quiet = two_echoes();
        quiet.retain(|r| !matches!(r.event, Event::DoorbellRing | Event::DoorbellRang));
        assert_eq!(find(&quiet, 1, 64).unwrap().doorbell, None);
    }

    #[test]
    fn a_chain_of_two_has_its_header_apart() {
        let (rx, tx) = (Some(0), Some(1));
        let mut records = vec![
            record(Event::Descriptor, rx, 6 | 10 << 32, 0x5000 | 1 << 63),
            record(Event::Add, rx, 6 | 1514 << 32, 0x500a | 1 << 63),
            record(Event::Idle, None, 0, 0),
        ];
        let mut echo = echo(64, 6, 8, 0);
        let add = echo
            .iter()
            .position(|r| r.event == Event::Add && r.queue == tx)
            .unwrap();
        echo[add].a = 8 | 106 << 32;
        echo[add].b = 0x20_0000 + 8 * 2048 + 10;
        echo.insert(
            add,
            record(Event::Descriptor, tx, 8 | 10 << 32, 0x20_0000 + 8 * 2048),
        );
        records.extend(echo);
        let journey = find(&records, 0, 64).unwrap();
        assert_eq!(journey.receive_buffer(&records), Some(0x5000));
        assert_eq!(
            journey.sent_frame(&records),
            Some((0x20_0000 + 8 * 2048 + 10, 106))
        );
    }

    #[test]
    fn a_packet_stays_on_its_cpu() {
        let mut ours = echo(100, 7, 9, 0x1000);
        for record in &mut ours {
            record.cpu = 1;
        }
        // Another CPU does the like at the same time.
        let records: Vec<_> = ours
            .iter()
            .zip(echo(90, 3, 4, 0x9000))
            .flat_map(|(ours, others)| [ours.clone(), others])
            .collect();
        for (bytes, cpu) in [(100, 1), (90, 0)] {
            let journey = find(&records, 0, bytes).unwrap();
            let places = [
                journey.pop_received,
                journey.rx_token,
                journey.socket_receive,
                journey.socket_send,
                journey.start_xmit,
                journey.add,
            ];
            assert!(
                places.iter().all(|place| records[*place].cpu == cpu),
                "{journey:?}"
            );
        }
    }
}
