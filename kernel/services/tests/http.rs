//! The status page, its data, the metrics; junk, slow and greedy clients.

mod common;

use std::collections::{HashMap, HashSet};

use common::*;
use kickpath_abi::status::Status;

/// A response, taken apart.
struct Answer {
    status: u16,
    fields: HashMap<String, String>,
    content: Vec<u8>,
}

/// Takes the first response off `data`; `head_only` when it has no content.
fn split(data: &mut Vec<u8>, head_only: bool) -> Answer {
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(start)) = response.parse(data) else {
        panic!("no response: {:?}", String::from_utf8_lossy(data));
    };
    let status = response.code.unwrap();
    let fields = response.headers.iter().map(|field| {
        let value = String::from_utf8(field.value.to_vec()).unwrap();
        (field.name.to_ascii_lowercase(), value)
    });
    let fields: HashMap<_, _> = fields.collect();
    let length: usize = match head_only {
        true => 0,
        false => fields["content-length"].parse().unwrap(),
    };
    let content = data[start..start + length].to_vec();
    data.drain(..start + length);
    Answer {
        status,
        fields,
        content,
    }
}

/// Sends `request`, which must be answered once, and the connection closed.
fn ask(world: &mut World, request: &[u8]) -> Answer {
    let mut data = world.converse(80, request, 20);
    let answer = split(&mut data, request.starts_with(b"HEAD"));
    assert_eq!(String::from_utf8_lossy(&data), "", "more than an answer");
    assert_eq!(answer.fields["connection"], "close");
    answer
}

fn get(world: &mut World, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n");
    ask(world, request.as_bytes())
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let mut world = World::new();
    let page = get(&mut world, "/?source=readme");
    assert_eq!(page.status, 200);
    assert_eq!(page.fields["content-type"], "text/html; charset=utf-8");
    let text = String::from_utf8(page.content).unwrap();
    assert!(text.starts_with("<!doctype html>"));
    assert!(text.contains("stats.json"));
    let loads = ["src=\"http", "href=\"http", "url(http", "@import"];
    for elsewhere in loads.into_iter().chain(["<link rel=\"style"]) {
        assert!(!text.contains(elsewhere), "{elsewhere}");
    }
    assert!(text.len() < 64 * 1024);
    let head = ask(&mut world, b"HEAD / HTTP/1.0\r\n\r\n");
    assert_eq!(head.fields["content-length"], text.len().to_string());
    assert!(head.content.is_empty());
}

#[test]
fn the_report_is_the_devices_with_our_addresses() {
    let mut world = World::new();
    let answer = get(&mut world, "/stats.json");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.fields["content-type"], "application/json");
    let report: Status = serde_json::from_slice(&answer.content).unwrap();
    let mut network = world.stack.network();
    // That of the report, which is closed now.
    network.tcp_connections += 1;
    assert_eq!(report.network, network);
    assert_eq!(report.network.ipv4, ["10.0.2.15/24"]);
    assert_eq!(report.network.ipv6, ["fe80::5054:ff:fe12:3456/64"]);
    assert_eq!(report.network.gateway, "10.0.2.2");
    assert_eq!(report.network.ipv4_source, "static");
    let mut rest = report;
    rest.network = Default::default();
    assert_eq!(rest, status());
}

/// The rules of the text format 0.0.4, as far as they are about form.
#[test]
fn the_metrics_are_valid() {
    let mut world = World::new();
    let answer = get(&mut world, "/metrics");
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(answer.fields["content-type"], kind);
    let text = String::from_utf8(answer.content).unwrap();
    assert!(text.ends_with('\n'));
    let name = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (mut families, mut series) = (HashSet::new(), HashSet::new());
    let mut help = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().0.to_string();
            assert!(name(&help), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (family, kind) = rest.split_once(' ').unwrap();
            assert_eq!(family, help);
            assert!(matches!(kind, "counter" | "gauge"));
            assert_eq!(kind == "counter", family.ends_with("_total"), "{family}");
            assert!(families.insert(family.to_string()), "twice: {family}");
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            assert!(series.insert(key.to_string()), "twice: {key}");
            let family = key.split('{').next().unwrap();
            assert_eq!(family, help, "sample outside of its family");
            assert!(family.starts_with("kickpath_"));
            let Some(labels) = key.strip_prefix(&format!("{family}{{")) else {
                assert_eq!(key, family);
                continue;
            };
            let mut rest = labels;
            while rest != "}" {
                let (label, value) = rest.split_once("=\"").unwrap();
                assert!(name(label), "{line}");
                // To the closing quote, over what is escaped.
                let mut end = 0;
                while value.as_bytes()[end] != b'"' {
                    if value.as_bytes()[end] == b'\\' {
                        end += 1;
                        assert!(b"\\\"n".contains(&value.as_bytes()[end]), "{line}");
                    }
                    end += 1;
                }
                rest = &value[end + 1..];
                rest = rest.strip_prefix(',').unwrap_or(rest);
            }
        }
    }
    for sample in [
        "kickpath_packets_total{queue=\"receive\"} 42",
        "kickpath_queue_avail_index{queue=\"transmit\",index=\"1\"} 65535",
        "kickpath_queue_kicks_total{queue=\"transmit\",index=\"1\"} 5",
        "kickpath_pair_packets_total{queue=\"rx0\",cpu=\"0\"} 20",
        "kickpath_pair_packets_total{queue=\"rx1\",cpu=\"1\"} 21",
        "kickpath_pair_bytes_total{queue=\"tx1\",cpu=\"1\"} 1000",
        "kickpath_pair_kicks_total{pair=\"1\",cpu=\"1\"} 31",
        "kickpath_each_cpu_idle_cycles_total{cpu=\"1\"} 77",
        "kickpath_boot_stage_end_seconds\
         {stage=\"quote \\\" backslash \\\\ newline \\n\"} 1.234567",
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample}\n{text}");
    }
    assert!(series.len() > 30);
}

#[test]
fn errors() {
    let mut world = World::new();
    assert_eq!(get(&mut world, "/nothing").status, 404);
    assert_eq!(get(&mut world, "http://guest/stats.json").status, 200);
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let post = ask(&mut world, post);
    assert_eq!((post.status, &*post.fields["allow"]), (405, "GET, HEAD"));
    let post = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(ask(&mut world, post).status, 404);
    let newer = b"GET / HTTP/3.0\r\nHost: a\r\n\r\n";
    assert_eq!(ask(&mut world, newer).status, 505);
    for junk in [
        &b"\x16\x03\x01\x00\xc4\x01\x00"[..],
        b"\0\0\0\0",
        b"hello {}\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(ask(&mut world, junk).status, 400, "{junk:?}");
    }
    let (path, cookie) = ("x".repeat(9000), "x".repeat(60_000));
    let fields = "A: b\r\n".repeat(100);
    for long in [
        format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"),
    ] {
        assert_eq!(ask(&mut world, long.as_bytes()).status, 431);
    }
    assert_eq!(get(&mut world, "/").status, 200);
}

#[test]
fn a_connection_serves_many_requests_also_in_one_segment() {
    let mut world = World::new();
    let socket = world.connect((GUEST, 80));
    let mut data = vec![];
    for n in 0..20 {
        let request = if n % 2 == 0 {
            "GET /stats.json HTTP/1.1\r\nHost: guest\r\n\r\n".to_string()
        } else {
            "HEAD / HTTP/1.1\r\nHost: guest\r\n\r\nGET /x HTTP/1.1\r\nHost: guest\r\n\r\n"
                .repeat(40)
        };
        world.send(socket, request.as_bytes());
        for k in 0..if n % 2 == 0 { 1 } else { 80 } {
            let head_only = n % 2 == 1 && k % 2 == 0;
            let answer = world.until(5, |w| {
                data.extend(w.take(socket));
                let whole = data.windows(4).any(|window| window == b"\r\n\r\n");
                // Small ones come whole.
                (whole && (head_only || data.ends_with(b"\n") || data.ends_with(b"}")))
                    .then(|| split(&mut data, head_only))
            });
            let expected = if n % 2 == 0 || head_only { 200 } else { 404 };
            assert_eq!(answer.status, expected);
            assert_eq!(answer.fields["connection"], "keep-alive");
        }
        assert!(data.is_empty());
    }
    // Until the client says so.
    let last = b"GET /metrics HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n";
    world.send(socket, last);
    let mut data = world.read_to_end(socket, 5);
    assert_eq!(split(&mut data, false).status, 200);
    assert!(data.is_empty());
}

#[test]
fn a_request_may_come_byte_by_byte_but_not_for_ever() {
    let mut world = World::new();
    let request = b"GET /nothing HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n";
    let socket = world.connect((GUEST, 80));
    for byte in request {
        world.tcp_socket(socket).send_slice(&[*byte]).unwrap();
        world.run(2);
    }
    let mut data = world.until(1, |w| {
        (!w.tcp_socket(socket).may_recv() || w.tcp_socket(socket).can_recv())
            .then(|| w.take(socket))
    });
    assert_eq!(split(&mut data, false).status, 404);

    // A byte a second: out of time after ten.
    let socket = world.connect((GUEST, 80));
    let mut answer = vec![];
    for byte in request {
        let _ = world.tcp_socket(socket).send_slice(&[*byte]);
        world.run(1000);
        answer.extend(world.take(socket));
    }
    assert_eq!(split(&mut answer, false).status, 408);

    // Nothing at all: closed without a word.
    let socket = world.connect((GUEST, 80));
    world.run(16_000);
    assert!(!world.tcp_socket(socket).may_recv());
    assert!(world.take(socket).is_empty());
}

/// Every place is taken by a client that has its answer and does not stop
/// sending.
#[test]
fn clients_that_go_on_sending_after_the_last_answer_lose_their_places() {
    let mut world = World::new();
    let request = b"GET /nothing HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n";
    let clients: Vec<_> = (0..12).map(|_| world.connect((GUEST, 80))).collect();
    for socket in &clients {
        world.tcp_socket(*socket).send_slice(request).unwrap();
    }
    for _ in 0..60 {
        for socket in &clients {
            world.take(*socket);
            // Refused once the guest has had enough.
            let _ = world.tcp_socket(*socket).send_slice(b"x");
        }
        world.run(100);
    }
    assert_eq!(get(&mut world, "/").status, 200);
    for socket in &clients {
        assert!(!world.tcp_socket(*socket).is_active());
    }
}

#[test]
fn a_client_that_closes_its_half_is_answered() {
    let mut world = World::new();
    let socket = world.connect((GUEST, 80));
    let request = b"GET /stats.json HTTP/1.1\r\nHost: guest\r\n\r\n";
    world.send(socket, request);
    world.tcp_socket(socket).close();
    let mut data = world.read_to_end(socket, 5);
    assert_eq!(split(&mut data, false).status, 200);
}
