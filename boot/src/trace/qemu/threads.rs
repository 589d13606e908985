//! QEMU's log is a file a thread; here they become one.
//!
//! Since QEMU 10.1 a line no longer says which thread wrote it, so each thread gets a file of
//! its own (`-d tid`), whose name says it. The lines of all are put into the order of their
//! times, in the form that names the thread.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::qemu::Trace;

/// What one thread wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadLog {
    /// Its lines. The last one has no end while QEMU still writes it.
    pub text: String,
    /// Where the window begins in them, in bytes. A line that was not whole there is part of it.
    pub window: usize,
}

/// The logs of all threads, by the thread's number.
pub type ThreadLogs = BTreeMap<u32, ThreadLog>;

/// Reads the logs in a directory; their windows are empty.
///
/// # Errors
/// The directory or one of the files cannot be read.
pub fn read(directory: &Path) -> io::Result<ThreadLogs> {
    let mut logs = ThreadLogs::new();
    for (thread, file) in Trace::files(directory)? {
        let text = String::from_utf8_lossy(&fs::read(file)?).into_owned();
        let window = text.len();
        logs.insert(thread, ThreadLog { text, window });
    }
    Ok(logs)
}

/// How many bytes of log each thread has written.
///
/// # Errors
/// As [`read`].
pub fn lengths(directory: &Path) -> io::Result<BTreeMap<u32, usize>> {
    let files = Trace::files(directory)?.into_iter();
    files
        .map(|(thread, file)| Ok((thread, fs::metadata(file)?.len() as usize)))
        .collect()
}

/// One log of all, and where the window begins in it.
///
/// Before and behind the begin of the window, lines are in the order of their times; those of
/// one thread stay in its order even where the host's clock was set back, and lines of one time
/// are in the order of their threads' numbers. A line that is not an event stays, as it is,
/// behind the one before it.
pub fn merge(logs: &ThreadLogs) -> (String, usize) {
    let begin = |text: &str| text.rfind('\n').map_or(0, |end| end + 1);
    let split = |log: &'_ ThreadLog| {
        let end = begin(&log.text);
        // QEMU may have been in the middle of a line.
        let window = log.text.get(..log.window).map_or(end, begin);
        (window, end)
    };
    let part = |of: fn(usize, usize) -> (usize, usize)| {
        let texts = logs.iter().map(|(thread, log)| {
            let (window, end) = split(log);
            let (from, to) = of(window, end);
            (*thread, &log.text[from..to])
        });
        merge_texts(texts)
    };
    let mut text = part(|window, _| (0, window));
    let window = text.len();
    text += &part(|window, end| (window, end));
    (text, window)
}

/// A line, and those behind it that are not events.
struct Lines {
    /// How often the clock had been set back by then.
    epoch: usize,
    micros: u64,
    text: String,
}

fn merge_texts<'a>(texts: impl Iterator<Item = (u32, &'a str)>) -> String {
    let mut threads: Vec<Vec<Lines>> = texts.map(|(thread, text)| lines(thread, text)).collect();
    epochs(&mut threads);
    let mut all: Vec<Lines> = threads.into_iter().flatten().collect();
    // Stable: lines of one thread and time stay as they are.
    all.sort_by_key(|lines| (lines.epoch, lines.micros));
    all.into_iter().map(|lines| lines.text).collect()
}

fn lines(thread: u32, text: &str) -> Vec<Lines> {
    let mut all: Vec<Lines> = Vec::new();
    for line in text.lines() {
        let (micros, text) = match stamp(line) {
            Some((micros, event)) => {
                let (seconds, micros_of_second) = (micros / 1_000_000, micros % 1_000_000);
                let text = format!("{thread}@{seconds}.{micros_of_second:06}:{event}\n");
                (Some(micros), text)
            }
            None => (None, format!("{line}\n")),
        };
        match (micros, all.last_mut()) {
            (None, Some(last)) => last.text += &text,
            (micros, _) => all.push(Lines {
                epoch: 0,
                micros: micros.unwrap_or(0),
                text,
            }),
        }
    }
    all
}

/// The event of a line with its values, whichever QEMU wrote it.
pub fn event(line: &str) -> Option<&str> {
    stamp(line).map(|(_, event)| event)
}

/// The time of a line in microseconds since 1970, and the event behind it, whichever QEMU wrote
/// it: `THREAD@SECONDS.MICROSECONDS:EVENT` up to 10.0, `YYYY-MM-DDTHH:MM:SS.MICROSECONDSZ EVENT`
/// since 10.1, where a fraction of 0 is left out.
fn stamp(line: &str) -> Option<(u64, &str)> {
    if let Some((_, micros, event)) = super::thread_stamp(line) {
        return Some((micros, event));
    }
    let (time, event) = line.split_once(' ')?;
    let time = humantime::parse_rfc3339(time).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    // What is no event may begin with the time as well: a message of QEMU's.
    super::is_event(event).then_some(())?;
    Some((since.as_micros().try_into().ok()?, event))
}

/// Says of every line how often the clock had been set back before it. The thread that saw it
/// happen most often sets the scale; another one's lines belong where they are nearest to its.
fn epochs(threads: &mut [Vec<Lines>]) {
    let set_back = |lines: &[Lines]| {
        let pairs = lines.windows(2);
        pairs.filter(|pair| pair[1].micros < pair[0].micros).count()
    };
    let Some(most) = (0..threads.len()).max_by_key(|&thread| set_back(&threads[thread])) else {
        return;
    };
    let last = set_back(&threads[most]);
    if last == 0 {
        return;
    }
    let mut spans = Vec::new();
    for run in threads[most].chunk_by(|a, b| a.micros <= b.micros) {
        if let (Some(first), Some(end)) = (run.first(), run.last()) {
            spans.push(first.micros..=end.micros);
        }
    }
    let distance = |epoch: usize, micros: u64| {
        spans.get(epoch).map_or(u64::MAX, |span| {
            let before = span.start().saturating_sub(micros);
            before.max(micros.saturating_sub(*span.end()))
        })
    };
    for lines in threads.iter_mut() {
        let mut to_come = set_back(lines);
        let mut epoch = 0;
        let mut before = 0;
        for line in lines {
            if line.micros < before {
                to_come -= 1;
                epoch += 1;
            }
            before = line.micros;
            while epoch + to_come < last && distance(epoch + 1, before) < distance(epoch, before) {
                epoch += 1;
            }
            line.epoch = epoch;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn logs(all: &[(u32, &str)]) -> ThreadLogs {
        let log = |text: &str| ThreadLog {
            text: text.to_owned(),
            window: text.len(),
        };
        all.iter()
            .map(|(thread, text)| (*thread, log(text)))
            .collect()
    }

    /// Threads and names of the events of a merged log.
    fn order(all: &[(u32, &str)]) -> Vec<(u32, String)> {
        let parsed = parse(&merge(&logs(all)).0);
        assert_eq!(parsed.unread, Vec::<String>::new());
        let records = parsed.records.into_iter();
        records
            .map(|record| (record.thread, record.event))
            .collect()
    }

    fn expected(all: &[(u32, &str)]) -> Vec<(u32, String)> {
        all.iter()
            .map(|(thread, event)| (*thread, (*event).to_owned()))
            .collect()
    }

    /// What each version wrote of the same moments: the main loop's log, the vCPU's.
    const RECORDED: [(&str, &str, &str); 3] = [
        (
            "7.2",
            "\
20558@1795925803.632910:virtio_queue_notify vdev 0x55a22cb16590 n 2 vq 0x7f1390291140
20558@1795925803.632925:virtqueue_pop vq 0x7f1390291140 elem 0x55a22be2b060 in_num 1 out_num 3
20558@1795925803.632933:virtqueue_flush vq 0x7f1390291140 count 1
",
            "\
20560@1795925803.598902:memory_region_ops_write cpu 0 mr 0x55a22cb0ebf0 addr 0xc00e value 0x2 size 2 name 'virtio-pci'
20560@1795925803.601790:memory_region_ops_write cpu 0 mr 0x55a22cb0ebf0 addr 0xc012 value 0x7 size 1 name 'virtio-pci'
",
        ),
        (
            "10.0",
            "\
20558@1795925806.714694:virtio_queue_notify vdev 0x563e5ec6c500 n 2 vq 0x563e5ec971a0
20558@1795925806.714718:virtqueue_pop vq 0x563e5ec971a0 elem 0x563e5eb35a20 in_num 1 out_num 3
20558@1795925806.714727:virtqueue_flush vq 0x563e5ec971a0 count 1
",
            "\
20560@1795925806.671716:memory_region_ops_write cpu 0 mr 0x563e5ec64a20 addr 0xc00e value 0x2 size 2 name 'virtio-pci'
20560@1795925806.677178:memory_region_ops_write cpu 0 mr 0x563e5ec64a20 addr 0xc012 value 0x7 size 1 name 'virtio-pci'
",
        ),
        (
            "11.1",
            "\
2026-11-29T04:16:49.719902Z virtio_queue_notify vdev 0x55deaad6f530 n 2 vq 0x55deaad9a2d0
2026-11-29T04:16:49.719919Z virtqueue_pop vq 0x55deaad9a2d0 elem 0x55deaac38fc0 in_num 1 out_num 3
2026-11-29T04:16:49.719926Z virtqueue_flush vq 0x55deaad9a2d0 count 1
",
            "\
2026-11-29T04:16:49.681899Z memory_region_ops_write cpu 0 mr 0x55deaad67a40 addr 0xc00e value 0x2 size 2 name 'virtio-pci'
2026-11-29T04:16:49.685679Z memory_region_ops_write cpu 0 mr 0x55deaad67a40 addr 0xc012 value 0x7 size 1 name 'virtio-pci'
",
        ),
    ];

    #[test]
    fn every_versions_log_tells_the_same() {
        for (version, main, vcpu) in RECORDED {
            let logs = logs(&[(20558, main), (20560, vcpu)]);
            let log = parse(&merge(&logs).0);
            assert_eq!(log.unread, Vec::<String>::new(), "{version}");
            let events: Vec<_> = log
                .records
                .iter()
                .map(|record| (record.thread, record.event.as_str()))
                .collect();
            let expected = [
                (20560, "memory_region_ops_write"),
                (20560, "memory_region_ops_write"),
                (20558, "virtio_queue_notify"),
                (20558, "virtqueue_pop"),
                (20558, "virtqueue_flush"),
            ];
            assert_eq!(events, expected, "{version}");
            let [kick, _, notify, pop, flush] = log.records.as_slice() else {
                unreachable!()
            };
            assert_eq!(kick.number("addr"), Some(0xc00e), "{version}");
            assert_eq!(kick.text("name"), Some("virtio-pci"), "{version}");
            assert_eq!(notify.number("n"), Some(2), "{version}");
            assert_eq!(notify.number("vq"), pop.number("vq"), "{version}");
            assert_eq!(pop.number("out_num"), Some(3), "{version}");
            let day = flush.micros / 1_000_000 / 86_400;
            assert_eq!(
                (day, flush.micros - notify.micros < 40),
                (20_786, true),
                "{version}"
            );
        }
    }

    #[test]
    fn a_line_that_was_not_whole_when_the_window_began_is_part_of_it() {
        let text = "1@2.000001:a n 1\n1@2.000002:b n 2\n";
        for window in 17..34 {
            let text = text.to_owned();
            let logs = ThreadLogs::from([(1, ThreadLog { text, window })]);
            assert_eq!(merge(&logs).1, 17, "{window}");
        }
    }

    #[test]
    fn a_fraction_of_nothing_is_left_out_and_read() {
        let log = logs(&[(
            9,
            "2026-11-29T04:02:25.999999Z a n 1\n2026-11-29T04:02:26Z b n 2\n",
        )]);
        assert_eq!(
            merge(&log).0,
            "9@1795924945.999999:a n 1\n9@1795924946.000000:b n 2\n"
        );
    }

    #[test]
    fn lines_of_one_time_keep_the_order_of_their_thread() {
        let second = "2026-11-29T04:02:26Z";
        let first = format!("{second} b\n{second} a\n");
        let other = format!("{second} d\n{second} c\n");
        assert_eq!(
            order(&[(8, other.as_str()), (7, first.as_str())]),
            expected(&[(7, "b"), (7, "a"), (8, "d"), (8, "c")])
        );
    }

    #[test]
    fn a_clock_that_is_set_back_changes_no_threads_order() {
        // Of three threads one saw it twice, one once, one never.
        let most = "1@100.000000:a\n1@101.000000:b\n1@50.000000:d\n1@51.000000:e\n1@10.000000:g\n";
        let once = "2@101.500000:c\n2@50.500000:e\n2@51.500000:f\n";
        let never = "3@50.700000:e\n3@50.800000:e\n";
        let mut events: Vec<String> = Vec::new();
        for (_, event) in order(&[(1, most), (2, once), (3, never)]) {
            events.push(event);
        }
        assert_eq!(events.concat(), "abcdeeeefg");
    }

    #[test]
    fn the_window_begins_where_it_did_in_each() {
        let mut logs = logs(&[(1, "1@5.000000:a\n1@7.000000:c\n"), (2, "2@6.000000:b\n")]);
        logs.get_mut(&1).unwrap().window = 13;
        logs.get_mut(&2).unwrap().window = 0;
        let (text, window) = merge(&logs);
        assert_eq!(
            text.split_at(window),
            ("1@5.000000:a\n", "2@6.000000:b\n1@7.000000:c\n")
        );
        // A window of an earlier look at a log that was cut since.
        logs.get_mut(&1).unwrap().window = 1000;
        assert_eq!(merge(&logs).1, 26);
    }

    #[test]
    fn what_is_no_event_stays_in_its_place_and_is_told() {
        let log = logs(&[
            (
                1,
                "noise first\n1@5.000000:a\nnoise\n2026-11-29T04:02:26Z qemu: too old\n1@7.000000:c\n1@8.0",
            ),
            (2, "2@6.000000:b\n"),
        ]);
        let (text, _) = merge(&log);
        assert_eq!(
            text,
            "noise first\n1@5.000000:a\nnoise\n2026-11-29T04:02:26Z qemu: too old\n\
             2@6.000000:b\n1@7.000000:c\n"
        );
        let unread = ["noise first", "noise", "2026-11-29T04:02:26Z qemu: too old"];
        assert_eq!(parse(&text).unread, unread);
    }

    #[test]
    fn files_are_found_by_their_threads() {
        let directory = tempfile::tempdir().unwrap();
        let trace = Trace {
            events: Vec::new(),
            directory: directory.path().to_owned(),
        };
        assert_eq!(read(directory.path()).unwrap(), ThreadLogs::new());
        for (thread, text) in [("7", "7@1.000001:a\n"), ("12", "x")] {
            let pattern = trace.pattern();
            let file = pattern.to_str().unwrap().replace("%d", thread);
            fs::write(file, text).unwrap();
        }
        fs::write(directory.path().join("qemu-thread-x.log"), "other").unwrap();
        fs::write(directory.path().join("memory"), "other").unwrap();
        let logs = read(directory.path()).unwrap();
        assert_eq!(logs.keys().copied().collect::<Vec<_>>(), [7, 12]);
        assert_eq!(lengths(directory.path()).unwrap()[&7], 13);
        assert_eq!(merge(&logs), ("7@1.000001:a\n".to_owned(), 13));
        assert!(read(Path::new("/does/not/exist")).is_err());
    }
}
