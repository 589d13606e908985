//! The interrupt ladder over `ModernPciTransport`.

use virtio_net::doorbell::Doorbell;
use virtio_net::queue::{EventMode, RingShape};
use virtio_net::transport::ConfigOps;
use virtio_net::vectors::{self, Attempt, FindVqsError, Rung, Vqs, WantedQueue, WantedQueues};

use crate::support::controller::FakeController;
use crate::support::faults::{self, Step};
use crate::support::memory::{GuestHal, pages_in_use};
use crate::support::modern::{Modern, ModernMachine, NO_VECTOR, VERSION_1, capabilities};
use crate::support::pci::command;
use crate::support::transport::acknowledge;

/// Climbs down the ladder. Whenever a rung begins, nothing may be left of the
/// one before.
fn find(
    machine: &ModernMachine,
    controller: &mut FakeController,
    transport: &mut Modern,
    attempts: &mut Vec<Attempt>,
) -> Result<Vqs<GuestHal, Doorbell>, FindVqsError> {
    let negotiate = |transport: &mut Modern| {
        assert!(!machine.device().pci.msix_enabled(), "MSI-X is on");
        transport.reset()?;
        acknowledge(transport);
        transport.finalize_features(VERSION_1 | 1 << 29)?;
        let wanted = |index| WantedQueue {
            index,
            shape: RingShape::split(1, EventMode::EventIdx),
            interrupt: true,
        };
        Ok(WantedQueues {
            data: (0..2).map(wanted).collect(),
            control: None,
        })
    };
    let top = Rung::MsixPerQueue;
    vectors::find_vqs(transport, controller, top, negotiate, attempts)
}

/// What must hold after the ladder, whatever failed on it.
fn check(machine: &ModernMachine, controller: &FakeController, taken: Option<Rung>) {
    let device = machine.device();
    assert_eq!(device.violations, [] as [String; 0]);
    let vectors = [
        device.config_vector,
        device.queues[0].vector,
        device.queues[1].vector,
    ];
    let wanted = match taken {
        Some(Rung::MsixPerQueue) => [0, 1, 2],
        Some(Rung::MsixShared) => [0, 1, 1],
        _ => [NO_VECTOR; 3],
    };
    assert_eq!(vectors, wanted);
    assert_eq!(device.pci.msix_enabled(), wanted[0] == 0);
    assert_eq!(controller.line.is_some(), taken == Some(Rung::Intx));
    assert!(
        device
            .queues
            .iter()
            .all(|queue| queue.enabled == taken.is_some())
    );
    if taken.is_none() {
        assert!(controller.is_idle());
    }
}

/// Every step of the ladder fails once, alone and together with each later
/// one.
#[test]
fn a_rung_that_fails_leaves_nothing_behind() {
    let run = |fail: &[usize]| {
        // What a device kept that hung in its reset is never used again.
        let before = pages_in_use();
        let machine = ModernMachine::new();
        let mut controller = FakeController::new();
        let mut transport = machine.transport().unwrap();
        let mut attempts = Vec::new();
        faults::plan(fail);
        let result = find(&machine, &mut controller, &mut transport, &mut attempts);
        let strikes = faults::take_strikes();
        let hangs = strikes.iter().any(|strike| strike.step == Step::Reset);
        match result {
            // A device that hung in its reset keeps what it had.
            _ if hangs => {}
            Ok(vqs) => {
                assert_eq!(attempts.len(), strikes.len() + 1);
                check(&machine, &controller, Some(vqs.rung));
            }
            Err(_) => {
                assert_eq!(attempts.len(), Rung::LADDER.len());
                check(&machine, &controller, None);
                assert_eq!(pages_in_use(), before);
            }
        }
        strikes.len()
    };
    let steps = faults::at_every_step(run);
    assert!(steps > 15, "{steps} steps only");
}

#[test]
fn without_vectors_the_line_is_taken() {
    let machine = ModernMachine::new();
    let mut list = capabilities();
    list.remove(0); // MSI-X
    machine.device().pci.capabilities(&list);
    let mut controller = FakeController::new();
    let mut transport = machine.transport().unwrap();
    let mut attempts = Vec::new();
    let vqs = find(&machine, &mut controller, &mut transport, &mut attempts).unwrap();
    assert_eq!(vqs.rung, Rung::Intx);
    assert_eq!(attempts.len(), 3);
    check(&machine, &controller, Some(Rung::Intx));
    assert!(!machine.device().pci.command(command::INTERRUPT_DISABLE));
}
