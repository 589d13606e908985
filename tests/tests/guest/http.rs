//! The status page, its data and its metrics.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use kickpath::wire::{FarEnd, HTTP_PORT};
use kickpath_abi::status::{Queue, Status};
use kickpath_tests::{Lab, Spec, Suite, Way};

pub fn add(suite: &mut Suite) {
    let way = suite.way();
    suite.guest(
        "http::the_page_stands_alone_and_refreshes_itself",
        Spec::pc(),
        |lab| {
            let response = lab.get("/")?;
            ensure!(response.status == 200, "status {}", response.status);
            let kind = response.field("content-type").unwrap_or_default();
            ensure!(kind.starts_with("text/html"), "content type '{kind}'");
            let page = String::from_utf8(response.body)?;
            ensure!(page.contains("</html>"), "the page is cut off");
            ensure!(
                page.contains("stats.json"),
                "the page does not fetch its data"
            );
            for outside in ["http://", "https://", "src=\"//", "href=\"//"] {
                // A name space of SVG is no address that is fetched.
                let page = page.replace("http://www.w3.org/", "");
                ensure!(!page.contains(outside), "the page refers to {outside}");
            }
            Ok(())
        },
    );
    suite.guest(
        "http::the_report_is_whole_and_plausible",
        Spec::pc(),
        move |lab| {
            let status = lab.status()?;
            check_report(lab, &status, way)
        },
    );
    suite.guest("http::counters_follow_the_traffic", Spec::pc(), |lab| {
        let before = lab.status()?;
        lab.echo_flood(1000, 100)?;
        let after = lab.status()?;
        let (b, a) = (&before.counters, &after.counters);
        // The flood, and a connection with few segments each way.
        let received = a.rx_packets - b.rx_packets;
        ensure!(
            (1000..1100).contains(&received),
            "{received} frames received"
        );
        let sent = a.tx_packets - b.tx_packets;
        ensure!((1000..1100).contains(&sent), "{sent} frames sent");
        let bytes = a.rx_bytes - b.rx_bytes;
        let least = 1000 * (14 + 20 + 8 + 100);
        ensure!(
            (least..least + 20_000).contains(&bytes),
            "{bytes} bytes received"
        );
        ensure!(a.kicks > b.kicks, "no kick counted");
        ensure!(a.interrupts > b.interrupts, "no interrupt counted");
        ensure!(
            after.cpu.uptime_us > before.cpu.uptime_us,
            "time stands still"
        );
        ensure!(after.cpu.cycles > before.cpu.cycles, "no cycle counted");
        ensure!(
            after.cpu.idle_cycles < after.cpu.cycles,
            "more idle than time"
        );
        let queues = before.queues.iter().zip(&after.queues);
        // The control queue carries no packets.
        for (before, after) in queues.filter(|(queue, _)| queue.name != "control") {
            let used = after.used_idx.wrapping_sub(before.used_idx);
            ensure!((900..1200).contains(&used), "{used} used: {after:?}");
            // Sent buffers are taken back lazily.
            let waiting = after.used_idx.wrapping_sub(after.last_used_idx);
            ensure!(waiting <= after.size, "{after:?}");
        }
        Ok(())
    });
    suite.guest("http::metrics_agree_with_the_report", Spec::pc(), |lab| {
        let response = lab.get("/metrics")?;
        ensure!(response.status == 200, "status {}", response.status);
        let kind = response.field("content-type").unwrap_or_default();
        ensure!(kind.starts_with("text/plain"), "content type '{kind}'");
        let samples = samples(&String::from_utf8(response.body)?)?;
        let counters = lab.status()?.counters;
        let sample = |name: &str| {
            let value = samples.get(name);
            value
                .copied()
                .with_context(|| format!("no {name} in {:?}", samples.keys()))
        };
        for (name, now) in [
            (
                "kickpath_packets_total{queue=\"receive\"}",
                counters.rx_packets,
            ),
            (
                "kickpath_packets_total{queue=\"transmit\"}",
                counters.tx_packets,
            ),
            ("kickpath_kicks_total", counters.kicks),
            ("kickpath_interrupts_total", counters.interrupts),
        ] {
            let then = sample(name)?;
            // Fetching both is some frames of traffic in itself.
            ensure!(
                then >= 1.0 && then <= now as f64 && now as f64 - then < 100.0,
                "{name}: {then}, and {now} in the report that follows"
            );
        }
        ensure!(sample("kickpath_link_up")? == 1.0, "the link is down");
        Ok(())
    });
    suite.guest(
        "http::other_requests_get_their_own_answer",
        Spec::pc(),
        |lab| {
            for (path, status) in [("/nothing", 404), ("/stats.json/", 404), ("/?query", 200)] {
                let got = lab.get(path)?.status;
                ensure!(got == status, "{path}: status {got} instead of {status}");
            }
            for (request, status) in [
                (
                    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
                    "405",
                ),
                ("DELETE /stats.json HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
                ("GET / HTTP/1.0\r\n\r\n", "200"),
                ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", "400|505"),
                ("no request at all\r\n\r\n", "400|505"),
                ("GET\r\n\r\n", "400"),
                ("\0\0\0\0\r\n\r\n", "400"),
                ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", "400"),
            ] {
                let answer = exchange(lab, request.as_bytes())?;
                let line = answer.lines().next().unwrap_or_default();
                let got = line.split(' ').nth(1).unwrap_or_default();
                ensure!(
                    line.starts_with("HTTP/1.1 ") && status.split('|').any(|s| s == got),
                    "{request:?}: '{line}' instead of {status}"
                );
            }
            let mut long = b"GET / HTTP/1.1\r\nHost: ".to_vec();
            long.resize(20_000, b'x');
            let answer = exchange(lab, &long)?;
            ensure!(
                answer.starts_with("HTTP/1.1 431 "),
                "a long field: {answer}"
            );
            let head = exchange(
                lab,
                b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            )?;
            ensure!(head.starts_with("HTTP/1.1 200 "), "HEAD: {head}");
            ensure!(head.ends_with("\r\n\r\n"), "HEAD has content: {head}");
            Ok(())
        },
    );
    suite.guest("http::requests_can_be_pipelined", Spec::pc(), |lab| {
        let one = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        let last = "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = exchange(lab, format!("{one}{one}{last}").as_bytes())?;
        let ok = answer.matches("HTTP/1.1 200 ").count();
        let missing = answer.matches("HTTP/1.1 404 ").count();
        ensure!(
            (ok, missing) == (2, 1),
            "{ok} and {missing} answers: {answer}"
        );
        Ok(())
    });
    suite.guest("http::over_ipv6", Spec::pc(), |lab| {
        let local = lab.ipv6()?[0];
        let response = lab.peer.http_get(local, "/stats.json", lab.soon())?;
        let status: Status = serde_json::from_slice(&response.body)?;
        ensure!(status.device.mac == "52:54:00:4b:50:01", "{status:?}");
        Ok(())
    });
}

/// Sends bytes to the web server and reads all that it says until it closes.
fn exchange(lab: &Lab, request: &[u8]) -> Result<String> {
    let to = SocketAddr::new(lab.address(), HTTP_PORT);
    let connection = lab.peer.tcp_connect(to, lab.soon())?;
    lab.peer.tcp_send(&connection, request, lab.soon())?;
    let mut answer = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    // A server that refuses a request may reset what it did not read.
    while let Ok(more @ 1..) = lab.peer.tcp_recv(&connection, &mut buffer, lab.soon()) {
        answer.extend_from_slice(&buffer[..more]);
        if String::from_utf8_lossy(request).contains("HTTP/1.1\r\n")
            && complete(&answer)
            && !answer_closes(&answer)
            && single(request)
        {
            break;
        }
    }
    lab.peer.tcp_abort(connection);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether this asks for one answer only.
fn single(request: &[u8]) -> bool {
    String::from_utf8_lossy(request)
        .matches(" HTTP/1.1\r\n")
        .count()
        == 1
}

fn complete(answer: &[u8]) -> bool {
    matches!(kickpath::wire::http::parse(answer, false), Ok(Some(_)))
}

fn answer_closes(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    text.contains("connection: close")
}

/// Everything that a default machine must say about itself.
fn check_report(lab: &Lab, status: &Status, way: Way) -> Result<()> {
    let boot = &status.boot;
    ensure!(boot.protocol == "PVH", "boot protocol '{}'", boot.protocol);
    ensure!(
        boot.hypervisor == "TCGTCGTCGTCG",
        "hypervisor '{}'",
        boot.hypervisor
    );
    ensure!(
        boot.configuration.contains("ip=10.0.2.15/24"),
        "{}",
        boot.configuration
    );
    ensure!(boot.stages.len() >= 3, "stages: {:?}", boot.stages);
    ensure!(
        boot.stages.is_sorted_by_key(|stage| stage.end_us),
        "stages are not in order: {:?}",
        boot.stages
    );
    ensure!(
        (100_000_000..10_000_000_000).contains(&boot.tsc_hz) && !boot.tsc_source.is_empty(),
        "TSC of {} Hz by '{}'",
        boot.tsc_hz,
        boot.tsc_source
    );
    let mebibytes = boot.memory_bytes >> 20;
    ensure!(
        (100..=128).contains(&mebibytes),
        "{mebibytes} MiB of memory"
    );

    let device = &status.device;
    ensure!(
        device.transport == way.transport().word(),
        "transport '{}'",
        device.transport
    );
    let (id, others, doorbell): (_, &[&str], _) = match way {
        Way::Legacy => ("1af4:1000", &["modern"], "outw 1 -> port 0x"),
        Way::Modern => ("1af4:1000", &["legacy"], "movw 1 -> 0x"),
        Way::ModernPortNotify => ("1af4:1000", &["legacy"], "outw 1 -> port 0x"),
        Way::MmioV1 | Way::MmioV2 => ("virtio-mmio", &[], "movl 1 -> 0x"),
    };
    ensure!(device.id == id, "device '{}'", device.id);
    ensure!(
        device.transport_alternatives == others,
        "other transports: {:?}",
        device.transport_alternatives
    );
    ensure!(
        device.doorbell.starts_with(doorbell),
        "'{}'",
        device.doorbell
    );
    ensure!(device.mac == "52:54:00:4b:50:01", "address {}", device.mac);
    ensure!(device.mtu == 1500, "MTU {}", device.mtu);
    ensure!(device.link_up, "the link is down");
    for feature in ["MAC", "STATUS", "EVENT_IDX", "MRG_RXBUF", "INDIRECT_DESC"] {
        let offered = device.features_offered.iter().any(|name| name == feature);
        ensure!(
            offered,
            "{feature} is not offered: {:?}",
            device.features_offered
        );
    }
    for feature in &device.features_negotiated {
        ensure!(
            device.features_offered.contains(feature),
            "{feature} was never offered"
        );
    }
    for feature in ["MAC", "STATUS", "EVENT_IDX"] {
        let taken = device
            .features_negotiated
            .iter()
            .any(|name| name == feature);
        ensure!(
            taken,
            "{feature} not negotiated: {:?}",
            device.features_negotiated
        );
    }

    let interrupts = &status.interrupts;
    ensure!(
        interrupts.rung == way.first_rung().word(),
        "interrupts: {interrupts:?}"
    );
    let attempts = if way.is_pci() { 1 } else { 3 };
    ensure!(
        interrupts.attempts.len() == attempts,
        "interrupts: {interrupts:?}"
    );

    let offered = lab.queue_sizes(3)?;
    let sizes = status.queues.iter().map(|q| (&*q.name, q.index, q.size));
    let expected = [
        ("receive", 0, offered[0]),
        ("transmit", 1, offered[1]),
        ("control", 2, offered[2]),
    ];
    ensure!(
        sizes.clone().eq(expected),
        "queues: {:?} instead of {expected:?}",
        sizes.collect::<Vec<_>>()
    );
    for queue in &status.queues {
        check_queue(queue)?;
    }

    let network = &status.network;
    ensure!(network.ipv4 == ["10.0.2.15/24"], "{:?}", network.ipv4);
    ensure!(network.ipv4_source == "static", "{}", network.ipv4_source);
    ensure!(
        network.gateway == "10.0.2.2",
        "gateway '{}'",
        network.gateway
    );
    // RFC 4291, appendix A: the address that belongs to the device's.
    let link_local: IpAddr = "fe80::5054:ff:fe4b:5001".parse()?;
    ensure!(lab.ipv6()?.contains(&link_local), "{:?}", network.ipv6);

    let cpu = &status.cpu;
    ensure!(
        cpu.heap_used > 0 && cpu.heap_used < cpu.heap_size && cpu.heap_allocations > 0,
        "{cpu:?}"
    );
    Ok(())
}

/// What is always true of the indices of a ring (specification 2.7).
fn check_queue(queue: &Queue) -> Result<()> {
    let outstanding = queue.avail_idx.wrapping_sub(queue.last_used_idx);
    ensure!(
        outstanding <= queue.size && queue.free <= queue.size,
        "more in the ring than it holds: {queue:?}"
    );
    ensure!(
        queue.used_idx.wrapping_sub(queue.last_used_idx) <= outstanding,
        "the device has used what it was not given: {queue:?}"
    );
    // Commands are given one at a time.
    let room = if queue.name == "control" {
        1
    } else {
        queue.size
    };
    ensure!(
        outstanding + queue.free == room,
        "chains are missing: {queue:?}"
    );
    Ok(())
}

/// The samples of a text in Prometheus' format, every line of which is checked.
fn samples(text: &str) -> Result<HashMap<String, f64>> {
    let mut samples = HashMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("HELP"), Some(_), Some(_)) => {}
                (Some("TYPE"), Some(name), Some("counter" | "gauge")) => family = name.to_owned(),
                _ => anyhow::bail!("metrics: '{line}'"),
            }
            continue;
        }
        let (name, value) = line
            .rsplit_once(' ')
            .with_context(|| format!("metrics: '{line}'"))?;
        let plain = name.split('{').next().unwrap_or_default();
        ensure!(plain == family, "'{line}' in the family {family}");
        let value = value
            .parse()
            .with_context(|| format!("metrics: '{line}'"))?;
        let twice = samples.insert(name.to_owned(), value);
        ensure!(twice.is_none(), "{name} comes twice");
    }
    ensure!(text.ends_with('\n'), "the last line is cut off");
    Ok(samples)
}
