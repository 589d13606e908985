//! The runs, recorded by the command as a person would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use kickpath::trace::Timeline;
use kickpath_abi::status::Status;

use super::{STATUS, TRACE, recorded};
use crate::program::{self, Running, loopback_address};

/// Reports of the status page: enough for its chart to be one.
const REPORTS: u32 = 12;

/// Records a trace and the reports of a guest under traffic into `docs/recorded`.
///
/// # Errors
/// The guest cannot be built or does not come up.
pub fn record() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join(TRACE);
    let name = file.to_str().context("a directory that is no text")?;
    program::run(&["trace", "--accel", "tcg", "--json", name])?;
    let trace: Timeline = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let status = reports()?;
    std::fs::create_dir_all(recorded(""))?;
    std::fs::write(recorded(TRACE), serde_json::to_string(&trace)? + "\n")?;
    std::fs::write(recorded(STATUS), serde_json::to_string(&status)? + "\n")?;
    Ok(())
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
