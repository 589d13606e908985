//! The runs, recorded by the command as a person would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use kickpath::trace::Timeline;
use kickpath_abi::status::Status;

use super::{OUTPUTS, STATUS, TRACES, recorded, workspace};
use crate::program::{self, Running, loopback_address};

/// Reports of the status page: enough for its chart to be one.
const REPORTS: u32 = 12;

/// Records every run into `docs/recorded`; `tell` hears of each. What this machine cannot trace
/// stays as another has recorded it.
///
/// # Errors
/// The guest cannot be built or does not come up.
pub fn record(mut tell: impl FnMut(&str)) -> Result<()> {
    std::fs::create_dir_all(recorded(""))?;
    for (number, (name, arguments)) in TRACES.into_iter().enumerate() {
        tell(&format!("Recording {arguments}"));
        match trace(arguments) {
            Ok(mut trace) => {
                if number > 0 {
                    shorten(&mut trace);
                }
                write(&format!("{name}.json"), &serde_json::to_string(&trace)?)?;
            }
            Err(error) if number > 0 => tell(&format!("Not here, so the old one stays: {error}")),
            Err(error) => return Err(error),
        }
    }
    for (name, arguments) in OUTPUTS {
        tell(&format!("Recording {arguments}"));
        let arguments: Vec<_> = arguments.split(' ').collect();
        // Where the project lies is nobody's business.
        let top = format!("{}/", workspace().canonicalize()?.display());
        let text = program::run(&arguments)?.replace(&top, "");
        write(&format!("{name}.txt"), text.trim())?;
    }
    tell("Recording the status page under traffic");
    write(STATUS, &serde_json::to_string(&reports()?)?)
}

fn write(name: &str, text: &str) -> Result<()> {
    Ok(std::fs::write(recorded(name), text.to_owned() + "\n")?)
}

fn trace(arguments: &str) -> Result<Timeline> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("trace.json");
    let name = file.to_str().context("a directory that is no text")?;
    let words = arguments.split(' ').chain(["--json", name]);
    program::run(&words.collect::<Vec<_>>())?;
    Ok(serde_json::from_str(&std::fs::read_to_string(&file)?)?)
}

/// Leaves out what only a page shows.
fn shorten(trace: &mut Timeline) {
    for step in &mut trace.steps {
        step.snapshot = None;
        if let Some(source) = &mut step.source {
            source.excerpt = None;
        }
    }
}

fn reports() -> Result<Vec<Status>> {
    let mut serving = Running::start(&["serve", "--http-port", "18091", "--echo-port", "17018"])?;
    let web = loopback_address(&serving.line_with("http://127.0.0.1:")?, "127.0.0.1:")?;
    let echo = loopback_address(&serving.line_with("UDP and TCP")?, "127.0.0.1:")?;
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = [0; 1472];
    (0..REPORTS)
        .map(|second| {
            // Sometimes more, sometimes less, several on their way at a time.
            let bursts = 4 + second * 5 % 7;
            for _ in 0..bursts {
                for _ in 0..8 {
                    socket.send_to(&[0x5a; 1400], echo)?;
                }
                for _ in 0..8 {
                    socket.recv(&mut buffer)?;
                }
            }
            std::thread::sleep(Duration::from_secs(1));
            report(web)
        })
        .collect()
}

fn report(web: SocketAddr) -> Result<Status> {
    let mut stream = TcpStream::connect(web)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /stats.json HTTP/1.0\r\nHost: guest\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(serde_json::from_str(body)?)
}
