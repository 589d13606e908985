//! What iputils' `ping` and Linux's stack say of echo replies.
//!
//! Once one reply has come, `ping` waits for the last ones no longer than twice
//! the longest round trip so far (`schedule_exit` in its ping_common.c; `-W` is
//! for no reply at all). On a fast cable that is less than a pause of the
//! scheduler. So what `ping` misses is looked for in the counters of the stack.

use anyhow::{Context, Result, ensure};

/// The counts at the end of what `ping` prints.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// Echo requests sent.
    pub sent: u64,
    /// Replies that came before `ping` ended.
    pub received: u64,
}

impl Summary {
    /// # Errors
    /// No counts, or some of errors, of duplicates or of changed replies.
    pub fn parse(text: &str) -> Result<Self> {
        let line = text
            .lines()
            .find(|line| line.contains(" packets transmitted, "))
            .with_context(|| format!("ping counts nothing: {text}"))?;
        // "+1 errors", "+1 duplicates", "+1 corrupted"
        ensure!(!line.contains('+'), "{text}");
        let mut counts = line.split(", ").map(|field| {
            let count = field.split(' ').next().unwrap_or_default();
            count.parse().with_context(|| line.to_owned())
        });
        let mut next = || counts.next().with_context(|| line.to_owned())?;
        Ok(Self {
            sent: next()?,
            received: next()?,
        })
    }
}

/// The value of a counter in the text of Linux's `/proc/net/snmp`, where a line
/// of names comes before a line of values, or `/proc/net/snmp6`, where each
/// counter has a line.
///
/// # Errors
/// The counter is not there, or is not a number.
pub fn counter(text: &str, group: &str, name: &str) -> Result<u64> {
    let missing = || format!("no counter {group}{name}");
    let joined = format!("{group}{name}");
    let value = if let Some(line) = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(&joined))
    {
        line.split_whitespace().nth(1)
    } else {
        let prefix = format!("{group}:");
        let mut lines = text.lines().filter(|line| line.starts_with(&prefix));
        let names = lines.next().with_context(missing)?;
        let values = lines.next().with_context(missing)?;
        names
            .split_whitespace()
            .zip(values.split_whitespace())
            .find(|(this, _)| *this == name)
            .map(|(_, value)| value)
    };
    value
        .with_context(missing)?
        .parse()
        .with_context(|| joined.clone())
}

#[cfg(test)]
mod tests {
    use super::{Summary, counter};

    #[test]
    fn the_counts_are_read() {
        let parse = |counts: &str| {
            Summary::parse(&format!(
                "PING 10.0.2.15 (10.0.2.15) 8000(8028) bytes of data.\n\n{counts}, time 4ms\n"
            ))
        };
        let late = parse("3 packets transmitted, 2 received, 33.3333% packet loss");
        let expected = Summary {
            sent: 3,
            received: 2,
        };
        assert_eq!(late.unwrap(), expected);
        for wrong in [
            "3 packets transmitted, 3 received, +1 duplicates, 0% packet loss",
            "3 packets transmitted, 3 received, +1 corrupted, 0% packet loss",
            "3 packets transmitted, 0 received, +3 errors, 100% packet loss",
            "3 packets transmitted, all received",
            "3 packets",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn counters_are_found_by_name() {
        let snmp = "Icmp: InMsgs InErrors InEchoReps\nIcmp: 9 2 7\nIcmpMsg: InType0\nIcmpMsg: 7\n";
        assert_eq!(counter(snmp, "Icmp", "InEchoReps").unwrap(), 7);
        assert!(counter(snmp, "Icmp", "OutEchoReps").is_err());
        assert!(counter(snmp, "Udp", "InDatagrams").is_err());
        let snmp6 = "Icmp6InMsgs   \t5\nIcmp6InEchoReplies   \t4\n";
        assert_eq!(counter(snmp6, "Icmp6", "InEchoReplies").unwrap(), 4);
    }
}
