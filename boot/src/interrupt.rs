//! Ctrl-C, `SIGTERM` and `SIGHUP`: the first asks every wait to end, so that
//! destructors run and nothing is left behind; one that comes later than
//! [`IMPATIENCE`] ends the program at once (the kernel then ends QEMU, see
//! [`crate::guest`]).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Exit status of a program that Ctrl-C ended, as a shell reports it.
pub const EXIT_STATUS: u8 = 130;

/// A signal that follows another sooner than this is the same wish: `timeout`
/// and the like send one to the program and one to its group.
pub const IMPATIENCE: Duration = Duration::from_millis(500);

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C is another program's: see [`left_to`].
static LEFT: AtomicBool = AtomicBool::new(false);

/// Takes the signals over. Only a program does this, never a library.
///
/// # Errors
/// The system refuses a handler or a thread.
pub fn install() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut first = None;
            for signal in signals.forever() {
                if signal == SIGINT && LEFT.load(Ordering::Relaxed) {
                    continue;
                }
                REQUESTED.store(true, Ordering::Relaxed);
                let first = *first.get_or_insert_with(Instant::now);
                if first.elapsed() > IMPATIENCE {
                    signal_hook::low_level::exit(EXIT_STATUS.into());
                }
            }
        })?;
    Ok(())
}

/// Leaves Ctrl-C to a program that has the terminal while `f` waits for it.
pub fn left_to<T>(f: impl FnOnce() -> T) -> T {
    LEFT.store(true, Ordering::Relaxed);
    let result = f();
    LEFT.store(false, Ordering::Relaxed);
    result
}

/// Whether somebody asked this program to end. Always `false` without
/// [`install`].
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
