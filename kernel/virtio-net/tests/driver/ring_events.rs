//! Who is woken when: kicks and interrupts, by flags and by event index, over
//! more than two turns of the 16-bit indices.

use std::collections::VecDeque;
use std::fmt;
use std::ptr::NonNull;

use proptest::prelude::*;
use virtio_net::doorbell::{Doorbell, Notify};
use virtio_net::queue::{
    CommandRing, EventMode, PositionalRing, QueueRing, QueueStats, RingLayout, RingShape, Virtqueue,
};

use crate::support::memory::GuestHal;
use crate::support::ring::{Carrier, Ends, LENGTH, readable, shapes};

type Frames = PositionalRing<GuestHal>;
type Commands = CommandRing<GuestHal>;

const NO_INTERRUPT: u16 = 1;

/// What a step does; numbers are upper bounds.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver adds so many chains.
    Add(u16),
    /// The driver publishes, and kicks if it must.
    Publish,
    /// The driver takes so many used chains.
    Pop(u16),
    /// The driver polls: no interrupts.
    Mask,
    /// The driver asks for an interrupt after so many more, to sleep.
    Arm(u16),
    /// The device takes so many chains from the ring.
    Take(u16),
    /// The device uses so many of them, and interrupts if it must.
    Use(u16, bool),
    /// The device asks for no kicks.
    Busy,
    /// The device asks for a kick and goes to sleep, if it has seen all.
    Sleep,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..20u16).prop_map(Step::Add),
        3 => Just(Step::Publish),
        3 => (1..20u16).prop_map(Step::Pop),
        1 => Just(Step::Mask),
        2 => (0..6u16).prop_map(Step::Arm),
        3 => (1..20u16).prop_map(Step::Take),
        4 => (1..20u16, any::<bool>()).prop_map(|(n, signal)| Step::Use(n, signal)),
        1 => Just(Step::Busy),
        2 => Just(Step::Sleep),
    ]
}

/// A ring and a model of who waits for what. All positions are counted from
/// the start in 64 bits, so that nothing here wraps.
struct Model<R> {
    ends: Ends<R>,
    shape: RingShape,
    /// An event names every position that is a multiple of this away.
    period: u64,
    added: u64,
    published: u64,
    taken: u64,
    used: u64,
    popped: u64,
    in_flight: VecDeque<u16>,
    /// Where the device asked to be kicked, by event.
    kick_at: u64,
    device_busy: bool,
    device_asleep: bool,
    /// Whether the device has set an event yet.
    slept: bool,
    /// Entry whose use is to interrupt, `None` while masked.
    interrupt_at: Option<u64>,
    masked_since: u64,
    driver_asleep: bool,
    signalled: u64,
    kicks: u64,
    kicks_suppressed: u64,
    interrupts: u64,
    interrupts_suppressed: u64,
}

impl<R: Carrier> Model<R> {
    fn new(size: u16, shape: RingShape) -> Self {
        let ends = Ends::shaped(size, shape);
        // 16 bits of an index, or a position and a wrap counter.
        let period = match shape.layout {
            RingLayout::Split => 1 << 16,
            RingLayout::Packed => 2 * u64::from(size),
        };
        Self {
            ends,
            shape,
            period,
            added: 0,
            published: 0,
            taken: 0,
            used: 0,
            popped: 0,
            in_flight: VecDeque::new(),
            kick_at: 0,
            device_busy: false,
            device_asleep: true,
            slept: false,
            interrupt_at: None,
            masked_since: 0,
            driver_asleep: false,
            signalled: 0,
            kicks: 0,
            kicks_suppressed: 0,
            interrupts: 0,
            interrupts_suppressed: 0,
        }
    }

    fn add(&mut self, count: u16) {
        for _ in 0..count {
            if self.ends.driver.add_one().is_err() {
                return;
            }
            self.added += 1;
        }
    }

    fn publish(&mut self) {
        if self.added == self.published {
            return;
        }
        let kick = self.ends.driver.publish();
        let window = self.published..self.added;
        let expected = match self.shape {
            // A packed ring has a flag for it with events too.
            RingShape {
                layout: RingLayout::Packed,
                ..
            } if self.device_busy => false,
            RingShape {
                mode: EventMode::EventIdx,
                ..
            } => match (self.shape.layout, self.slept) {
                // Zeroed, the structure of a packed ring asks for all.
                (RingLayout::Packed, false) => true,
                (RingLayout::Packed, true) => {
                    self.is_named(window, self.kick_at) || self.has_passed()
                }
                (RingLayout::Split, _) => self.is_named(window, self.kick_at),
            },
            _ => !self.device_busy,
        };
        assert_eq!(
            kick, expected,
            "entries {}..{}, the device asked for a kick at {}",
            self.published, self.added, self.kick_at
        );
        self.published = self.added;
        if self.device_asleep {
            assert!(kick, "the device sleeps and nobody wakes it");
        }
        if kick {
            self.kicks += 1;
            self.device_asleep = false;
        } else {
            self.kicks_suppressed += 1;
        }
    }

    /// Whether the device asks for a kick neither at what it has still to use
    /// nor at what can be added before the driver takes something back: then
    /// it asks at what it has used already.
    fn has_passed(&self) -> bool {
        let last = self.popped + self.period / 2;
        !self.is_named(self.used..last, self.kick_at)
    }

    /// Whether an event that was set to `position` names one in the window.
    fn is_named(&self, mut window: std::ops::Range<u64>, position: u64) -> bool {
        let period = self.period;
        window.any(|entry| entry % period == position % period)
    }

    fn pop(&mut self, count: u16) {
        for _ in 0..count {
            let popped = self.ends.driver.pop_one().unwrap();
            assert_eq!(popped.is_some(), self.popped < self.used);
            match popped {
                // Used in order, hence back in order.
                Some(length) => assert_eq!(u64::from(length), self.popped % u64::from(LENGTH)),
                None => return,
            }
            self.popped += 1;
        }
    }

    fn mask(&mut self) {
        self.ends.driver.disable_interrupts();
        self.driver_asleep = false;
        self.interrupt_at = None;
        self.masked_since = self.used;
    }

    fn arm(&mut self, more: u16) {
        let more = match self.shape.mode {
            EventMode::EventIdx => more,
            EventMode::Flags => 0,
        };
        // What nothing waits for cannot be waited for.
        let more = more.min(self.ends.driver.outstanding().saturating_sub(1));
        let ready = self.ends.driver.enable_interrupts_after(more);
        assert_eq!(ready, self.used - self.popped > u64::from(more));
        self.interrupt_at = Some(self.popped + u64::from(more));
        self.driver_asleep = !ready;
    }

    fn take(&mut self, count: u16) {
        for _ in 0..count {
            let chain = self.ends.take();
            assert_eq!(chain.is_some(), self.taken < self.published);
            let Some((head, _)) = chain else { return };
            self.in_flight.push_back(head);
            self.taken += 1;
        }
    }

    fn give_back(&mut self, count: u16, signal: bool) {
        for _ in 0..count {
            let Some(head) = self.in_flight.pop_front() else {
                break;
            };
            let length = self.used % u64::from(LENGTH);
            self.ends.give_back(head, length as u32);
            self.used += 1;
        }
        if signal {
            self.signal();
        }
    }

    fn signal(&mut self) {
        if self.signalled == self.used {
            return;
        }
        let window = self.signalled..self.used;
        let interrupt = self.ends.device.must_interrupt();
        self.signalled = self.used;
        match (self.shape.mode, self.interrupt_at) {
            (EventMode::Flags, armed) => assert_eq!(interrupt, armed.is_some()),
            (EventMode::EventIdx, Some(entry)) => assert_eq!(
                interrupt,
                self.is_named(window.clone(), entry),
                "used {window:?}, the driver asked for an interrupt at {entry}"
            ),
            (EventMode::EventIdx, None) if self.shape.layout == RingLayout::Packed => {
                assert!(!interrupt, "an interrupt while masked");
            }
            // What was used before the mask may still interrupt.
            (EventMode::EventIdx, None) => assert!(
                !interrupt || window.start < self.masked_since,
                "an interrupt for {window:?}, masked since {}",
                self.masked_since
            ),
        }
        if interrupt {
            self.interrupts += 1;
            self.driver_asleep = false;
        } else {
            self.interrupts_suppressed += 1;
        }
        if self.driver_asleep {
            let waits_for = self.interrupt_at.unwrap();
            assert!(
                self.used <= waits_for,
                "the driver sleeps and nobody wakes it"
            );
        }
    }

    fn busy(&mut self) {
        self.ends.device.disable_notification();
        self.device_busy = true;
        self.device_asleep = false;
    }

    fn sleep(&mut self) {
        // A device signals what it used before it sleeps.
        self.signal();
        let more = self.ends.device.enable_notification();
        assert_eq!(more, self.taken < self.published);
        self.kick_at = self.taken;
        self.device_busy = false;
        self.device_asleep = !more;
        self.slept = true;
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Add(count) => self.add(count),
            Step::Publish => self.publish(),
            Step::Pop(count) => self.pop(count),
            Step::Mask => self.mask(),
            Step::Arm(more) => self.arm(more),
            Step::Take(count) => self.take(count),
            Step::Use(count, signal) => self.give_back(count, signal),
            Step::Busy => self.busy(),
            Step::Sleep => self.sleep(),
        }
    }
}

/// Chains that go through a ring: past the wrap of its indices, twice.
const CHAINS: u64 = 140_000;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 6,
        max_shrink_iters: 300,
        ..ProptestConfig::default()
    })]

    /// The steps are repeated until enough chains are through.
    #[test]
    fn nobody_sleeps_through_what_it_waits_for(
        shift in 0..=7u32,
        shape in prop::sample::select(shapes().to_vec()),
        steps in prop::collection::vec(step(), 20..400),
    ) {
        repeat(Model::<Frames>::new(1 << shift, shape), &steps);
    }

    /// The same with a chain at a time, in a packed ring of any size.
    #[test]
    fn nobody_sleeps_through_a_command(
        size in 1..=128u16,
        shape in prop::sample::select(shapes().to_vec()),
        steps in prop::collection::vec(step(), 20..400),
    ) {
        let size = match shape.layout {
            RingLayout::Split => size.next_power_of_two(),
            RingLayout::Packed => size,
        };
        repeat(Model::<Commands>::new(size, shape), &steps);
    }
}

fn repeat<R: Carrier>(mut model: Model<R>, steps: &[Step]) {
    while model.popped < CHAINS {
        for &step in steps {
            model.run(step);
        }
        // Whatever the steps are, something gets through. As every poll
        // does, this masks interrupts.
        for step in [
            Step::Mask,
            Step::Add(4),
            Step::Publish,
            Step::Take(4),
            Step::Use(4, true),
            Step::Pop(4),
        ] {
            model.run(step);
        }
    }
}

/// A device that sleeps whenever it has seen all: every single kick must come.
#[test]
fn no_kick_is_lost_at_the_wrap() {
    fn run<R: Carrier>(mut model: Model<R>, batch: u16) {
        let mut batches = 0;
        while model.popped < CHAINS {
            model.mask();
            model.add(batch);
            model.publish();
            model.take(batch);
            model.give_back(batch, true);
            model.pop(batch);
            model.sleep();
            batches += 1;
        }
        assert_eq!(model.kicks, batches);
    }
    for shape in shapes() {
        run(Model::<Frames>::new(4, shape), 3);
        run(Model::<Frames>::new(4, shape), 4);
        run(Model::<Commands>::new(4, shape), 1);
    }
}

/// A device that is awake is never kicked, by flags: it said so. By event of a
/// split ring, which it does not move, once in 65536 chains.
#[test]
fn kicks_are_suppressed_while_the_device_is_awake() {
    for shape in shapes() {
        let kicks = if shape == RingShape::split(1, EventMode::EventIdx) {
            3
        } else {
            0
        };
        let mut model = Model::<Frames>::new(4, shape);
        model.busy();
        while model.popped < CHAINS {
            model.mask();
            model.add(4);
            model.publish();
            model.take(4);
            model.give_back(4, true);
            model.pop(4);
        }
        assert_eq!(model.kicks, kicks);
        assert_eq!(model.kicks + model.kicks_suppressed, CHAINS / 4);
    }
}

/// While every poll masks, no interrupt comes, however long.
#[test]
fn masked_interrupts_do_not_fire() {
    for (shape, size) in shapes()
        .into_iter()
        .flat_map(|shape| [(shape, 64), (shape, 32768)])
    {
        let mut model = Model::<Frames>::new(size, shape);
        while model.popped < CHAINS {
            model.mask();
            model.add(size);
            model.publish();
            model.take(size);
            model.give_back(size, true);
            model.pop(size);
        }
        assert_eq!(model.interrupts, 0, "{shape:?}, ring of {size}");
        assert_ne!(model.interrupts_suppressed, 0);
    }
}

/// A driver that sleeps after every chain is woken by every chain.
#[test]
fn no_interrupt_is_lost_at_the_wrap() {
    fn run<R: Carrier>(mut model: Model<R>) {
        while model.popped < CHAINS {
            model.mask();
            model.pop(2);
            model.add(1);
            model.publish();
            model.arm(0);
            assert!(model.driver_asleep);
            model.take(1);
            model.give_back(1, true);
            assert!(!model.driver_asleep);
            model.pop(1);
        }
        assert_eq!(model.interrupts, model.popped);
    }
    for shape in shapes() {
        run(Model::<Frames>::new(2, shape));
        run(Model::<Commands>::new(2, shape));
    }
}

/// Forms of rings with `VIRTIO_F_EVENT_IDX`.
fn by_event() -> impl Iterator<Item = RingShape> {
    let shapes = shapes().into_iter();
    shapes.filter(|shape| shape.mode == EventMode::EventIdx)
}

/// A notify hook of a kernel's own: a call, with whatever it takes along.
#[derive(Clone)]
struct Call<F>(F);

impl<F: Fn(u16) + Clone> Notify for Call<F> {
    fn queue(&self) -> u16 {
        7
    }
    fn ring(&self) {
        (self.0)(self.queue());
    }
}

impl<F> fmt::Display for Call<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("call")
    }
}

/// A queue with this ring, whose device is told by a call.
fn with_call<R: QueueRing, F: Fn(u16) + Clone>(ring: R, call: F) -> Virtqueue<R, Call<F>> {
    Virtqueue::new(ring, Call(call))
}

/// Interrupts may be asked for late, but not past what is outstanding.
#[test]
fn a_delayed_interrupt_comes_before_the_device_runs_dry() {
    for (shape, outstanding) in by_event().flat_map(|shape| (1..=64u16).map(move |n| (shape, n))) {
        let Ends {
            mut driver,
            mut device,
            ..
        } = Ends::<Frames>::shaped(64, shape);
        (0..outstanding).for_each(|_| driver.add_one().unwrap());
        let mut queue = with_call(driver, |_| ());
        queue.kick();
        assert!(!queue.enable_interrupts_delayed());
        let mut interrupted_at = None;
        for count in 1..=outstanding {
            let (head, _) = device.take().expect("published");
            device.give_back(head, 0);
            if device.must_interrupt() {
                assert_eq!(interrupted_at.replace(count), None, "interrupted twice");
            }
        }
        // Linux `virtqueue_enable_cb_delayed`: past three quarters.
        assert_eq!(interrupted_at, Some(outstanding * 3 / 4 + 1));
    }
}

/// What the device was not shown yet does not count: it will not use it, and an
/// interrupt that waits for it never comes.
#[test]
fn a_delayed_interrupt_does_not_wait_for_what_was_not_published() {
    for (shape, delayed) in by_event().flat_map(|shape| [(shape, false), (shape, true)]) {
        let Ends {
            mut driver,
            mut device,
            ..
        } = Ends::<Frames>::shaped(64, shape);
        for count in 0..40 {
            if count == 4 {
                driver.publish();
            }
            driver.add_one().unwrap();
        }
        let mut queue = with_call(driver, |_| ());
        let has_used = if delayed {
            queue.enable_interrupts_delayed()
        } else {
            queue.enable_interrupts_after(16)
        };
        assert!(!has_used);
        let mut interrupts = 0;
        for _ in 0..4 {
            let (head, _) = device.take().expect("published");
            device.give_back(head, 0);
            interrupts += u32::from(device.must_interrupt());
        }
        assert!(device.take().is_none());
        assert_eq!(interrupts, 1, "{shape:?}");
    }
}

#[test]
fn a_new_ring_asks_for_no_interrupts() {
    fn run<R: Carrier>(mut model: Model<R>) {
        model.add(4);
        model.publish();
        model.take(4);
        model.give_back(4, true);
        assert_eq!((model.interrupts, model.interrupts_suppressed), (0, 1));
    }
    let ends = Ends::<Commands>::shaped(4, RingShape::split(1, EventMode::Flags));
    assert_eq!(ends.avail_flags(), NO_INTERRUPT);
    for shape in shapes() {
        run(Model::<Frames>::new(4, shape));
        run(Model::<Commands>::new(4, shape));
    }
}

/// With flags, the flag says what was asked for last.
#[test]
fn the_flag_follows() {
    let mut ends = Ends::<Commands>::shaped(4, RingShape::split(1, EventMode::Flags));
    for _ in 0..3 {
        assert!(!ends.driver.enable_interrupts_after(0));
        assert_eq!(ends.avail_flags(), 0);
        ends.driver.disable_interrupts();
        assert_eq!(ends.avail_flags(), NO_INTERRUPT);
    }
}

/// Nothing was added: nothing is counted, and nobody is kicked, even by a
/// device that asks for every kick.
#[test]
fn an_empty_kick_is_none() {
    for shape in shapes() {
        let ring = Ends::<Commands>::shaped(4, shape).driver;
        let mut queue = with_call(ring, |queue| panic!("the doorbell of queue {queue} rang"));
        assert!(!queue.kick());
        assert_eq!(queue.stats(), QueueStats::default());
    }
}

/// With `VIRTIO_F_NOTIFICATION_DATA` a kick says how far the driver has come:
/// 32 bits in one write (specification 4.1.5.2 and 4.2.3.3). QEMU 7.2 does not
/// offer the feature.
#[test]
fn a_notification_carries_the_next_position() {
    for shape in shapes() {
        let mut register = Box::new(0xffff_ffffu32);
        let at = NonNull::from(&mut *register);
        // The upper half of a 16-bit register counts too then.
        // SAFETY: the register is a variable of this test, of 32 bits.
        let (wide, narrow) = unsafe { (Doorbell::mmio32(at, 7), Doorbell::mmio16(at.cast(), 7)) };
        for doorbell in [wide, narrow] {
            assert!(doorbell.takes_data());
            let shape = RingShape {
                notification_data: true,
                chain: 8,
                ..shape
            };
            let Ends {
                driver, mut device, ..
            } = Ends::<Commands>::shaped(8, shape);
            let mut queue = Virtqueue::new(driver, doorbell);
            let (mut chains, mut added) = (0u32, 0u32);
            for round in 0..60 {
                device.enable_notification();
                let chain = vec![readable(0x1000, 64); 1 + round % 8];
                // SAFETY: nothing accesses the buffers, which are only numbers.
                unsafe { queue.ring_mut().add(&chain) }.unwrap();
                chains += 1;
                added += chain.len() as u32;
                assert!(queue.kick());
                let next = match shape.layout {
                    RingLayout::Split => chains,
                    RingLayout::Packed => {
                        (added % 8) | u32::from((added / 8).is_multiple_of(2)) << 15
                    }
                };
                // SAFETY: the register is a variable of this test.
                assert_eq!(unsafe { at.read_volatile() }, next << 16 | 7);
                let (head, _) = device.take().expect("a chain");
                device.give_back(head, 0);
                assert_eq!(queue.ring_mut().pop_used(), Ok(Some(0)));
            }
        }
        // SAFETY: within the register, its upper half.
        let misaligned = unsafe { Doorbell::mmio16(at.cast::<u16>().add(1), 7) };
        assert!(!misaligned.takes_data());
        // It is told all the same, and nothing but its 16 bits is written.
        // SAFETY: the register is a variable of this test.
        unsafe { at.write_volatile(0xffff_1234) };
        misaligned.ring_with(0x0009_0007);
        // SAFETY: as above.
        assert_eq!(unsafe { at.read_volatile() }, 7 << 16 | 0x1234);
    }
}
