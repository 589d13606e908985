//! What stands between the two records of a doorbell, over all kicks of a run.

use kickpath_trace::Event;

use super::super::kvm::parse::KvmRecord;
use super::super::records::GuestRecord;
use super::super::timeline::Kicks;

/// A doorbell's two records, on one CPU.
struct Pair {
    place: usize,
    ticks: u64,
    /// Interrupts that the guest or KVM recorded in between, and for how many ticks
    /// the guest was at those whose end it records.
    interrupts: Vec<(u64, Option<u64>)>,
}

/// The kicks of the queue whose doorbell the record at `followed` is. `kvm` is
/// KVM's events and what is added to their time to have the guest's, if that
/// is known; `hz` the frequency of the guest's time stamp counter.
pub fn kicks(
    guest: &[GuestRecord],
    followed: usize,
    kvm: Option<(&[KvmRecord], i64)>,
    hz: u64,
) -> Option<Kicks> {
    let queue = guest.get(followed)?.queue;
    let rings = guest.iter().enumerate();
    let rings = rings.filter(|(_, r)| r.event == Event::DoorbellRing && r.queue == queue);
    let pairs: Vec<Pair> = rings
        .filter_map(|(place, ring)| pair(guest, place, ring, kvm))
        .collect();
    let own = pairs.iter().find(|pair| pair.place == followed)?;
    let ns = |ticks: u64| ticks as f64 * 1e9 / hz.max(1) as f64;
    let undisturbed = pairs.iter().filter(|pair| pair.interrupts.is_empty());
    let mut ticks: Vec<u64> = undisturbed.map(|pair| pair.ticks).collect();
    ticks.sort_unstable();
    let spread = match (ticks.first(), ticks.get(ticks.len() / 2), ticks.last()) {
        (Some(min), Some(median), Some(max)) => Some([ns(*min), ns(*median), ns(*max)]),
        _ => None,
    };
    Some(Kicks {
        ns: ns(own.ticks),
        interrupts: own
            .interrupts
            .iter()
            .map(|(vector, ticks)| {
                let vector = match vector {
                    // Linux does not tell the vector of every line.
                    0 => "one that is not the device's".to_owned(),
                    vector => format!("vector {vector}"),
                };
                match ticks {
                    Some(ticks) => format!("{vector}, whose handler took {:.0} ns", ns(*ticks)),
                    None => vector,
                }
            })
            .collect(),
        counted: ticks.len(),
        interrupted: pairs.len() - ticks.len(),
        spread_ns: spread,
    })
}

fn pair(
    guest: &[GuestRecord],
    place: usize,
    ring: &GuestRecord,
    kvm: Option<(&[KvmRecord], i64)>,
) -> Option<Pair> {
    let later = guest.get(place + 1..)?.iter();
    let mut later = later.filter(|record| record.cpu == ring.cpu);
    let mut interrupts: Vec<(u64, Option<u64>)> = Vec::new();
    let mut began = 0;
    let rang = loop {
        let record = later.next()?;
        match record.event {
            Event::DoorbellRang => break record,
            Event::DoorbellRing => return None,
            Event::InterruptVector => interrupts.push((record.a, None)),
            Event::OtherInterrupt => {
                began = record.tsc;
                interrupts.push((record.a, None));
            }
            Event::OtherInterruptEnd => {
                if let Some((_, ticks)) = interrupts.last_mut() {
                    *ticks = record.tsc.checked_sub(began);
                }
            }
            _ => {}
        }
    };
    if let Some((records, offset)) = kvm {
        let within = records.iter().filter(|record| {
            let at = record.time.wrapping_add_signed(offset);
            record.event == "kvm_inj_virq" && (ring.tsc..=rang.tsc).contains(&at)
        });
        for vector in within.filter_map(KvmRecord::vector) {
            if interrupts.iter().all(|(known, _)| *known != vector) {
                interrupts.push((vector, None));
            }
        }
    }
    Some(Pair {
        place,
        ticks: rang.tsc.checked_sub(ring.tsc)?,
        interrupts,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::journey::tests::record;
    use super::*;

    fn at(tsc: u64, event: Event, queue: Option<u16>, a: u64) -> GuestRecord {
        GuestRecord {
            tsc,
            ..record(event, queue, a, 0)
        }
    }

    #[test]
    fn kicks_with_an_interrupt_inside_are_told_apart() {
        let (ring, rang) = (Event::DoorbellRing, Event::DoorbellRang);
        let q = Some(1);
        let records = [
            at(10, ring, q, 0),
            at(13, rang, q, 0),
            at(15, ring, Some(0), 0),
            at(95, rang, Some(0), 0),
            at(100, ring, q, 0),
            at(120, Event::InterruptVector, None, 49),
            at(190, rang, q, 0),
            at(200, ring, q, 0),
            at(207, rang, q, 0),
            at(210, ring, q, 0),
            at(212, Event::OtherInterrupt, None, 240),
            at(252, Event::OtherInterruptEnd, None, 240),
            at(260, rang, q, 0),
            at(300, ring, q, 0),
        ];
        let kicks = |followed, kvm| kicks(&records, followed, kvm, 1_000_000_000);
        let told = kicks(0, None).unwrap();
        assert_eq!((told.ns, told.counted, told.interrupted), (3.0, 2, 2));
        assert_eq!(told.spread_ns, Some([3.0, 7.0, 7.0]));
        assert_eq!(kicks(4, None).unwrap().interrupts, ["vector 49"]);
        let told = kicks(9, None).unwrap();
        assert_eq!(
            (told.ns, told.counted),
            (50.0, 2),
            "the timer's is left out"
        );
        assert_eq!(told.interrupts, ["vector 240, whose handler took 40 ns"]);
        assert_eq!(kicks(13, None), None, "it has no end");
        assert_eq!(kicks(99, None), None);
        // KVM saw an interrupt of which the guest has no record.
        let injected = [KvmRecord {
            thread: 1,
            time: 105,
            event: "kvm_inj_virq".into(),
            text: "IRQ 0x20".into(),
            stack: Vec::new(),
        }];
        let told = kicks(7, Some((&injected, 100))).unwrap();
        assert_eq!(told.interrupts, ["vector 32"]);
        assert_eq!((told.counted, told.interrupted), (1, 3));
    }
}
