//! The watchdog: a device that does not hear, one that does not call, and one that
//! takes frames and gives none back.

use virtio_net::net::{Changes, NetError};
use virtio_net::queue::{BrokenReason, QueueError};
use virtio_net::vectors::Rung;

use crate::support::memory::pages_in_use;
use crate::support::net::{Machine, Net, TX, feature, high, pattern, receive_all, send};

/// Looks until the device is told again, and until a queue is given up.
const PROD: u64 = 4;
const GIVE_UP: u64 = 10;

/// Looks at the first pair, awake.
fn look(net: &mut Net, looks: u64) {
    for _ in 0..looks {
        net.pairs().next().unwrap().watch(None, 0);
    }
}

/// Kicks that the transmit queue of the device has got.
fn kicks(machine: &Machine) -> u64 {
    machine.device().queues[TX].kicks
}

/// Kicks and interrupts that were lost, and how often the device was stuck.
fn found(net: &Net) -> (u64, u64, u64) {
    let stats = net.stats();
    (stats.kicks_lost, stats.interrupts_lost, stats.stuck)
}

fn with_frame(machine: &mut Machine) -> Net {
    let mut net = machine.open();
    assert!(send(&mut net, &pattern(1, 100)));
    net.kick();
    net
}

/// QEMU leaves notifications off when it has dropped what a packed ring held.
#[test]
fn a_device_is_told_when_the_link_comes_up_though_it_asks_for_no_notification() {
    for offered in [feature::ALL, feature::ALL & !feature::EVENT_IDX] {
        let mut machine = Machine::new(offered, 16);
        let mut net = with_frame(&mut machine);
        machine.device().stay_awake(TX);
        let before = kicks(&machine);
        assert!(send(&mut net, &pattern(2, 100)));
        net.kick();
        assert_eq!(kicks(&machine), before);
        net.pairs().next().unwrap().notify_again();
        assert_eq!(kicks(&machine), before + 1);
        assert_eq!(machine.run_transmit().len(), 2);
        machine.assert_no_violation();
    }
}

#[test]
fn a_device_that_did_not_hear_is_told_again() {
    for offered in [feature::ALL, feature::ALL & !feature::EVENT_IDX] {
        let mut machine = Machine::new(offered, 16);
        let mut net = with_frame(&mut machine);
        machine.device().queues[TX].kicked = false;
        let before = kicks(&machine);
        look(&mut net, PROD - 1);
        assert_eq!(kicks(&machine), before);
        look(&mut net, 1);
        assert_eq!(kicks(&machine), before + 1);
        assert_eq!(machine.run_transmit()[0].frame, pattern(1, 100));
        look(&mut net, 1);
        assert_eq!(found(&net), (1, 0, 0));
        // And all is well.
        look(&mut net, 100);
        assert_eq!(found(&net), (1, 0, 0));
        assert_eq!(kicks(&machine), before + 1);
        assert_eq!(net.poll(), Ok(Changes::empty()));
        machine.assert_no_violation();
    }
}

/// A back end that stops reading, or a machine that is stopped.
#[test]
fn a_device_that_is_slow_is_waited_for() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = with_frame(&mut machine);
    for slow in [1, PROD - 1, PROD + 2, GIVE_UP - 1] {
        look(&mut net, slow);
        assert_eq!(machine.transmit(1).len(), 1, "after {slow} looks");
        assert!(send(&mut net, &pattern(2, 200)));
        net.kick();
        look(&mut net, 1);
    }
    // A ring that is never empty moves all the same.
    for _ in 0..50 {
        assert!(send(&mut net, &pattern(2, 200)));
        net.kick();
        look(&mut net, 2);
        assert_eq!(machine.transmit(1).len(), 1);
    }
    assert_eq!(found(&net), (0, 0, 0));
    assert_eq!(net.poll(), Ok(Changes::empty()));
    machine.assert_no_violation();
}

#[test]
fn a_device_that_gives_nothing_back_is_given_up() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = with_frame(&mut machine);
    for life in 1..=3 {
        look(&mut net, GIVE_UP - 1);
        assert_eq!(net.poll(), Ok(Changes::empty()));
        look(&mut net, 1);
        let reason = BrokenReason::Stuck {
            outstanding: 1,
            looks: 10,
        };
        let error = NetError::Queue(QueueError::Broken { queue: 1, reason });
        assert_eq!(net.poll(), Err(error));
        assert!(
            error
                .to_string()
                .contains("1 chains and gave none back for 10 s")
        );
        assert_eq!(found(&net), (0, 0, life));
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert_eq!(found(&net), (0, 0, life), "counts stay");
        assert!(send(&mut net, &pattern(1, 300)));
        net.kick();
        assert_eq!(machine.run_transmit()[0].frame, pattern(1, 300));
        look(&mut net, 2);
        assert!(send(&mut net, &pattern(1, 300)));
        net.kick();
    }
    machine.assert_no_violation();
}

/// Where one queue can be reset alone: what was to be received is not lost.
#[test]
fn a_stuck_queue_is_reset_alone() {
    let mut machine = Machine::new(feature::ALL, 16);
    machine.device().offered_high = high::VERSION_1 | high::RING_RESET;
    let mut net = machine.probe().unwrap();
    net.open(&mut machine.controller, Rung::MsixPerQueue)
        .unwrap();
    let pages = pages_in_use();
    for life in 1..=3 {
        assert!(machine.receive(&pattern(4, 400)));
        assert!(send(&mut net, &pattern(1, 100)));
        net.kick();
        look(&mut net, GIVE_UP);
        let reason = BrokenReason::Stuck {
            outstanding: 1,
            looks: 10,
        };
        let error = NetError::Queue(QueueError::Broken { queue: 1, reason });
        assert_eq!(net.poll(), Err(error));
        net.reset_queue(1).unwrap();
        assert_eq!(net.poll(), Ok(Changes::empty()));
        assert_eq!(found(&net), (0, 0, life));
        assert_eq!(pages_in_use(), pages);
        assert_eq!(receive_all(&mut net), [pattern(4, 400)]);
        // What it had is lost, and it is used as before.
        assert!(machine.run_transmit().is_empty());
        assert!(send(&mut net, &pattern(2, 300)));
        net.kick();
        assert_eq!(machine.run_transmit()[0].frame, pattern(2, 300));
        look(&mut net, 2);
    }
    drop(net);
    machine.assert_nothing_left();
}

#[test]
fn interrupts_that_do_not_come_are_found() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = machine.open();
    // The caller sleeps, a frame comes, and at the end of the sleep nobody has
    // told of it. That is nothing to say of the last one yet: it may be on its way.
    for missing in 0..=4 {
        assert_eq!(net.poll(), Ok(Changes::empty()));
        assert_eq!(found(&net), (0, missing.max(1) - 1, 0));
        assert!(!net.enable_interrupts());
        assert!(machine.receive(&pattern(2, 400)));
        net.pairs().next().unwrap().watch(Some(7), 7);
        assert_eq!(receive_all(&mut net).len(), usize::from(missing < 4));
    }
    let reason = BrokenReason::NoInterrupt { looks: 4 };
    let error = NetError::Queue(QueueError::Broken { queue: 0, reason });
    assert_eq!(net.poll(), Err(error));
    assert_eq!(found(&net), (0, 4, 0));
    // Without interrupts nothing is missed.
    net.open(&mut machine.controller, Rung::Polling).unwrap();
    for _ in 0..20 {
        assert!(machine.receive(&pattern(2, 400)));
        net.pairs().next().unwrap().watch(None, 7);
        assert_eq!(receive_all(&mut net).len(), 1);
        net.kick();
    }
    assert_eq!(net.poll(), Ok(Changes::empty()));
    machine.assert_no_violation();
}

#[test]
fn interrupts_that_come_late_or_early_are_not_missed() {
    let mut machine = Machine::new(feature::ALL, 16);
    let mut net = machine.open();
    for count in 0..20 {
        assert!(machine.receive(&pattern(2, 400)));
        // It has come meanwhile; there was no sleep; it comes after the look.
        for (asleep_since, interrupts) in [
            (Some(2 * count), 2 * count + 1),
            (None, 2 * count + 1),
            (Some(2 * count + 1), 2 * count + 1),
            (None, 2 * count + 2),
        ] {
            let pair = net.pairs().next().unwrap();
            pair.watch(asleep_since, interrupts);
        }
        assert_eq!(receive_all(&mut net).len(), 1);
        net.kick();
    }
    assert_eq!(found(&net), (0, 0, 0));
    assert_eq!(net.poll(), Ok(Changes::empty()));
}
