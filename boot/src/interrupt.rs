//! Ctrl-C, `SIGTERM` and `SIGHUP`: the first asks every wait to end, so that
//! destructors run and nothing is left behind; the second ends the program at
//! once (the kernel then ends QEMU, see [`crate::guest`]).

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit status of a program that Ctrl-C ended, as a shell reports it.
pub const EXIT_STATUS: u8 = 130;

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Takes the signals over. Only a program does this, never a library.
///
/// # Errors
/// The system refuses a handler.
pub fn install() -> io::Result<()> {
    let requested = Arc::clone(REQUESTED.get_or_init(Arc::default));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order the second signal finds the flag set.
        flag::register_conditional_shutdown(signal, EXIT_STATUS.into(), Arc::clone(&requested))?;
        flag::register(signal, Arc::clone(&requested))?;
    }
    Ok(())
}

/// Whether somebody asked this program to end. Always `false` without
/// [`install`].
pub fn requested() -> bool {
    REQUESTED
        .get()
        .is_some_and(|requested| requested.load(Ordering::Relaxed))
}
