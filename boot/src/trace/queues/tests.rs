use std::collections::BTreeMap;

use super::super::journey::tests::{echo, record};
use super::super::timeline::{AvailEntry, RingPlace};
use super::*;

fn device(event: &str, fields: &[(&str, u64)]) -> QemuRecord {
    QemuRecord {
        thread: 1,
        micros: 0,
        event: event.to_owned(),
        fields: fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.to_string()))
            .collect(),
    }
}

#[test]
fn both_sides_write_the_ring() {
    let mut queues = Queues::new(Context::default());
    queues.driver(&record(Event::SetupQueue, Some(1), 256, 0x1000));
    let mut at = BTreeMap::new();
    let send = echo(64, 0, 3, 0);
    for record in send.iter().filter(|record| record.queue == Some(1)) {
        let touches = queues.driver(record);
        at.insert(record.event.name(), queues.snapshot(1, touches).unwrap());
    }
    for (event, fields) in [
        ("virtqueue_pop", &[("elem", 0x77)][..]),
        ("virtqueue_fill", &[("elem", 0x77), ("len", 0), ("idx", 0)]),
        ("virtqueue_flush", &[("count", 1)]),
        ("virtio_notify", &[]),
    ] {
        let touches = queues.device(&device(event, fields), 1);
        at.insert(event, queues.snapshot(1, touches).unwrap());
    }
    let pop = record(Event::PopUsed, Some(1), 3, 1);
    assert!(queues.knows(&pop));
    let touches = queues.driver(&pop);
    at.insert("PopUsed", queues.snapshot(1, touches).unwrap());

    let split = |event: &str| match &at[event].memory {
        RingMemory::Split {
            descriptors,
            avail,
            used,
        } => (descriptors.clone(), avail.clone(), used.clone()),
        other => panic!("{other:?}"),
    };
    let (descriptors, avail, _) = split("Add");
    assert_eq!(avail.entries, [AvailEntry { slot: 0, head: 3 }]);
    assert_eq!(avail.idx, Some(0), "not published yet");
    assert_eq!(descriptors[0].progress, ChainProgress::Added);
    assert_eq!(
        at["Add"].changed,
        [
            Part::DescriptorAddress(3),
            Part::DescriptorLength(3),
            Part::DescriptorFlags(3),
            Part::AvailEntry(0)
        ]
    );
    let (descriptors, avail, _) = split("Publish");
    assert_eq!(avail.idx, Some(1));
    assert_eq!(descriptors[0].progress, ChainProgress::Available);
    // The driver only looks at the device's wish.
    assert_eq!(at["KickPrepare"].changed, []);
    assert_eq!(at["KickPrepare"].read, [Part::AvailEvent]);
    let (descriptors, ..) = split("virtqueue_pop");
    assert_eq!(descriptors[0].progress, ChainProgress::Taken);
    assert!(at["virtqueue_pop"].read.contains(&Part::DescriptorFlags(3)));
    assert_eq!(at["virtqueue_pop"].changed, []);
    let (_, _, used) = split("virtqueue_fill");
    assert_eq!((used.idx, used.entries[0].id), (Some(0), 3));
    assert_eq!(at["virtqueue_fill"].changed, [Part::UsedEntry(0)]);
    let (descriptors, _, used) = split("virtqueue_flush");
    assert_eq!(used.idx, Some(1));
    assert_eq!(at["virtqueue_flush"].changed, [Part::UsedIndex]);
    assert_eq!(descriptors[0].progress, ChainProgress::Used);
    assert_eq!(at["virtio_notify"].read, [Part::AvailFlags]);
    let (descriptors, ..) = split("PopUsed");
    assert_eq!(descriptors[0].progress, ChainProgress::Reclaimed);
    assert_eq!(at["PopUsed"].changed, []);
    assert_eq!(at["PopUsed"].outstanding, Some(0));
}

#[test]
fn chains_are_linked_and_tables_are_one_descriptor() {
    for indirect in [false, true] {
        let mut queues = Queues::new(Context {
            indirect,
            ..Context::default()
        });
        let first = if indirect { 0 } else { 4 };
        for record in [
            record(Event::Descriptor, Some(1), first | 10 << 32, 0x5000),
            record(Event::Add, Some(1), 4 | 9 << 16 | 60 << 32, 0x500a),
        ] {
            queues.driver(&record);
        }
        let snapshot = queues.snapshot(1, Touches::default()).unwrap();
        assert_eq!(snapshot.size, None, "its setup was not recorded");
        assert_eq!(snapshot.outstanding, None);
        let RingMemory::Split { descriptors, .. } = snapshot.memory else {
            panic!("it is split");
        };
        let links: Vec<_> = descriptors.iter().map(|d| (d.number, d.next)).collect();
        match indirect {
            false => assert_eq!(links, [(4, Some(5)), (5, None)]),
            true => {
                assert_eq!(links, [(4, None)]);
                assert!(descriptors[0].indirect && descriptors[0].length == 32);
                assert_eq!(descriptors[0].address, None);
            }
        }
        assert!(queues.snapshot(9, Touches::default()).is_none());
    }
}

/// Three chains of one descriptor around a packed ring of two.
#[test]
fn a_packed_ring_turns_its_flags_over_at_each_lap() {
    let mut queues = Queues::new(Context {
        packed: true,
        fill_is_flush: true,
        ..Context::default()
    });
    queues.driver(&record(Event::SetupQueue, Some(1), 2, 0x1000));
    let packed = |queues: &Queues, touches: Touches| {
        let snapshot = queues.snapshot(1, touches).unwrap();
        match snapshot.memory {
            RingMemory::Packed {
                descriptors,
                next_avail,
                next_used,
                ..
            } => (descriptors, next_avail.unwrap(), next_used.unwrap()),
            other => panic!("{other:?}"),
        }
    };
    let place = |index, wrap| RingPlace { index, wrap };
    // New and old word of the driver's place, at each chain.
    let words = [(0x8001u64, 0x8000u64), (0x0000, 0x8001), (0x0001, 0x0000)];
    for (lap, (new, old)) in words.into_iter().enumerate() {
        let index = lap as u64 % 2;
        let wrap = lap < 2;
        let add = record(
            Event::Add,
            Some(1),
            7 | index << 16 | 60 << 32,
            0x5000 + lap as u64,
        );
        let add_touches = queues.driver(&add);
        let (descriptors, ..) = packed(&queues, add_touches.clone());
        let written = &descriptors[index as usize];
        assert_ne!(written.avail, Some(wrap), "its flags come last");
        let at = index as u16;
        let [address, length] = [Part::DescriptorAddress(at), Part::DescriptorLength(at)];
        let [id, flags] = [Part::DescriptorId(at), Part::DescriptorFlags(at)];
        assert_eq!(add_touches.changed, [address, length]);
        let touches = queues.driver(&record(Event::Publish, Some(1), new, old));
        let first = lap < 2;
        match first {
            true => assert_eq!(touches.changed, [id, flags, Part::NextAvail]),
            false => assert_eq!(touches.changed, [flags, Part::NextAvail]),
        }
        assert_eq!(touches.written, [id].repeat(usize::from(!first)));
        let (descriptors, next_avail, _) = packed(&queues, touches);
        let written = &descriptors[index as usize];
        assert_eq!((written.avail, written.used), (Some(wrap), Some(!wrap)));
        assert_eq!(next_avail, super::packed::place(new as u16));
        let touches = queues.device(&device("virtqueue_pop", &[("elem", 9)]), 1);
        assert_eq!(touches.read, [address, length, id, flags]);
        let pop = record(Event::PopUsed, Some(1), 7 | index << 16, new);
        assert!(!queues.knows(&pop));
        let fill = device("virtqueue_fill", &[("elem", 9), ("len", 0), ("idx", 0)]);
        let touches = queues.device(&fill, 1);
        // The device leaves the address alone, and gives the same id.
        assert_eq!(touches.changed, [length, flags, Part::NextUsed]);
        assert_eq!(touches.written, [id]);
        assert!(queues.knows(&pop));
        let (descriptors, _, next_used) = packed(&queues, touches);
        let written = &descriptors[index as usize];
        assert_eq!((written.avail, written.used), (Some(wrap), Some(wrap)));
        assert_eq!((written.id, written.length), (Some(7), 0));
        assert_eq!(
            next_used,
            [place(1, true), place(0, false), place(1, false)][lap]
        );
        let touches = queues.driver(&pop);
        assert_eq!(touches.read, [flags, id, length]);
    }
}
