//! The interrupt ladder over `MmioTransport`.

use virtio_net::queue::{EventMode, RingShape};
use virtio_net::transport::ConfigOps;
use virtio_net::vectors::{self, Rung, WantedQueue, WantedQueues};

use crate::support::controller::FakeController;
use crate::support::faults::{self, Step};
use crate::support::memory::{GuestHal, pages_in_use};
use crate::support::mmio::{Mmio, MmioMachine, needed};
use crate::support::transport::acknowledge;

const EVENT_IDX: u64 = 1 << 29;

#[test]
fn the_ladder_ends_at_the_line_and_leaves_nothing_behind() {
    for version in [1, 2] {
        let run = |fail: &[usize]| {
            // What a device kept that hung in its reset is never used again.
            let before = pages_in_use();
            let machine = MmioMachine::new(version);
            let mut controller = FakeController::new();
            let mut transport = machine.transport().unwrap();
            let negotiate = |transport: &mut Mmio| {
                transport.reset()?;
                acknowledge(transport);
                transport.finalize_features(EVENT_IDX | needed(version))?;
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
            let mut attempts = Vec::new();
            faults::plan(fail);
            let result = vectors::find_vqs::<GuestHal, _, _>(
                &mut transport,
                &mut controller,
                Rung::MsixPerQueue,
                negotiate,
                &mut attempts,
            );
            let strikes = faults::take_strikes();
            let hangs = strikes.iter().any(|strike| strike.step == Step::Reset);
            let device = machine.device();
            match result {
                // A device that hung in its reset keeps what it had.
                _ if hangs => {}
                Ok(vqs) => {
                    assert!(vqs.rung >= Rung::Intx);
                    assert!(!strikes.is_empty() || vqs.rung == Rung::Intx);
                    assert_eq!(controller.line.is_some(), vqs.rung == Rung::Intx);
                    assert!(
                        device
                            .queues
                            .iter()
                            .all(|queue| queue.ready || queue.pfn != 0)
                    );
                    assert_eq!(device.violations, [] as [String; 0]);
                }
                Err(_) => {
                    assert!(controller.is_idle());
                    assert_eq!(device.status, 0, "{strikes:?} {attempts:?}");
                    assert_eq!(pages_in_use(), before);
                    assert_eq!(device.violations, [] as [String; 0]);
                }
            }
            strikes.len()
        };
        let steps = faults::at_every_step(run);
        assert!(steps > 8, "{steps} steps only");
    }
}
