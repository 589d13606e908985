//! Probe, open, stop, and what is left afterwards.

use virtio_drivers::PAGE_SIZE;
use virtio_drivers::transport::DeviceType;
use virtio_net::net::{Features, NetError, Options, QueueRole, Stats, VirtioNet};
use virtio_net::queue::{QueueError, RingLayout};
use virtio_net::transport::{ConfigOps, TransportError};
use virtio_net::vectors::{FindVqsError, Rung};

use crate::support::device::IO_BASE;
use crate::support::faults::{self, Step};
use crate::support::memory::{GuestHal, largest_piece, pages_in_use};
use crate::support::net::{MAC, Machine, RX, TX, feature, high, pattern, receive_all, send};

/// The address that a device without a usable one gets.
const FALLBACK_MAC: [u8; 6] = [0x02, 0x00, 0x00, 0x6b, 0x69, 0x63];

#[test]
fn probe_reads_what_the_device_says() {
    let machine = Machine::new(feature::ALL, 256);
    let net = machine.probe().unwrap();
    let info = *net.info();
    assert_eq!(info.offered.bits(), u128::from(feature::ALL));
    assert_eq!(info.negotiated.bits(), u128::from(feature::ALL));
    assert_eq!((info.mac, info.mtu, info.link_up), (MAC, 1500, true));
    assert_eq!(net.rung(), None);
    assert_eq!(net.snapshots().count(), 0);
    assert_eq!(net.stats().tx_packets, 0);
    // Specification 3.1.1: reset, ACKNOWLEDGE, DRIVER; nothing is agreed to
    // run yet.
    assert_eq!(machine.device().status_writes, [0, 1, 3]);
    assert_eq!(pages_in_use(), 0);
    drop(net);
    machine.assert_nothing_left();
}

/// A device that offers everything is asked for what is implemented, and for
/// nothing else: not for UDP segmentation, not for several queue pairs, not for
/// `NOTIFY_ON_EMPTY`, not for a bit that nobody has defined.
#[test]
fn only_what_is_implemented_is_acknowledged() {
    let mut machine = Machine::new(!0, 256);
    let mut net = machine.probe().unwrap();
    assert_eq!(machine.device().features, feature::IMPLEMENTED);
    assert_eq!(net.info().offered.bits(), 0xffff_ffff);
    assert_eq!(
        net.info().negotiated.bits(),
        u128::from(feature::IMPLEMENTED)
    );
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_eq!(machine.device().features, feature::IMPLEMENTED);
    drop(net);
    for bit in 0..32 {
        let machine = Machine::new(1 << bit, 256);
        let net = machine.probe().unwrap();
        // What requires another feature is nothing without it.
        let alone = feature::IMPLEMENTED & !feature::DEPENDENT;
        assert_eq!(machine.device().features, alone & 1 << bit);
        drop(net);
    }
}

/// A caller that says nothing can serve nothing: it gets no unfinished checksums
/// and no large frames of a device that offers all, such as a tap by QEMU.
#[test]
fn what_the_caller_did_not_say_it_serves_is_not_acknowledged() {
    let mut machine = Machine::hashing(!0, high::HASH_REPORT | high::RSS, 16);
    let acknowledged = |machine: &Machine| {
        let device = machine.device();
        u64::from(device.features) | u64::from(device.features_high) << 32
    };
    let (transport, state) = (machine.transport(), machine.state);
    let mut net = VirtioNet::<GuestHal, _>::probe(transport, Options::default(), state).unwrap();
    assert!(
        net.info()
            .offered
            .contains(Features::OPT_IN & Features::IMPLEMENTED)
    );
    let plain = Features::IMPLEMENTED - Features::OPT_IN;
    for _ in 0..2 {
        let taken = Features::from_bits_retain(acknowledged(&machine).into());
        assert!(plain.contains(taken), "{}", taken - plain);
        assert!(taken.contains(Features::MRG_RXBUF | Features::CTRL_VQ));
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
    }
    assert!(send(&mut net, &pattern(0, 60)));
    net.kick();
    let sent = machine.run_transmit();
    assert!(sent[0].header.iter().all(|byte| *byte == 0));
    // Each is taken when it is served.
    let options = Options::serving(Features::CSUM);
    let net = VirtioNet::<GuestHal, _>::probe(machine.transport(), options, state).unwrap();
    assert_eq!(net.info().negotiated & Features::OPT_IN, Features::CSUM);
}

/// A machine that has run for a while may have no large pieces of memory left.
#[test]
fn buffers_need_no_large_piece_of_memory() {
    for (offered, most) in [(feature::ALL, 32), (feature::ALL | feature::GUEST, 72)] {
        let mut machine = Machine::new(offered, 1024);
        let net = machine.open();
        assert!(pages_in_use() > 1000 || most > 32, "{}", pages_in_use());
        assert!(
            largest_piece() * PAGE_SIZE <= most << 10,
            "{}",
            largest_piece()
        );
        drop(net);
        machine.assert_nothing_left();
    }
}

#[test]
fn refused_features_are_not_acknowledged() {
    for bit in (0..32).filter(|bit| feature::IMPLEMENTED >> bit & 1 != 0) {
        let mut machine = Machine::new(!0, 256);
        let refused = Features::from_bits_retain(1 << bit);
        let mut net = machine.probe_refusing(refused).unwrap();
        let left = feature::IMPLEMENTED
            & !match 1 << bit {
                feature::CTRL_VQ => feature::CONTROL,
                feature::CSUM => feature::HOST,
                feature::GUEST_CSUM => feature::GUEST,
                other => other,
            };
        assert_eq!(machine.device().features, left);
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert_eq!(machine.device().features, left);
        assert!(!net.info().negotiated.contains(refused));
    }
    let machine = Machine::new(!0, 256);
    machine.probe_refusing(Features::all()).unwrap();
    assert_eq!(machine.device().features, 0);
}

#[test]
fn an_address_that_cannot_be_one_is_replaced() {
    for (mac, expected) in [
        ([0; 6], FALLBACK_MAC),
        ([0xff; 6], FALLBACK_MAC),
        ([0x01, 0x00, 0x5e, 0, 0, 1], FALLBACK_MAC),
        ([0x00, 0, 0, 0, 0, 1], [0x00, 0, 0, 0, 0, 1]),
        (
            [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff],
            [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
    ] {
        let machine = Machine::new(feature::ALL, 256);
        machine.device().config[..6].copy_from_slice(&mac);
        assert_eq!(machine.probe().unwrap().info().mac, expected);
    }
    let machine = Machine::new(feature::ALL & !feature::MAC, 256);
    assert_eq!(machine.probe().unwrap().info().mac, FALLBACK_MAC);
}

/// The legacy interface cannot say that its configuration changed while a field
/// was read byte by byte (specification 2.5.4).
#[test]
fn an_address_that_changes_is_read_in_one_piece() {
    const NEW: [u8; 6] = [0x02, 0xf0, 0xe1, 0xd2, 0xc3, 0xb4];
    for reads in 0..20 {
        let machine = Machine::new(feature::ALL, 256);
        let mut config = machine.device().config.clone();
        config[..6].copy_from_slice(&NEW);
        machine.device().later_config = Some((reads, config));
        let mac = machine.probe().unwrap().info().mac;
        assert!(mac == MAC || mac == NEW, "{mac:02x?} after {reads} reads");
        assert_eq!(mac == NEW, reads < 12, "{reads}");
    }
}

#[test]
fn the_mtu_is_the_devices() {
    for (mtu, expected) in [
        (0u16, 68),
        (67, 68),
        (68, 68),
        (576, 576),
        (1500, 1500),
        (1501, 1501),
        (9000, 9000),
        (0xffff, 0xffff),
    ] {
        let machine = Machine::new(feature::ALL, 256);
        machine.device().config[10..].copy_from_slice(&mtu.to_le_bytes());
        let net = machine.probe().unwrap();
        assert_eq!((net.info().mtu, net.info().max_mtu), (expected, expected));
    }
    let machine = Machine::new(feature::ALL & !feature::MTU, 256);
    machine.device().config[10..].copy_from_slice(&[68, 0]);
    assert_eq!(machine.probe().unwrap().info().mtu, 1500);
}

#[test]
fn the_mtu_changes_within_bounds() {
    for (offered, most) in [
        (feature::ALL & !feature::MRG_RXBUF, 1500),
        (feature::ALL & !feature::MTU & !feature::MRG_RXBUF, 0xffff),
        (feature::ALL & !feature::MTU, 0xffff),
    ] {
        let mut machine = Machine::new(offered, 16);
        let mut net = machine.probe().unwrap();
        let refusal = |mtu, most| {
            Err(NetError::InvalidMtu {
                mtu,
                least: 68,
                most,
            })
        };
        assert_eq!(net.change_mtu(67), refusal(67, most));
        if let Some(more) = most.checked_add(1u16) {
            assert_eq!(net.change_mtu(more), refusal(more, most));
        }
        assert_eq!(net.info().mtu, 1500);
        let large = most.min(9000);
        net.change_mtu(large).unwrap();
        net.open(&mut machine.controller, Rung::Polling).unwrap();
        // Frames of that size, behind a VLAN's tag, go and come.
        let frame = pattern(3, 18 + usize::from(large));
        assert!(send(&mut net, &frame));
        net.kick();
        assert_eq!(machine.run_transmit()[0].frame, frame);
        if offered & feature::MRG_RXBUF == 0 {
            assert!(machine.receive(&frame));
            assert_eq!(receive_all(&mut net), [frame]);
        }
        // The buffers are there: less is possible, more only after a stop.
        net.change_mtu(1000).unwrap();
        assert_eq!(net.info().mtu, 1000);
        net.change_mtu(large).unwrap();
        if let Some(more) = large.checked_add(1u16) {
            assert_eq!(net.change_mtu(more), refusal(more, large));
        }
        drop(net);
        machine.assert_nothing_left();
    }
}

/// A device may deliver packets of its own MTU, whatever the driver sends
/// (specification 5.1.4.2).
#[test]
fn a_smaller_mtu_leaves_the_receive_buffers_as_large() {
    for without in [0, feature::ANY_LAYOUT] {
        let mut machine = Machine::new(feature::ALL & !without, 16);
        machine.device().config[10..].copy_from_slice(&9000u16.to_le_bytes());
        let mut net = machine.probe().unwrap();
        net.change_mtu(1500).unwrap();
        net.open(&mut machine.controller, Rung::Polling).unwrap();
        let frame = pattern(3, 18 + 9000);
        assert!(machine.receive(&frame));
        assert_eq!(receive_all(&mut net), [frame]);
    }
}

/// A queue that is reset alone gets buffers as large as the device was opened
/// with, whatever the MTU is meanwhile: it may be raised again.
#[test]
fn a_queue_that_is_reset_has_buffers_as_before() {
    for merged in [0, feature::MRG_RXBUF] {
        let mut machine = Machine::new(feature::ALL | merged, 16);
        machine.device().offered_high = high::VERSION_1 | high::RING_RESET;
        machine.device().config[10..].copy_from_slice(&9000u16.to_le_bytes());
        let mut net = machine.probe().unwrap();
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        let pages = pages_in_use();
        net.change_mtu(1500).unwrap();
        for queue in [0, 1] {
            net.reset_queue(queue).unwrap();
            let model = &machine.device().queues[usize::from(queue)];
            assert!(model.ring.is_some());
            assert_eq!(model.vector, 1 + queue);
        }
        assert_eq!(pages_in_use(), pages);
        net.change_mtu(9000).unwrap();
        let frame = pattern(3, 18 + 9000);
        assert!(send(&mut net, &frame));
        net.kick();
        assert_eq!(machine.run_transmit()[0].frame, frame);
        assert!(machine.receive(&frame));
        assert_eq!(receive_all(&mut net), [frame]);
        drop(net);
        machine.assert_nothing_left();
    }
}

#[test]
fn the_link_is_up_unless_the_device_says_otherwise() {
    for (offered, byte, up) in [
        (feature::ALL, 0, false),
        (feature::ALL, 1, true),
        (feature::ALL, 2, false), // ANNOUNCE alone
        (feature::ALL & !feature::STATUS, 0, true),
    ] {
        let machine = Machine::new(offered, 256);
        machine.device().config[6] = byte;
        assert_eq!(machine.probe().unwrap().info().link_up, up);
    }
}

/// The configuration begins at port 20: what a BAR must have for the MTU.
#[test]
fn a_configuration_beyond_the_bar_is_an_error() {
    for (size, expected) in [
        (24u32, Some(NetError::Config { offset: 0 })),
        (28, Some(NetError::Config { offset: 10 })),
        (32, None),
    ] {
        let machine = Machine::new(feature::ALL, 256);
        let answer = size.wrapping_neg() | 1;
        let bar = u32::from(IO_BASE) | 1;
        machine.device().pci.lying_bar(0, bar, answer);
        assert_eq!(machine.probe().err(), expected);
        machine.assert_nothing_left();
    }
}

#[test]
fn another_kind_of_device_is_refused() {
    let machine = Machine::new(feature::ALL, 256);
    machine.device().pci.set(0x2c, 0x0002_1af4);
    assert_eq!(
        machine.probe().err(),
        Some(NetError::NotNetwork {
            device_type: DeviceType::Block
        })
    );
    machine.assert_nothing_left();
}

#[test]
fn a_device_that_does_not_reset_is_refused() {
    let machine = Machine::new(feature::ALL, 256);
    machine.device().reset_reads = u32::MAX;
    assert!(matches!(
        machine.probe().err(),
        Some(NetError::Transport(TransportError::ResetTimeout { .. }))
    ));
    assert_eq!(pages_in_use(), 0);
}

/// Specification 3.1.1, without FEATURES_OK, which a legacy device lacks. The
/// device may be kicked only when it is live.
#[test]
fn open_goes_by_the_specifications_steps() {
    let mut machine = Machine::new(feature::ALL, 256);
    let mut net = machine.probe().unwrap();
    machine.device().status_writes.clear();
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    assert_eq!(machine.device().status_writes, [0, 1, 3, 7]);
    assert_eq!(machine.device().queues[RX].kicks, 1);
    assert_eq!(machine.device().queues[TX].kicks, 0);
    assert_eq!(net.rung(), Some(Rung::MsixPerQueue));
    assert_eq!(net.attempts().len(), 1);
    machine.assert_no_violation();
    net.stop(&mut machine.controller);
    assert!(machine.controller.is_idle());
    machine.assert_nothing_left();
}

#[test]
fn a_stopped_device_does_nothing() {
    let mut machine = Machine::new(feature::ALL, 256);
    let mut net = machine.probe().unwrap();
    for _ in 0..2 {
        assert!(matches!(net.queues(), Err(NetError::NotOpen)));
        assert_eq!(net.poll(), Err(NetError::NotOpen));
        assert!(!net.enable_interrupts());
        assert!(!net.has_work());
        assert_eq!(net.snapshots().count(), 0);
        assert_eq!(net.rung(), None);
        net.kick();
        net.open(&mut machine.controller, Rung::Intx).unwrap();
        net.stop(&mut machine.controller);
        net.stop(&mut machine.controller);
        machine.assert_nothing_left();
    }
}

#[test]
fn the_snapshots_show_both_rings() {
    let mut machine = Machine::new(feature::ANY_LAYOUT, 64);
    let mut net = machine.open();
    for number in 0..5 {
        assert!(send(&mut net, &pattern(number, 60)));
    }
    net.kick();
    assert_eq!(machine.transmit(3).len(), 3);
    assert!(machine.receive(&[1]));
    let snapshots: Vec<_> = net.snapshots().collect();
    let [rx, tx] = &snapshots[..] else {
        panic!("{snapshots:?}");
    };
    assert_eq!(
        (rx.role, tx.role),
        (QueueRole::Receive, QueueRole::Transmit)
    );
    assert_eq!((rx.index, tx.index), (0, 1));
    assert_eq!((rx.size, tx.size), (64, 64));
    assert_eq!((rx.avail_idx, tx.avail_idx), (64, 5));
    assert_eq!((rx.used_idx, tx.used_idx), (1, 3));
    assert_eq!((rx.last_used_idx, tx.last_used_idx), (0, 0));
    assert_eq!((rx.free, tx.free), (0, 59));
}

#[test]
fn every_queue_size_works() {
    for offered in [feature::ALL, feature::ALL & !feature::ANY_LAYOUT] {
        for shift in 1..=12 {
            let mut machine = Machine::new(offered, 1 << shift);
            // The device dictates each size by itself.
            machine.device().queues[TX].size = 1 << (13 - shift);
            let mut net = machine.open();
            assert!(send(&mut net, &pattern(shift, 1000)));
            net.kick();
            assert_eq!(machine.run_transmit()[0].frame, pattern(shift, 1000));
            assert!(machine.receive(&pattern(shift, 900)));
            assert_eq!(receive_all(&mut net), [pattern(shift, 900)]);
            drop(net);
            machine.assert_nothing_left();
        }
    }
}

/// Without ANY_LAYOUT a frame needs two descriptors.
#[test]
fn a_ring_that_holds_no_frame_is_refused() {
    let mut machine = Machine::new(0, 1);
    let mut net = machine.probe().unwrap();
    assert_eq!(
        net.open(&mut machine.controller, Rung::MsixPerQueue),
        Err(NetError::FindVqs(FindVqsError::Queue(
            QueueError::BadSize {
                queue: 0,
                size: 1,
                layout: RingLayout::Split
            }
        )))
    );
    assert_eq!(net.attempts().len(), 4);
    assert!(machine.controller.is_idle());
    machine.assert_nothing_left();
    let mut machine = Machine::new(feature::ANY_LAYOUT, 1);
    machine.open();
}

#[test]
fn a_thousand_lives_leave_nothing() {
    let mut machine = Machine::new(feature::ALL, 16);
    for life in 0..1000 {
        let rung = Rung::LADDER[life % 4];
        let mut net = machine.probe().unwrap();
        net.open(&mut machine.controller, rung).unwrap();
        assert_eq!(net.rung(), Some(rung));
        assert!(send(&mut net, &pattern(life, 60)));
        net.kick();
        assert_eq!(machine.run_transmit().len(), 1);
        match life % 3 {
            // Stopped, as it should be.
            0 => net.stop(&mut machine.controller),
            // Opened again while it is open.
            1 => {
                net.open(&mut machine.controller, rung).unwrap();
                net.stop(&mut machine.controller);
            }
            // Dropped while it is open: only the embedder can take its
            // handlers back.
            _ => {
                use virtio_net::vectors::InterruptController;
                drop(net);
                machine.controller.detach_msi();
                machine.controller.detach_intx();
            }
        }
        assert!(machine.controller.is_idle());
        machine.assert_nothing_left();
    }
}

/// Every allocation of `open` fails once: the rings', then the buffers'.
#[test]
fn without_memory_it_stays_closed() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = machine.probe().unwrap();
    let mut buffers = 0;
    for step in 0.. {
        faults::plan(&[step]);
        let result = net.open(&mut machine.controller, Rung::Polling);
        let strikes = faults::take_strikes();
        let Some(strike) = strikes.first() else {
            assert_eq!(result, Ok(()));
            break;
        };
        let error = result.unwrap_err();
        if let (Step::Memory, NetError::NoBuffers { queue, count, .. }) = (strike.step, error) {
            assert_eq!((queue, count), (buffers, 16));
            buffers += 1;
        } else {
            assert!(matches!(error, NetError::FindVqs(_)), "{error}");
        }
        assert_eq!(net.rung(), None);
        assert!(machine.controller.is_idle());
        machine.assert_nothing_left();
    }
    assert_eq!(buffers, 2, "not every allocation failed");
    assert!(send(&mut net, &[1]));
}

/// A device that goes on after a reset could write what was its own.
#[test]
fn memory_of_a_device_that_does_not_stop_is_not_used_again() {
    for stop in [true, false] {
        let mut machine = Machine::new(feature::ALL, 16);
        let mut net = machine.open();
        let before = pages_in_use();
        machine.device().reset_reads = u32::MAX;
        if stop {
            net.stop(&mut machine.controller);
            assert!(machine.controller.is_idle());
        }
        drop(net);
        assert_eq!(pages_in_use(), before);
        machine.assert_no_violation();
    }
}

#[test]
fn counters_survive_stop_and_open() {
    let mut machine = Machine::new(feature::ANY_LAYOUT, 4);
    let mut net = machine.probe().unwrap();
    for life in 1..=3 {
        net.open(&mut machine.controller, Rung::Polling).unwrap();
        for _ in 0..4 {
            assert!(send(&mut net, &[0; 100]));
        }
        assert!(!send(&mut net, &[0; 100]));
        assert_eq!(machine.run_transmit().len(), 4);
        assert!(machine.receive(&[0; 50]));
        assert!(machine.receive_bytes(&[]));
        assert_eq!(receive_all(&mut net).len(), 1);
        let expected = |net: &crate::support::net::Net| Stats {
            rx_packets: life,
            rx_bytes: 50 * life,
            rx_dropped: life,
            tx_packets: 4 * life,
            tx_bytes: 400 * life,
            tx_waited: life,
            // One to post the receive buffers, one because it was full.
            kicks: 2 * life,
            register_accesses: net.stats().register_accesses,
            ..Stats::default()
        };
        assert_eq!(net.stats(), expected(&net));
        net.stop(&mut machine.controller);
        assert_eq!(net.stats(), expected(&net));
    }
    // On this rung every access is one that the device saw.
    let stats = net.stats();
    assert_eq!(stats.register_accesses, machine.device().accesses);
    assert_eq!(
        stats.register_accesses - stats.kicks,
        net.transport().register_accesses()
    );
}

/// Speed and duplex are beyond a legacy device's features, so nothing is
/// said of them.
#[test]
fn a_legacy_device_has_no_speed() {
    let machine = Machine::new(!0, 16);
    let net = machine.probe().unwrap();
    assert_eq!((net.info().speed, net.info().duplex), (None, None));
}
