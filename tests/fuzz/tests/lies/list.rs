//! The lies.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::bench::{Bench, Device, RX, SIZE, TX, Way};
use crate::support::control::Behaviour;
use crate::support::device::status;
use crate::support::faults::{self, Step};
use crate::support::memory::guest_memory;

/// When a lie is told.
pub enum When {
    /// To a driver that is open.
    InLife,
    /// To one that gives it a command.
    Command,
    /// While it opens the device.
    AtOpen,
}

/// A lie.
pub struct Lie {
    /// What the device does, for the table.
    pub what: &'static str,
    /// Features that it takes.
    pub features: u64,
    pub when: When,
    /// Whether it can be told over a way.
    pub over: fn(Way) -> bool,
    /// Tells it, and returns what the driver's message must have.
    pub tell: fn(&mut Bench) -> Vec<String>,
}

const MRG_RXBUF: u64 = 1 << 15;
const CTRL_VQ: u64 = 1 << 17 | 1 << 18;
const IN_ORDER: u64 = 1 << 35;
const RING_RESET: u64 = 1 << 40;

fn all(_: Way) -> bool {
    true
}

fn split(way: Way) -> bool {
    !way.is_packed()
}

fn of_version_1(way: Way) -> bool {
    way != Way::Legacy
}

fn legacy(way: Way) -> bool {
    way == Way::Legacy
}

/// What a message must have.
fn values(values: &[&dyn ToString]) -> Vec<String> {
    values.iter().map(|value| value.to_string()).collect()
}

const fn ring(
    what: &'static str,
    over: fn(Way) -> bool,
    tell: fn(&mut Bench) -> Vec<String>,
) -> Lie {
    Lie {
        what,
        features: 0,
        when: When::InLife,
        over,
        tell,
    }
}

const fn with(features: u64, lie: Lie) -> Lie {
    Lie { features, ..lie }
}

const fn at_open(
    what: &'static str,
    over: fn(Way) -> bool,
    tell: fn(&mut Bench) -> Vec<String>,
) -> Lie {
    Lie {
        when: When::AtOpen,
        ..ring(what, over, tell)
    }
}

const fn to_command(
    what: &'static str,
    over: fn(Way) -> bool,
    tell: fn(&mut Bench) -> Vec<String>,
) -> Lie {
    Lie {
        when: When::Command,
        ..ring(what, over, tell)
    }
}

/// All of them, in the order of the table.
pub const LIES: &[Lie] = &[
    ring("uses an id out of range to receive", all, |bench| {
        bench.lie(RX, 999, 60);
        values(&[&"queue 0", &999, &SIZE])
    }),
    ring("uses an id out of range when sending", all, |bench| {
        bench.driver.send(&[0; 60]);
        bench.lie(TX, 999, 0);
        values(&[&"queue 1", &999, &SIZE])
    }),
    ring(
        "uses an id of 32 bits that is right but for the upper 16",
        split,
        |bench| {
            let (id, _) = bench.take(RX);
            bench.lie(RX, 0x1_0000 + u32::from(id), 60);
            values(&[&"queue 0", &(0x1_0000 + u32::from(id))])
        },
    ),
    ring("gives a frame back that it was not given", all, |bench| {
        bench.driver.send(&[0; 60]);
        let (id, _) = bench.take(TX);
        bench.lie(TX, u32::from(id ^ 8), 0);
        values(&[&"queue 1", &(id ^ 8)])
    }),
    ring("gives a frame back twice", all, |bench| {
        bench.driver.send(&[0; 60]);
        bench.driver.send(&[0; 60]);
        let (id, _) = bench.take(TX);
        bench.ends[TX].give_back(id, 0);
        bench.look().expect("it is well");
        bench.lie(TX, id.into(), 0);
        values(&[&"queue 1", &id])
    }),
    ring("gives a frame back when there is none", split, |bench| {
        let index = bench.used_index(TX);
        bench.lie(TX, 0, 0);
        values(&[&"queue 1", &index.wrapping_add(1)])
    }),
    with(
        IN_ORDER,
        ring(
            "says that one frame was sent, by the id of the second",
            |way| of_version_1(way) && split(way),
            |bench| {
                bench.driver.send(&[0; 60]);
                bench.driver.send(&[0; 60]);
                bench.take(TX);
                let (second, _) = bench.take(TX);
                bench.lie(TX, second.into(), 0);
                values(&[&"queue 1", &second])
            },
        ),
    ),
    ring(
        "says that it wrote more than the buffer has",
        all,
        |bench| {
            let (id, pieces) = bench.take(RX);
            let room: u32 = pieces.iter().map(|piece| piece.length).sum();
            bench.ends[RX].give_back(id, room + 1);
            values(&[&"queue 0", &(room + 1), &room])
        },
    ),
    ring("says that it wrote 4 GiB", all, |bench| {
        let (id, _) = bench.take(RX);
        bench.ends[RX].give_back(id, u32::MAX);
        values(&[&"queue 0", &u32::MAX])
    }),
    ring("lets its index jump", split, |bench| {
        let index = bench.used_index(RX).wrapping_add(0x4000);
        bench.set_used_index(RX, index);
        values(&[&"queue 0", &index])
    }),
    ring("lets its index go back", split, |bench| {
        let index = bench.used_index(TX).wrapping_sub(1);
        bench.set_used_index(TX, index);
        values(&[&"queue 1", &index])
    }),
    with(
        MRG_RXBUF,
        ring(
            "says that a frame lies in more buffers than it used",
            all,
            |bench| {
                let (id, pieces) = bench.take(RX);
                let mut bytes = bench.bytes(60);
                bytes[10] = 3;
                bench.fill(&pieces, &bytes);
                bench.ends[RX].give_back(id, bytes.len() as u32);
                values(&[&"queue 0", &"3 buffers", &1])
            },
        ),
    ),
    with(
        MRG_RXBUF,
        ring("says that a frame lies in no buffer", all, |bench| {
            let (id, pieces) = bench.take(RX);
            let mut bytes = bench.bytes(60);
            bytes[10] = 0;
            bench.fill(&pieces, &bytes);
            bench.ends[RX].give_back(id, bytes.len() as u32);
            Vec::new()
        }),
    ),
    ring("uses an empty buffer", all, |bench| {
        let before = bench.driver.dropped();
        let (id, _) = bench.take(RX);
        bench.ends[RX].give_back(id, 0);
        bench.look().expect("it is well");
        assert_eq!(bench.driver.dropped(), before + 1);
        Vec::new()
    }),
    ring("sends a header of all ones", all, |bench| {
        let (id, pieces) = bench.take(RX);
        let mut bytes = bench.bytes(60);
        bytes[..10].fill(0xff);
        bench.fill(&pieces, &bytes);
        bench.ends[RX].give_back(id, bytes.len() as u32);
        Vec::new()
    }),
    ring("writes over the descriptors", all, |bench| {
        let (id, pieces) = bench.take(RX);
        let bytes = bench.bytes(60);
        bench.fill(&pieces, &bytes);
        let start = bench.areas(RX)[0];
        let mut before = Vec::new();
        // Of a packed ring address, length and id; its flags are how it is used.
        let length = if bench.way.is_packed() { 14 } else { 16 };
        for number in 0..u64::from(SIZE) {
            let at = GuestAddress(start + 16 * number);
            let mut old = vec![0; length];
            guest_memory().read_slice(&mut old, at).expect("memory");
            guest_memory()
                .write_slice(&vec![0xff; length], at)
                .expect("memory");
            before.push((at, old));
        }
        bench.ends[RX].give_back(id, bytes.len() as u32);
        assert_eq!(
            bench.driver.receive().len(),
            1,
            "it is received all the same"
        );
        // The device itself would not find its way.
        for (at, old) in before {
            guest_memory().write_slice(&old, at).expect("memory");
        }
        Vec::new()
    }),
    ring("takes a frame and does not give it back", all, |bench| {
        bench.driver.send(&[0; 60]);
        bench.take(TX);
        // The first look sees that frames were given back before.
        (0..11).for_each(|_| bench.driver.watch(false));
        values(&[&"queue 1", &"1 chains", &10])
    }),
    with(
        RING_RESET,
        ring(
            "the same, where a queue can be reset alone",
            of_version_1,
            |bench| {
                bench.driver.send(&[0; 60]);
                bench.take(TX);
                // The first look sees that frames were given back before.
                (0..11).for_each(|_| bench.driver.watch(false));
                values(&[&"queue 1", &"1 chains", &10])
            },
        ),
    ),
    ring("uses buffers and does not interrupt", all, |bench| {
        for _ in 0..5 {
            let bytes = bench.bytes(60);
            let (id, pieces) = bench.take(RX);
            bench.fill(&pieces, &bytes);
            bench.ends[RX].give_back(id, bytes.len() as u32);
            bench.driver.watch(true);
            bench.driver.receive();
        }
        values(&[&"queue 0", &4])
    }),
    ring("asks for a reset", legacy, |bench| {
        if let Device::Legacy(machine) = &bench.device {
            machine.device().status |= status::NEEDS_RESET;
        }
        bench.found = bench.driver.check_status().err();
        values(&[&"reset"])
    }),
    ring("is gone", legacy, |bench| {
        if let Device::Legacy(machine) = &bench.device {
            let live = machine.device().status;
            machine.device().lies.status.store(!live, Ordering::Relaxed);
        }
        bench.found = bench.driver.check_status().err();
        values(&[&"all ones"])
    }),
    with(
        CTRL_VQ,
        to_command(
            "refuses a command with an answer that there is not",
            legacy,
            |bench| {
                control(bench, Behaviour::Answers(77));
                values(&[&"command ", &77])
            },
        ),
    ),
    with(
        CTRL_VQ,
        to_command("does not answer a command", legacy, |bench| {
            control(bench, Behaviour::Silent);
            values(&[&"command "])
        }),
    ),
    with(
        CTRL_VQ,
        to_command(
            "answers with a chain that it was not given",
            legacy,
            |bench| {
                control(bench, Behaviour::UsesChain(9));
                values(&[&"queue 2", &9])
            },
        ),
    ),
    with(
        CTRL_VQ,
        to_command("says that its answer has 100 bytes", legacy, |bench| {
            control(bench, Behaviour::Writes(100));
            values(&[&"queue 2", &100])
        }),
    ),
    at_open("has a queue without descriptors", all, |_| {
        faults::plan_every(Step::QueueSize(TX as u16));
        values(&[&"queue 1"])
    }),
    at_open("does not keep a queue's address", legacy, |_| {
        faults::plan_every(Step::QueuePfn(TX as u16));
        values(&[&"queue 1", &"0x0"])
    }),
    at_open("does not enable a queue", of_version_1, |_| {
        faults::plan_every(Step::QueueEnable(TX as u16));
        values(&[&"queue 1"])
    }),
    at_open(
        "does not take features that it offers",
        of_version_1,
        |_| {
            faults::plan_every(Step::FeaturesOk);
            values(&[&"features 0x"])
        },
    ),
    at_open("does not finish its reset", all, |_| {
        faults::plan_every(Step::Reset);
        values(&[&"status 0x"])
    }),
];

/// From now on the control queue behaves so.
fn control(bench: &Bench, behaviour: Behaviour) {
    if let Device::Legacy(machine) = &bench.device {
        machine.device().control.behaviour = behaviour;
    }
}
