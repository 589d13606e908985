//! A small timeline for the tests of what renders one.

use super::Timeline;

/// A datagram that goes out on TCG: one step of every kind.
pub(super) fn timeline() -> Timeline {
    serde_json::from_str(include_str!("sample.json")).expect("the sample fits the schema")
}
