//! The experiments: what is asked, what is sent, what is to be learnt.

use std::time::Duration;

use serde::Serialize;

use super::evidence::{Evidence, Outcome};
use super::scene::Scene;

/// An experiment.
#[derive(Debug, Serialize)]
pub struct Experiment {
    /// Its number, from 1.
    pub number: u8,
    /// Its name.
    pub name: &'static str,
    /// What the mistake is, and what is asked.
    pub question: &'static str,
    /// What came of it, and why.
    pub explanation: &'static str,
    /// The section of the specification.
    pub section: &'static str,
    /// Where the driver has it right.
    pub place: &'static str,
    /// What puts it right, as a change of the sources.
    pub fix: &'static str,
    /// How the same ends without the mistake.
    #[serde(skip)]
    pub right: Outcome,
    #[serde(skip)]
    pub(super) scene: Scene,
}

impl Experiment {
    /// What in a run is not as it is without the mistake.
    pub(super) fn failures(&self, run: &Evidence) -> Vec<String> {
        let mut failures = Vec::new();
        let outcome = run.outcome();
        if outcome != self.right {
            failures.push(format!(
                "it ends as '{}' ({}), not as '{}'",
                outcome.word(),
                outcome.sentence(),
                self.right.word()
            ));
        }
        if run.answered < self.scene.count {
            let (answered, count) = (run.answered, self.scene.count);
            failures.push(format!("{answered} of {count} datagrams were answered"));
        }
        failures
    }
}

/// Each, in the order of their numbers.
pub static EXPERIMENTS: &[Experiment] = &[
    Experiment {
        number: 1,
        name: "no-kick",
        question: "The driver adds a frame, publishes the index, finds that the device wants to \
                   be told, and never rings the doorbell. Does the frame leave the guest?",
        explanation: "The frame lies in the ring, complete and published, and the device sleeps: \
                      nothing but a notification makes it look. avail_idx is ahead of \
                      last_avail_idx, and stays there. What moves it in the end is the driver's \
                      watchdog: after four looks, a second apart, at frames that do not move it \
                      rings the doorbell itself, for a kick may be lost. So a missing kick does \
                      not show as silence but as seconds of delay, which is why it is so often \
                      taken for a slow network.",
        section: "2.7.13.4 Notifying The Device",
        place: "kernel/virtio-net/src/queue/mod.rs, Virtqueue::kick (Linux virtqueue_kick)",
        fix: include_str!("fixes/01.patch"),
        right: Outcome::Works,
        scene: Scene::datagrams(1),
    },
    Experiment {
        number: 2,
        name: "wrong-queue",
        question: "A kick is the number of a queue, written into a register. The driver writes \
                   the receive queue's number for frames to be sent. Does anything arrive?",
        explanation: "There are as many doorbells as ever, and as many VM exits; QEMU takes each \
                      for the receive queue, looks there and finds nothing to do. The guest's \
                      counters look healthy: only the host's record of which queue was notified \
                      shows it. The watchdog cannot help, for it rings the same doorbell; after \
                      ten looks it gives the queue up, and the device is reset and opened again, \
                      which does not help either.",
        section: "4.1.5.2 Available Buffer Notifications",
        place: "kernel/virtio-net/src/doorbell.rs, Doorbell::ring (Linux vp_notify)",
        fix: include_str!("fixes/02.patch"),
        right: Outcome::Works,
        scene: Scene::datagrams(1),
    },
    Experiment {
        number: 3,
        name: "index-first",
        question: "The available index says: up to here the entries are yours. The driver moves \
                   it, kicks, and only then writes the entry. What does the device send?",
        explanation: "The device has read the entry before it was written, and has sent what the \
                      descriptor said from before: the whole buffer of its slot, with whatever \
                      lies behind the frame. Here the kick made the device look at once; one \
                      that polls (vhost, DPDK) needs none, and then it is a race that is lost \
                      now and then. So the entry comes first, then a write barrier, \
                      then the index. The extra bytes are old memory of the guest on the wire.",
        section: "2.7.13.3 Updating idx",
        place: "kernel/virtio-net/src/queue/split.rs, SplitMemory::publish, and \
                kernel/virtio-net/src/barrier.rs, publish (Linux virtio_wmb)",
        fix: include_str!("fixes/03.patch"),
        right: Outcome::Works,
        scene: Scene::datagrams(1),
    },
    Experiment {
        number: 4,
        name: "no-barrier",
        question: "Between its store of the available index and its read of avail_event a driver \
                   needs a full barrier. Without one the CPU may read first. Frames go out in \
                   quick succession, each kicked by itself. What is lost?",
        explanation: "A kick. The driver reads avail_event while the device is busy with the \
                      frame before: it lies in the past, no kick is needed. Then the device \
                      finishes, names the new index, looks once more, finds nothing, and sleeps. \
                      Only now the driver's index becomes visible, and nobody is told. Each side \
                      has stored its own word and read the other's too early. On one CPU you \
                      cannot see this by taking the barrier out: a store waits in the CPU's \
                      buffer for some nanoseconds, and an emulated CPU may not reorder at all. \
                      So the window is made wide: the read is done first, and the device is given \
                      time to go to sleep. The same window is as wide in the run without the \
                      mistake, where only the order of the two accesses differs.",
        section: "2.7.13.4.1 Driver Requirements: Notifying The Device",
        place: "kernel/virtio-net/src/barrier.rs, store_load (Linux virtio_mb in \
                virtqueue_kick_prepare)",
        fix: include_str!("fixes/04.patch"),
        right: Outcome::Works,
        scene: Scene {
            window: 8,
            ..Scene::datagrams(400)
        },
    },
    Experiment {
        number: 5,
        name: "index-wrap",
        question: "The indices are 16 bits wide and run on: 0 follows 65535. The driver asks \
                   whether avail_event lies in old..new by two comparisons, old <= event and event < new. 66,000 \
                   frames are sent, the last 800 one by one. When does it go wrong?",
        explanation: "For 65,000 frames it is right. Then new is smaller than old, the \
                      comparison says no, and the one kick that the device waits for is not \
                      sent; avail_event stays behind for good, so no later one is sent either. \
                      It heals when the watchdog tells the device again. vring_need_event \
                      subtracts in 16 bits before it compares: (new - event - 1) < (new - old).",
        section: "2.7.10 Available Buffer Notification Suppression",
        place: "kernel/virtio-net/src/queue/event.rs, need_event (Linux vring_need_event)",
        fix: include_str!("fixes/05.patch"),
        right: Outcome::Works,
        scene: Scene {
            window: 32,
            one_by_one_from: 65_200,
            ..Scene::datagrams(66_000)
        },
    },
    Experiment {
        number: 6,
        name: "kick-always",
        question: "The driver ignores avail_event and kicks for all that it publishes. The device, \
                   once it is told of a frame, waits for more for 200 ms (QEMU's tx=timer). 128 \
                   datagrams are echoed, 16 under way at a time, each published by itself. What \
                   does that cost?",
        explanation: "Nothing breaks: a device may be told more often than it asks. But each kick \
                      is a VM exit, and the device was awake already; with EVENT_IDX it had said \
                      so. Compare how often QEMU was notified in the two runs. An exit \
                      takes a thousand cycles or more; the driver's own work for a frame is a few \
                      dozen instructions.",
        section: "2.7.10 Available Buffer Notification Suppression",
        place: "kernel/virtio-net/src/queue/split.rs, SplitMemory::publish (Linux \
                virtqueue_kick_prepare)",
        fix: include_str!("fixes/06.patch"),
        right: Outcome::Works,
        scene: Scene {
            window: 16,
            device_pauses: true,
            ..Scene::datagrams(128)
        },
    },
    Experiment {
        number: 7,
        name: "no-second-look",
        question: "The driver has taken all received frames, asks for an interrupt at the next, \
                   and goes to sleep, without looking once more. A frame comes just before it \
                   asks. Who wakes the driver?",
        explanation: "Nobody: the device has passed the index at which it is to interrupt, and \
                      passes it only once. The frame lies in the used ring until something else \
                      wakes the driver, here its own look once a second; after four such frames \
                      in a row it takes the queue for broken. So interrupts are \
                      enabled first, then comes a full barrier, then another look; if it finds \
                      something the driver polls again instead of sleeping. The window is held \
                      open in both runs, so that a frame comes in it every time.",
        section: "2.7.7 Used Buffer Notification Suppression",
        place: "kernel/virtio-net/src/queue/split.rs, SplitMemory::enable_interrupts_after (Linux \
                virtqueue_enable_cb)",
        fix: include_str!("fixes/07.patch"),
        right: Outcome::Works,
        scene: Scene {
            queue: 0,
            pause: Duration::from_millis(3),
            may_reopen: 1,
            ..Scene::datagrams(12)
        },
    },
    Experiment {
        number: 8,
        name: "not-recycled",
        question: "The queue has 16 descriptors. The device uses each and gives it back; the \
                   driver never takes one back. How many frames leave?",
        explanation: "Sixteen. Then the driver has no descriptor left, although the device's used \
                      index says that it has all of them back. The sender waits for room that \
                      nobody makes. The watchdog sees frames that do not move and tells the device \
                      again, which has nothing to do; after ten looks it gives the queue up, and a \
                      device that is opened again has sixteen descriptors more.",
        section: "2.7.14 Receiving Used Buffers From The Device",
        place: "kernel/virtio-net/src/net/tx.rs, TxQueue::reclaim (Linux free_old_xmit)",
        fix: include_str!("fixes/08.patch"),
        right: Outcome::Works,
        scene: Scene {
            queue_size: Some(16),
            ..Scene::datagrams(40)
        },
    },
    Experiment {
        number: 9,
        name: "short-descriptor",
        question: "A buffer is struct virtio_net_hdr and the frame behind it. The driver gives the \
                   descriptor the length of the frame alone. What comes out?",
        explanation: "Frames that are as much too short as the header is long. The device has no \
                      other word for the end of a frame than the descriptor's length: it takes \
                      the header off the front and sends the rest, whose end is missing. Long \
                      frames are cut in the content, short ones in a header, so that it may be \
                      an address that never gets resolved.",
        section: "5.1.6.2 Packet Transmission",
        place: "kernel/virtio-net/src/queue/positional.rs, PositionalRing::add",
        fix: include_str!("fixes/09.patch"),
        right: Outcome::Works,
        scene: Scene::datagrams(1),
    },
    Experiment {
        number: 10,
        name: "no-header",
        question: "The driver gives the device the frame without struct virtio_net_hdr before it. \
                   What does the device make of the first bytes?",
        explanation: "A header. It takes the first 10 bytes (12 of a modern device, or with \
                      MRG_RXBUF), which are the destination's address and the beginning of the \
                      source's, for flags and offsets, and sends what is behind them: a frame \
                      that begins in the middle of an address. With offloads it might also have \
                      followed those flags.",
        section: "5.1.6 Device Operation",
        place: "kernel/virtio-net/src/net/tx.rs, TxQueue::allocate, and \
                kernel/virtio-net/src/net/header.rs",
        fix: include_str!("fixes/10.patch"),
        right: Outcome::Works,
        scene: Scene::datagrams(1),
    },
    Experiment {
        number: 11,
        name: "lying-device",
        question: "The device says, once, that it has used a buffer which it has not: the id is in \
                   range, but another one's. The driver believes every id. What happens then?",
        explanation: "The slot that was really used is never free again: the driver waits for it \
                      as soon as the ring has come round, and ten seconds later its watchdog \
                      gives up. With other data structures it would have given a buffer to two \
                      owners. The driver as it is asks of every id whether it is in range and the \
                      device's to give back. It stops at the first lie, names it in its log and \
                      opens the device again; the run without the mistake shows that. (The lie is \
                      put into what the driver reads, in both runs: QEMU does not lie.)",
        section: "2.7.8 The Virtqueue Used Ring",
        place: "kernel/virtio-net/src/queue/positional/slow.rs, PositionalRing::read_used",
        fix: include_str!("fixes/11.patch"),
        right: Outcome::Caught,
        scene: Scene {
            queue_size: Some(16),
            may_reopen: 1,
            ..Scene::datagrams(40)
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_find_one_each() {
        for (number, experiment) in (1..).zip(EXPERIMENTS) {
            assert_eq!(experiment.number, number);
            for word in [number.to_string(), experiment.name.to_owned()] {
                let found = super::super::find(&word).unwrap();
                assert_eq!(found.len(), 1);
                assert_eq!(found[0].number, number);
            }
        }
        assert_eq!(super::super::find("all").unwrap().len(), EXPERIMENTS.len());
        for word in ["0", "12", "", "no", "-1"] {
            assert!(super::super::find(word).is_err(), "{word}");
        }
    }

    #[test]
    fn a_run_that_stops_half_way_is_not_right() {
        let experiment = &EXPERIMENTS[10];
        let mut run = Evidence {
            asked: 40,
            answered: 40,
            reopened: 1,
            ..Evidence::default()
        };
        assert_eq!(experiment.failures(&run), [""; 0]);
        run.answered = 4;
        assert_eq!(experiment.failures(&run).len(), 1);
        run.prods = 1;
        assert_eq!(experiment.failures(&run).len(), 2);
    }
}
