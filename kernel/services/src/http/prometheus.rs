//! Prometheus' text format, version 0.0.4.

use alloc::string::String;
use core::fmt::{self, Display, Write};

pub(super) struct Text(String);

impl Text {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(String::with_capacity(capacity))
    }

    /// Opens a family of samples: a counter, which never goes back, when its
    /// name ends in `_total`, else a gauge.
    #[inline(never)]
    pub(super) fn family(&mut self, name: &str, help: &str) {
        let is_counter = name.ends_with("_total");
        let kind = if is_counter { "counter" } else { "gauge" };
        self.line(format_args!("# HELP kickpath_{name} {help}"));
        self.line(format_args!("# TYPE kickpath_{name} {kind}"));
    }

    /// A sample of the family `name`.
    pub(super) fn sample<V: AsRef<str>>(
        &mut self,
        name: &str,
        labels: &[(&str, V)],
        value: impl Display,
    ) {
        self.0.push_str("kickpath_");
        self.0.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            self.0.push(separator);
            self.0.push_str(label);
            self.0.push_str("=\"");
            for character in value.as_ref().chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
            separator = ',';
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    pub(super) fn finish(self) -> String {
        self.0
    }

    #[inline(never)]
    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{line}");
    }
}

/// Microseconds, written as seconds.
pub(super) struct Seconds(pub(super) u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
