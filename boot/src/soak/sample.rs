//! What is noted of a guest every second.

use std::time::Duration;

use kickpath_abi::status::Status;
use serde::Serialize;

/// The guest at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Since the start, in seconds.
    pub at_s: f64,
    /// Bytes of heap in use.
    pub heap: u64,
    /// TCP connections, that of the report included.
    pub connections: u64,
    /// Frames received.
    pub rx: u64,
    /// Frames sent.
    pub tx: u64,
    /// Kicks.
    pub kicks: u64,
    /// Interrupts.
    pub interrupts: u64,
    /// Bytes that came back on the connection that stays open.
    pub connection: u64,
}

impl Sample {
    pub(super) fn of(status: &Status, at: Duration, connection: u64) -> Self {
        Self {
            at_s: at.as_secs_f64(),
            heap: status.cpu.heap_used,
            connections: status.network.tcp_connections,
            rx: status.counters.rx_packets,
            tx: status.counters.tx_packets,
            kicks: status.counters.kicks,
            interrupts: status.counters.interrupts,
            connection,
        }
    }
}
