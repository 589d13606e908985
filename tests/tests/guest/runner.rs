//! The command, as a person runs it: `cargo run`.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kickpath::install::TCPDUMP;
use kickpath_abi::status::Status;
use kickpath_tests::program::{Running, loopback_address, run};
use kickpath_tests::{Suite, setup};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BOUND: Duration = Duration::from_secs(60);

pub fn add(suite: &mut Suite) {
    suite.test("runner::run_tells_the_story_of_a_packet", || {
        let story = run(&["run"])?;
        for word in [
            "TCG",
            "virtio-net",
            "1af4:1000",
            "EVENT_IDX",
            "legacy",
            "msix (taken)",
            // How many is QEMU's to say.
            "Queues        receive ",
            "descriptors",
            "round trip min",
            "1472",
            "outw",
            "interrupts",
        ] {
            ensure!(story.contains(word), "'{word}' is missing:\n{story}");
        }
        Ok(())
    });
    suite.test("runner::run_prints_json_for_programs", || {
        let text = run(&[
            "run",
            "--json",
            "--machine",
            "q35",
            "--irq",
            "intx",
            "--ip",
            "dhcp",
        ])?;
        let report: serde_json::Value = serde_json::from_str(&text).context(text.clone())?;
        let status: Status = serde_json::from_value(report["status"].clone()).context(text)?;
        ensure!(status.interrupts.rung == "intx", "{status:?}");
        ensure!(status.network.ipv4_source == "dhcp", "{status:?}");
        Ok(())
    });
    suite.test("runner::run_tells_what_the_guest_warns_of", || {
        let wrong = "there is no feature 'event-idx'";
        let story = run(&["run", "--features=-event-idx"])?;
        ensure!(story.contains(wrong), "{story}");
        let text = run(&["run", "--json", "--features=-event-idx"])?;
        let report: serde_json::Value = serde_json::from_str(&text).context(text.clone())?;
        let warnings = &report["warnings"];
        let said = warnings[0].as_str().is_some_and(|w| w.contains(wrong));
        ensure!(said && report["ok"] == true, "{warnings}");
        let report: serde_json::Value = serde_json::from_str(&run(&["run", "--json"])?)?;
        ensure!(report["warnings"] == serde_json::json!([]), "{report}");
        Ok(())
    });
    // A user network cannot ping.
    suite.test("runner::run_over_the_user_network_records_it", || {
        run_recorded(&["--net", "user", "--features=-event_idx"], &[])
    });
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("runner::run_over_a_tap_records_it", || {
            run_recorded(&["--net", "tap"], PINGS)
        });
    });
    suite.test("runner::run_over_datagrams_records_it", || {
        run_recorded(&["--net", "dgram"], PINGS)
    });
    suite.test("runner::the_dry_run_can_be_pasted", || {
        let line = run(&["run", "--dry-run"])?;
        ensure!(
            line.contains("-kernel") && line.contains("-netdev"),
            "{line}"
        );
        let mut shell = Command::new("sh");
        let output = shell.args(["-n", "-c", &line]).output()?;
        ensure!(output.status.success(), "{output:?}\n{line}");
        Ok(())
    });
    suite.test("runner::the_dry_run_has_every_option", || {
        for (arguments, expected) in [
            ("run --vlan 5", "vlan=5"),
            ("trace --vlan 5", "vlan=5"),
            ("serve --mtu 1400", "host_mtu=1400"),
            ("run --netconsole 10.0.2.2:6666", "netconsole=10.0.2.2:6666"),
            ("bench --rx-queue-size 1024", "rx_queue_size=1024"),
            ("run --machine microvm --queue-size 64", "queue-size=64"),
            ("trace --transport modern --layout packed", "packed=on"),
        ] {
            let words: Vec<&str> = arguments.split(' ').chain(["--dry-run"]).collect();
            let line = run(&words)?;
            ensure!(line.contains(expected), "{arguments}: {line}");
        }
        // The ways that have packed rings, and only those.
        let lines = run(&["compare", "--layout", "packed", "--dry-run"])?;
        let count = |text: &str| lines.matches(text).count();
        ensure!(count("packed=on") == 3 && count("-netdev") == 3, "{lines}");
        Ok(())
    });
    device_options(suite);
    suite.test("runner::what_does_not_go_together_is_refused", || {
        for (arguments, expected) in [
            (["--machine", "pc", "--transport", "mmio"], "microvm"),
            (["--machine", "microvm", "--transport", "modern"], "mmio"),
            (["--net", "tap", "--vlan", "5"], "--net dgram"),
            (["--machine", "q35", "--layout", "packed"], "modern"),
            (["--transport", "legacy", "--queue-size", "64"], "dictates"),
        ] {
            match run(&arguments) {
                Ok(text) => bail!("{arguments:?} was accepted:\n{text}"),
                Err(error) => {
                    let error = error.to_string();
                    ensure!(error.contains(expected), "{arguments:?}: {error}");
                }
            }
        }
        Ok(())
    });
    suite.test("runner::serve_serves_until_ctrl_c", serve);
    for (name, options) in [
        ("legacy", &[][..]),
        ("packed", &["--transport", "modern", "--layout", "packed"]),
    ] {
        suite.test(
            &format!("runner::a_minute_of_everything_{name}"),
            move || soak(options),
        );
    }
}

/// What the options make of the device, as the guest finds it.
fn device_options(suite: &mut Suite) {
    suite.test("runner::run_in_a_vlan", || {
        let (status, frames) = recorded(&["--vlan", "5"])?;
        ensure!(status.boot.configuration.contains("vlan=5"), "{status:?}");
        // 802.1Q, VLAN 5, IPv4: the guest's frames, and those for it.
        let tagged = [0x81, 0x00, 0, 5, 0x08, 0x00];
        let count = frames.windows(6).filter(|bytes| *bytes == tagged).count();
        ensure!(count > 20, "{count} tagged frames");
        // And every layer of a trace agrees on them.
        run(&["trace", "--vlan", "5"]).map(drop)
    });
    suite.test("runner::run_with_an_mtu", || {
        let status = status_of(&["--mtu", "1400"])?;
        ensure!(status.device.mtu == 1400, "{:?}", status.device);
        Ok(())
    });
    suite.needs(setup::lacks_tap(), |suite| {
        suite.test("runner::run_with_jumbo_frames_over_a_tap", || {
            let status = status_of(&["--net", "tap", "--mtu", "9000"])?;
            ensure!(status.device.mtu == 9000, "{:?}", status.device);
            Ok(())
        });
    });
    suite.test("runner::run_with_small_packed_queues", || {
        let layout = ["--layout", "packed", "--queue-size", "100"];
        let status = status_of(&[&["--transport", "modern"], &layout[..]].concat())?;
        let features = &status.device.features_negotiated;
        ensure!(
            features.iter().any(|name| name == "RING_PACKED"),
            "{features:?}"
        );
        let sizes: Vec<_> = status.queues.iter().take(2).map(|q| q.size).collect();
        // The power of two below.
        ensure!(sizes == [64, 64], "{:?}", status.queues);
        Ok(())
    });
    suite.test("runner::run_with_a_long_receive_queue", || {
        let status = status_of(&["--rx-queue-size", "1024"])?;
        ensure!(status.queues[0].size == 1024, "{:?}", status.queues);
        Ok(())
    });
    suite.test("runner::run_with_the_log_on_the_wire", || {
        let (_, frames) = recorded(&["--netconsole", "10.0.2.2:6666"])?;
        let line = b"features negotiated:";
        ensure!(
            frames.windows(line.len()).any(|bytes| bytes == line),
            "the log is not on the wire"
        );
        Ok(())
    });
}

/// The guest's report at the end of a run.
fn status_of(options: &[&str]) -> Result<Status> {
    let text = run(&[&["run", "--json"], options].concat())?;
    let report: serde_json::Value = serde_json::from_str(&text).context(text.clone())?;
    serde_json::from_value(report["status"].clone()).context(text)
}

/// The same, and the recorded frames.
fn recorded(options: &[&str]) -> Result<(Status, Vec<u8>)> {
    let file = tempfile::NamedTempFile::new()?;
    let name = file.path().to_str().context("a path of UTF-8")?;
    let status = status_of(&[&["--pcap", name], options].concat())?;
    Ok((status, fs::read(name)?))
}

/// Both ways of a ping, as `tcpdump` says it.
const PINGS: &[&str] = &["ICMP echo request", "ICMP echo reply"];

/// Runs the guest and has somebody else read what was recorded.
fn run_recorded(arguments: &[&str], expected: &[&str]) -> Result<()> {
    setup::require(&[TCPDUMP])?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("run.pcap");
    let name = file.to_str().context("a path of UTF-8")?;
    run(&[&["run", "--pcap", name], arguments].concat())?;
    let read = Command::new("tcpdump").args(["-n", "-r", name]).output()?;
    let text = String::from_utf8_lossy(&read.stdout);
    let errors = String::from_utf8_lossy(&read.stderr);
    ensure!(read.status.success(), "tcpdump: {}\n{errors}", read.status);
    // A file that was cut reads well up to there.
    ensure!(!errors.contains("truncated"), "{errors}");
    // The largest datagram both ways, and the page.
    for frame in [
        "UDP, length 1472",
        "HTTP: GET / HTTP/1.1",
        "HTTP/1.1 200 OK",
    ]
    .iter()
    .chain(expected)
    {
        ensure!(text.contains(frame), "no '{frame}' in\n{text}");
    }
    let echoes = text.matches("UDP, length 1472").count();
    ensure!(echoes >= 2, "{echoes} datagrams of 1472 bytes in\n{text}");
    Ok(())
}

fn serve() -> Result<()> {
    // Any port may be taken; the command then takes another.
    let mut serving = Running::start(&["serve", "--http-port", "18080", "--echo-port", "17007"])?;
    let page = loopback_address(&serving.line_with("http://127.0.0.1:")?, "127.0.0.1:")?;
    let echo = loopback_address(&serving.line_with("UDP and TCP")?, "127.0.0.1:")?;

    let mut stream = TcpStream::connect_timeout(&page, BOUND)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream
        .write_all(b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the header")?;
    serde_json::from_str::<Status>(body)?;

    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    socket.set_read_timeout(Some(BOUND))?;
    socket.send_to(b"by UDP", echo)?;
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer)?;
    ensure!(&buffer[..length] == b"by UDP", "another answer");
    let mut stream = TcpStream::connect_timeout(&echo, BOUND)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.write_all(b"by TCP")?;
    stream.read_exact(&mut buffer[..6])?;
    ensure!(&buffer[..6] == b"by TCP", "another answer");

    let children = children(serving.child.id())?;
    ensure!(children.len() == 1, "its children are {children:?}");
    kill(
        Pid::from_raw(serving.child.id().cast_signed()),
        Signal::SIGINT,
    )?;
    // Its pipe ends with it; it reaps QEMU before.
    serving.output.read_to_string(&mut serving.seen)?;
    let status = serving.child.wait()?;
    ensure!(status.success(), "{status}\n{}", serving.seen);
    let deadline = Instant::now() + BOUND;
    while Path::new(&format!("/proc/{}", children[0])).exists() {
        ensure!(Instant::now() < deadline, "QEMU was left behind");
    }
    Ok(())
}

/// Nothing deviates, every kind of work is done, and the page and the JSON tell of it.
fn soak(options: &[&str]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("soak.html");
    let html = page.to_str().context("a path of UTF-8")?;
    let arguments = ["soak", "--minutes", "1", "--json", "--html", html];
    let text = run(&[&arguments, options].concat())?;
    let report: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(report["ok"] == true, "{}\n{report}", report["deviations"]);
    let work = report["work"].as_array().context("no work")?;
    ensure!(work.len() == 10, "{report}");
    // Packed rings are not made to lie, and a slow machine does not come to the third round.
    let done = work.iter().filter(|tally| tally["done"].as_u64() > Some(0));
    ensure!(done.count() >= 8, "{report}");
    let samples = report["samples"].as_array().context("no samples")?;
    ensure!(!samples.is_empty(), "{report}");
    let page = fs::read_to_string(page)?;
    ensure!(
        page.contains("nothing deviated") && page.contains("<polyline"),
        "{page}"
    );
    Ok(())
}

/// The processes that this one has started.
fn children(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("children"))?;
        for child in text.split_whitespace() {
            children.push(child.parse()?);
        }
    }
    Ok(children)
}
