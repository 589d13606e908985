//! The interrupt ladder: each rung, and what is left when a rung fails at any
//! of its steps.

use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_net::queue::QueueRing;
use virtio_net::queue::split::Layout;
use virtio_net::queue::{EventMode, QueueError, RingLayout, RingShape};
use virtio_net::transport::{ConfigOps, TransportError};
use virtio_net::vectors::{
    self, Attempt, FindVqsError, InterruptUnavailable, Rung, VectorUse, Vqs, WantedQueue,
    WantedQueues,
};

use crate::support::device::{NO_VECTOR, status};
use crate::support::faults::{self, Step, Strike};
use crate::support::memory::{GuestHal, pages_in_use};
use crate::support::net::{Machine, feature};
use crate::support::pci::command;
use crate::support::transport::{Bell, Wired};

const QUEUES: u16 = 2;
const SIZE: u16 = 64;

/// Pages of one ring.
fn ring_pages() -> usize {
    Layout::new(SIZE).total.div_ceil(4096)
}

/// Climbs down the ladder from `top`. Whenever a rung begins, nothing may be
/// left of the one before.
fn find(
    machine: &mut Machine,
    transport: &mut Wired,
    top: Rung,
    attempts: &mut Vec<Attempt>,
) -> Result<Vqs<GuestHal, Bell>, FindVqsError> {
    let device = &machine.device;
    vectors::find_vqs::<GuestHal, _, _>(
        transport,
        &mut machine.controller,
        top,
        |transport| {
            {
                let device = device.borrow();
                assert!(!device.pci.msix_enabled(), "MSI-X is on");
                // A reset that failed is the only excuse.
                let reset = device.status == 0;
                assert!(!reset || device.queues.iter().all(|queue| queue.pfn == 0));
            }
            transport.reset()?;
            transport.set_status(DeviceStatus::ACKNOWLEDGE);
            transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
            transport.finalize_features(feature::EVENT_IDX.into())?;
            let shape = RingShape::split(1, EventMode::EventIdx);
            let wanted = |index| WantedQueue {
                index,
                shape,
                interrupt: true,
            };
            Ok(WantedQueues {
                data: (0..QUEUES).map(wanted).collect(),
                control: None,
            })
        },
        attempts,
    )
}

/// What a rung that works looks like from the device and the controller.
fn assert_taken(machine: &Machine, rung: Rung) {
    let device = machine.device();
    let controller = &machine.controller;
    assert_eq!(device.status, status::ACKNOWLEDGE | status::DRIVER);
    assert!(device.queues.iter().all(|queue| queue.ring.is_some()));
    let vectors = [
        device.config_vector,
        device.queues[0].vector,
        device.queues[1].vector,
    ];
    let (uses, wanted) = match rung {
        Rung::MsixPerQueue => (
            vec![VectorUse::Config, VectorUse::Queue(0), VectorUse::Queue(1)],
            [0, 1, 2],
        ),
        Rung::MsixShared => (vec![VectorUse::Config, VectorUse::AllQueues], [0, 1, 1]),
        Rung::Intx | Rung::Polling => (vec![], [NO_VECTOR; 3]),
    };
    assert_eq!(controller.purposes(), uses);
    assert_eq!(vectors, wanted);
    assert_eq!(device.pci.msix_enabled(), !uses.is_empty());
    assert_eq!(controller.line.is_some(), rung == Rung::Intx);
    match rung {
        Rung::Intx => assert!(!device.pci.command(command::INTERRUPT_DISABLE)),
        Rung::Polling => assert!(device.pci.command(command::INTERRUPT_DISABLE)),
        Rung::MsixPerQueue | Rung::MsixShared => {}
    }
    assert_eq!(device.violations, [] as [String; 0]);
}

/// Nothing is left of queues that were taken back.
fn assert_gone(machine: &Machine) {
    assert!(machine.controller.is_idle(), "a handler is still connected");
    let device = machine.device();
    assert_eq!(device.status, 0);
    assert!(!device.pci.msix_enabled());
    assert!(device.queues.iter().all(|queue| queue.pfn == 0));
    assert_eq!(device.violations, [] as [String; 0]);
}

fn ok(rung: Rung) -> Attempt {
    Attempt {
        rung,
        result: Ok(()),
    }
}

fn failed(rung: Rung, error: impl Into<FindVqsError>) -> Attempt {
    Attempt {
        rung,
        result: Err(error.into()),
    }
}

fn too_few(needed: u16, available: u16) -> TransportError {
    TransportError::TooFewVectors { needed, available }
}

/// Takes the rung that this machine allows and compares the whole story.
fn expect_attempts(mut machine: Machine, top: Rung, expected: &[Attempt]) {
    let mut transport = machine.transport();
    let mut attempts = vec![ok(Rung::Polling)]; // of an earlier call: cleared
    let vqs = find(&mut machine, &mut transport, top, &mut attempts).unwrap();
    assert_eq!(attempts, expected);
    let rung = expected.last().unwrap().rung;
    assert_eq!(vqs.rung, rung);
    assert_taken(&machine, rung);
    assert_eq!(pages_in_use(), 2 * ring_pages());
    for (index, queue) in (0..).zip(&vqs.data) {
        assert_eq!((queue.ring().queue(), queue.ring().size()), (index, SIZE));
    }
    assert!(vectors::del_vqs(
        &mut transport,
        &mut machine.controller,
        vqs
    ));
    assert_gone(&machine);
    assert_eq!(pages_in_use(), 0);
}

#[test]
fn a_vector_a_queue_is_the_first_choice() {
    expect_attempts(
        Machine::with_vectors(feature::ALL, SIZE, 3),
        Rung::MsixPerQueue,
        &[ok(Rung::MsixPerQueue)],
    );
}

#[test]
fn two_vectors_are_shared() {
    expect_attempts(
        Machine::with_vectors(feature::ALL, SIZE, 2),
        Rung::MsixPerQueue,
        &[
            failed(Rung::MsixPerQueue, too_few(3, 2)),
            ok(Rung::MsixShared),
        ],
    );
}

#[test]
fn without_msix_the_line_is_taken() {
    for vectors in [0, 1] {
        expect_attempts(
            Machine::with_vectors(feature::ALL, SIZE, vectors),
            Rung::MsixPerQueue,
            &[
                failed(Rung::MsixPerQueue, too_few(3, vectors)),
                failed(Rung::MsixShared, too_few(2, vectors)),
                ok(Rung::Intx),
            ],
        );
    }
}

#[test]
fn without_anything_it_polls() {
    let mut machine = Machine::with_vectors(feature::ALL, SIZE, 0);
    machine.controller.line_error = Some(InterruptUnavailable::NoRoute);
    expect_attempts(
        machine,
        Rung::MsixPerQueue,
        &[
            failed(Rung::MsixPerQueue, too_few(3, 0)),
            failed(Rung::MsixShared, too_few(2, 0)),
            failed(Rung::Intx, InterruptUnavailable::NoRoute),
            ok(Rung::Polling),
        ],
    );
}

#[test]
fn the_controller_may_have_too_few_vectors() {
    for (limit, expected) in [(2, Rung::MsixShared), (1, Rung::Intx), (0, Rung::Intx)] {
        let mut machine = Machine::new(feature::ALL, SIZE);
        machine.controller.limit = limit;
        let mut attempts: Vec<_> = Rung::LADDER
            .into_iter()
            .take_while(|rung| *rung != expected)
            .map(|rung| failed(rung, InterruptUnavailable::NoVector))
            .collect();
        attempts.push(ok(expected));
        expect_attempts(machine, Rung::MsixPerQueue, &attempts);
    }
}

#[test]
fn it_begins_where_it_is_told() {
    for top in Rung::LADDER {
        expect_attempts(Machine::new(feature::ALL, SIZE), top, &[ok(top)]);
    }
}

#[test]
fn a_device_without_the_queues_is_unusable() {
    let mut machine = Machine::new(feature::ALL, SIZE);
    machine.device().queues.truncate(1);
    let mut transport = machine.transport();
    let mut attempts = Vec::new();
    let error = FindVqsError::Transport(TransportError::NoSuchQueue { queue: 1 });
    let result = find(
        &mut machine,
        &mut transport,
        Rung::MsixPerQueue,
        &mut attempts,
    );
    assert_eq!(result.err(), Some(error));
    assert_eq!(attempts, Rung::LADDER.map(|rung| failed(rung, error)));
    assert_gone(&machine);
    assert_eq!(pages_in_use(), 0);
}

/// A legacy device dictates the size, even a wrong one.
#[test]
fn a_size_that_no_queue_has_is_refused() {
    let mut machine = Machine::new(feature::ALL, SIZE);
    machine.device().queues[1].size = 100;
    let mut transport = machine.transport();
    let result = find(&mut machine, &mut transport, Rung::Intx, &mut Vec::new());
    assert_eq!(
        result.err(),
        Some(FindVqsError::Queue(QueueError::BadSize {
            queue: 1,
            size: 100,
            layout: RingLayout::Split
        }))
    );
    assert_gone(&machine);
    assert_eq!(pages_in_use(), 0);
}

/// The error that a failed step must lead to, given the queue that was being
/// set up.
fn assert_caused(error: FindVqsError, step: Step) {
    use FindVqsError::{Interrupt, Queue, Transport};
    let caused = match (step, error) {
        (Step::Memory, Queue(QueueError::NoMemory { pages, .. })) => pages == ring_pages(),
        (Step::AttachMsi, Interrupt(InterruptUnavailable::NoVector)) => true,
        (Step::AttachIntx, Interrupt(InterruptUnavailable::NoRoute)) => true,
        (Step::Reset, Transport(TransportError::ResetTimeout { .. })) => true,
        (
            Step::ConfigVector,
            Transport(TransportError::VectorNotTaken {
                queue: None,
                wrote: 0,
                read: NO_VECTOR,
            }),
        ) => true,
        (
            Step::QueueVector(of),
            Transport(TransportError::VectorNotTaken {
                queue: Some(queue),
                read: NO_VECTOR,
                ..
            }),
        ) => of == queue,
        (Step::QueueSize(of), Transport(TransportError::NoSuchQueue { queue })) => of == queue,
        (Step::QueuePfn(of), Transport(TransportError::QueueNotTaken { queue, read: 0, .. })) => {
            of == queue
        }
        _ => false,
    };
    assert!(caused, "{step:?} gave {error:?}");
}

/// Runs the ladder with these steps failing. Returns the steps that did.
fn run_with_faults(fail: &[usize]) -> Vec<Strike> {
    let mut machine = Machine::new(feature::ALL, SIZE);
    let mut transport = machine.transport();
    let mut attempts = Vec::new();
    let before = pages_in_use();
    faults::plan(fail);
    let result = find(
        &mut machine,
        &mut transport,
        Rung::MsixPerQueue,
        &mut attempts,
    );
    let strikes = faults::take_strikes();

    // A reset that fails while a failed rung is taken back costs the memory
    // of its rings, which the device may still write: it is the only step
    // that can fail without a rung failing by it, and comes directly after a
    // step that did.
    let mut causes: Vec<Strike> = Vec::new();
    let mut leaked = 0;
    for strike in &strikes {
        if strike.step == Step::Reset && strike.pages > before + leaked {
            leaked = strike.pages - before;
        } else {
            causes.push(*strike);
        }
    }
    let failures: Vec<_> = attempts
        .iter()
        .filter_map(|attempt| Some((attempt.rung, attempt.result.err()?)))
        .collect();
    // Resets while taking back a rung that holds no memory leave no trace
    // either.
    assert!(failures.len() <= causes.len());
    let mut causes = causes.iter();
    for (rung, error) in &failures {
        let mut cause = causes.next().unwrap();
        while cause.step == Step::Reset
            && !matches!(
                error,
                FindVqsError::Transport(TransportError::ResetTimeout { .. })
            )
        {
            cause = causes.next().unwrap();
        }
        assert_caused(*error, cause.step);
        assert!(*rung <= Rung::Polling);
    }
    for cause in causes {
        assert_eq!(cause.step, Step::Reset);
    }
    let rungs: Vec<_> = attempts.iter().map(|attempt| attempt.rung).collect();
    assert_eq!(rungs, Rung::LADDER[..rungs.len()]);

    match result {
        Ok(vqs) => {
            assert_eq!(attempts.last(), Some(&ok(vqs.rung)));
            assert_eq!(failures.len(), attempts.len() - 1);
            assert_taken(&machine, vqs.rung);
            assert_eq!(pages_in_use(), before + leaked + 2 * ring_pages());
            assert!(vectors::del_vqs(
                &mut transport,
                &mut machine.controller,
                vqs
            ));
        }
        Err(error) => {
            assert_eq!(failures.len(), Rung::LADDER.len());
            assert_eq!(failures.last().unwrap().1, error);
        }
    }
    assert_eq!(pages_in_use(), before + leaked);
    assert!(machine.controller.is_idle());
    assert!(!machine.device().pci.msix_enabled());
    drop(transport);
    assert_gone(&machine);
    strikes
}

/// Steps of the whole ladder are counted until no more is reached.
#[test]
fn every_single_failure_leaves_nothing_behind() {
    let mut steps = Vec::new();
    for number in 0.. {
        match run_with_faults(&[number])[..] {
            [] => break,
            [strike] => steps.push(strike.step),
            _ => unreachable!(),
        }
    }
    assert_eq!(pages_in_use(), 0);
    use Step::*;
    // The first rung, and each of its steps.
    assert_eq!(
        steps,
        [
            Reset,
            AttachMsi,
            AttachMsi,
            AttachMsi,
            ConfigVector,
            QueueSize(0),
            Memory,
            QueueSize(0),
            QueuePfn(0),
            QueueVector(0),
            QueueSize(1),
            Memory,
            QueueSize(1),
            QueuePfn(1),
            QueueVector(1),
        ]
    );
}

/// The same on every rung: one failure on each rung above, then each step.
#[test]
fn failures_on_every_rung_leave_nothing_behind() {
    // Steps before the rung's own: a failed first reset is the shortest way
    // down, two steps with the reset of taking it back.
    let mut steps_of_rung = [0; 4];
    for (rung, steps) in steps_of_rung.iter_mut().enumerate() {
        let above: Vec<_> = (0..rung).map(|rung| 2 * rung).collect();
        for number in 2 * rung.. {
            let mut fail = above.clone();
            fail.push(number);
            if run_with_faults(&fail).len() <= rung {
                break;
            }
            *steps += 1;
        }
    }
    assert_eq!(steps_of_rung, [15, 14, 10, 9]);
}

/// Every pair of steps: also failures while a failed rung is taken back.
#[test]
fn every_pair_of_failures_leaves_nothing_behind() {
    let mut pairs = 0;
    for first in 0.. {
        if run_with_faults(&[first]).is_empty() {
            break;
        }
        for second in first + 1.. {
            if run_with_faults(&[first, second]).len() < 2 {
                break;
            }
            pairs += 1;
        }
    }
    assert!(pairs > 150, "{pairs}");
}

/// What fails on every rung ends the ladder with the last rung's error.
#[test]
fn without_memory_there_are_no_queues() {
    let mut machine = Machine::new(feature::ALL, SIZE);
    let mut transport = machine.transport();
    let mut attempts = Vec::new();
    faults::plan_every(Step::Memory);
    let result = find(
        &mut machine,
        &mut transport,
        Rung::MsixPerQueue,
        &mut attempts,
    );
    assert_eq!(faults::take_strikes().len(), 4);
    let error = FindVqsError::Queue(QueueError::NoMemory {
        queue: 0,
        pages: ring_pages(),
    });
    assert_eq!(result.err(), Some(error));
    assert_eq!(attempts, Rung::LADDER.map(|rung| failed(rung, error)));
    assert_gone(&machine);
}

/// A device that never finishes a reset ends the ladder, in bounded time.
#[test]
fn a_device_that_does_not_reset_is_unusable() {
    let mut machine = Machine::new(feature::ALL, SIZE);
    machine.device().reset_reads = u32::MAX;
    let mut transport = machine.transport();
    let mut attempts = Vec::new();
    let result = find(
        &mut machine,
        &mut transport,
        Rung::MsixPerQueue,
        &mut attempts,
    );
    assert!(matches!(
        result.err(),
        Some(FindVqsError::Transport(TransportError::ResetTimeout { .. }))
    ));
    assert_eq!(attempts.len(), 4);
    assert!(machine.device().accesses < 50_000);
    assert!(machine.controller.is_idle());
    assert_eq!(pages_in_use(), 0);
}

/// Rings that the device may still write are not given back.
#[test]
fn a_reset_that_fails_keeps_the_rings() {
    let mut machine = Machine::new(feature::ALL, SIZE);
    let mut transport = machine.transport();
    let vqs = find(&mut machine, &mut transport, Rung::Intx, &mut Vec::new()).unwrap();
    machine.device().reset_reads = u32::MAX;
    assert!(!vectors::del_vqs(
        &mut transport,
        &mut machine.controller,
        vqs
    ));
    assert_eq!(pages_in_use(), 2 * ring_pages());
    // But nothing calls the driver any more.
    assert!(machine.controller.is_idle());
}
