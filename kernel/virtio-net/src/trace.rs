//! Tracepoints, where the feature `trace` has them made; without it they are no
//! code at all.

#[cfg(feature = "trace")]
pub(crate) use kickpath_trace::{NO_QUEUE, is_enabled};

/// The queue of what is about none.
#[cfg(not(feature = "trace"))]
pub(crate) const NO_QUEUE: u16 = 0;

/// Whether tracepoints record.
#[cfg(not(feature = "trace"))]
pub(crate) const fn is_enabled() -> bool {
    false
}

/// As `kickpath_trace::tracepoint!`, or nothing; the arguments count as used.
macro_rules! tracepoint {
    (Event::$event:ident, $($argument:expr),+) => {{
        #[cfg(feature = "trace")]
        kickpath_trace::tracepoint!(kickpath_trace::Event::$event, $($argument),+);
        #[cfg(not(feature = "trace"))]
        let _ = || ($($argument,)+);
    }};
}
pub(crate) use tracepoint;
