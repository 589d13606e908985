//! From what the user asked for to a running guest with a far end.

mod check;
mod error;
mod mismatch;
mod others;
mod prepared;
mod settings;
mod up;

pub use error::SessionError;
pub use mismatch::Mismatch;
pub use prepared::{Prepared, require};
pub use settings::{Layout, NetChoice, Settings};
pub use up::{StatusError, UP, Up, fetch_status};
