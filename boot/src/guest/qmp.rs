//! The client's half of the QEMU Machine Protocol (QEMU, docs/interop/qmp-spec):
//! one JSON object a line, a greeting first, then replies and events mixed.

use serde::Deserialize;
use serde_json::{Value, json};

/// A guest with a monitor.
pub trait Monitored {
    /// Runs a command of QEMU's monitor.
    ///
    /// # Errors
    /// QEMU refuses the command or does not answer.
    fn qmp(&self, name: &str, arguments: Value) -> anyhow::Result<Value>;
}

/// What QEMU says on its monitor.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// The first line. Commands are refused until `qmp_capabilities`.
    Greeting,
    /// The reply to the command with this number.
    Reply(u64, Result<Value, CommandError>),
    /// Something happened.
    Event(Event),
}

/// What happened to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The virtual CPUs were stopped: by us, or by an internal error of KVM.
    Stop,
    /// The virtual CPUs go on.
    Resume,
    /// The machine was reset.
    Reset {
        /// By the guest itself, such as a triple fault.
        guest: bool,
        /// QEMU's `ShutdownCause`, such as `guest-reset`.
        reason: String,
    },
    /// QEMU is about to end.
    Shutdown {
        /// By the guest itself.
        guest: bool,
        /// QEMU's `ShutdownCause`, such as `guest-shutdown`.
        reason: String,
    },
    /// The guest reported a panic by a paravirtual device.
    GuestPanicked,
    /// Another event, by name.
    Other(String),
}

/// Why QEMU refused a command.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{class}: {desc}")]
pub struct CommandError {
    /// The error class, such as `CommandNotFound`.
    pub class: String,
    /// The explanation for people.
    pub desc: String,
}

/// A line that is not the protocol.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Not JSON, or JSON of the wrong shape.
    #[error("not a message of QEMU's monitor: {0}")]
    Json(#[from] serde_json::Error),
    /// An object that is neither greeting, reply nor event.
    #[error("neither greeting, reply nor event: {0}")]
    Unknown(String),
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    data: Option<Data>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<CommandError>,
    id: Option<u64>,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    guest: bool,
    #[serde(default)]
    reason: Value,
}

impl Message {
    /// Reads one line.
    ///
    /// # Errors
    /// The line is not a message of the protocol.
    pub fn parse(line: &str) -> Result<Self, ProtocolError> {
        let wire: Wire = serde_json::from_str(line)?;
        if let Some(name) = wire.event {
            let Data { guest, reason } = wire.data.unwrap_or_default();
            let reason = reason.as_str().unwrap_or("unknown").to_owned();
            return Ok(Self::Event(match name.as_str() {
                "STOP" => Event::Stop,
                "RESUME" => Event::Resume,
                "RESET" => Event::Reset { guest, reason },
                "SHUTDOWN" => Event::Shutdown { guest, reason },
                "GUEST_PANICKED" | "GUEST_CRASHLOADED" => Event::GuestPanicked,
                _ => Event::Other(name),
            }));
        }
        // An error without a number answers a line that QEMU could not read;
        // every command of ours has a number.
        let id = wire.id.unwrap_or(u64::MAX);
        match (wire.greeting, wire.result, wire.error) {
            (Some(_), _, _) => Ok(Self::Greeting),
            (None, Some(value), _) => Ok(Self::Reply(id, Ok(value))),
            (None, None, Some(error)) => Ok(Self::Reply(id, Err(error))),
            (None, None, None) => Err(ProtocolError::Unknown(line.trim_end().to_owned())),
        }
    }
}

/// The line of a command.
pub fn command(id: u64, name: &str, arguments: Value) -> String {
    let mut object = json!({ "execute": name, "id": id });
    if !arguments.is_null() {
        object["arguments"] = arguments;
    }
    format!("{object}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Message {
        Message::parse(line).unwrap()
    }

    #[test]
    fn greeting_replies_and_errors() {
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting), Message::Greeting);
        assert_eq!(
            parse(r#"{"return": {"status": "internal-error"}, "id": 3}"#),
            Message::Reply(3, Ok(json!({"status": "internal-error"})))
        );
        let error = r#"{"id": 4, "error": {"class": "CommandNotFound", "desc": "no such"}}"#;
        let Message::Reply(4, Err(error)) = parse(error) else {
            panic!("{error} is an error reply");
        };
        assert_eq!(error.to_string(), "CommandNotFound: no such");
    }

    #[test]
    fn events_that_end_a_run() {
        let stop = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#;
        assert_eq!(parse(stop), Message::Event(Event::Stop));
        let reset = r#"{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}"#;
        assert_eq!(
            parse(reset),
            Message::Event(Event::Reset {
                guest: true,
                reason: "guest-reset".into()
            })
        );
        let shutdown =
            r#"{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}"#;
        assert_eq!(
            parse(shutdown),
            Message::Event(Event::Shutdown {
                guest: false,
                reason: "host-qmp-quit".into()
            })
        );
        let panicked = r#"{"event": "GUEST_PANICKED", "data": {"action": "pause"}}"#;
        assert_eq!(parse(panicked), Message::Event(Event::GuestPanicked));
        let other = r#"{"event": "NIC_RX_FILTER_CHANGED", "data": {"path": "/machine"}}"#;
        assert_eq!(
            parse(other),
            Message::Event(Event::Other("NIC_RX_FILTER_CHANGED".into()))
        );
    }

    #[test]
    fn what_is_not_the_protocol_is_an_error() {
        for line in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"id": -1, "return": {}}"#,
            "\u{fffd}",
        ] {
            assert!(Message::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_command_is_one_line() {
        let line = command(7, "qom-get", json!({"path": "/a\nb"}));
        assert_eq!(line.matches('\n').count(), 1);
        let back: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["execute"], "qom-get");
        assert_eq!(back["id"], 7);
        assert_eq!(back["arguments"]["path"], "/a\nb");
        assert!(!command(0, "stop", Value::Null).contains("arguments"));
    }
}
