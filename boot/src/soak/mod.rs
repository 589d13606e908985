//! `kickpath soak`: everything that a network and a host do, in turn and for as long as is asked,
//! and at the end a verdict: every reply intact, every reset survived, and the guest as it was at
//! its start.

pub mod html;
mod malformed;
mod report;
mod sample;
mod work;

use std::io::Write;
use std::time::{Duration, Instant};

use crate::command::{Progress, Sink};
use crate::guest::migration::Mover;
use crate::interrupt;
use crate::session::{NetChoice, SessionError, Settings};
use crate::terminal::Story;
use crate::wire::FarEnd;

pub use report::{Report, Tally};
pub use sample::Sample;
use work::{KINDS, Soaked};

/// The far end: frames of our own making go there, and its cable moves with the guest.
pub const NET: NetChoice = NetChoice::Dgram;

/// Deviations that are kept word by word; the others are counted.
const TOLD: usize = 20;

/// A sample a second is enough for a picture of an hour.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Soaks a guest for so long; tells `story`, where there is one, how it goes.
///
/// # Errors
/// The guest does not come up, or comes to an end. Every other deviation is in the report.
pub fn soak<W: Write>(
    settings: &Settings,
    length: Duration,
    mut story: Option<&mut Story<W>>,
    sink: &mut Sink<'_>,
) -> Result<Report, SessionError> {
    settings.check_with(NET)?;
    let settings = Settings {
        // With one QEMU kicks itself when the machine goes on after a stop, and none is lost.
        ioeventfd: settings.ioeventfd.or(Some(false)),
        ..settings.clone()
    };
    let mut prepared = settings.prepare(false, sink)?;
    let peer = prepared.connect_peer()?;
    let mut guest = prepared.launch()?;
    guest.attach_frames(peer.frame_log());
    let up = prepared.wait_until_up(&guest, &peer)?;
    let wrong = |error: anyhow::Error| SessionError::System {
        what: "prepare to move the guest".into(),
        source: std::io::Error::other(format!("{error:#}")),
    };
    let mover = Mover::new(&prepared.machine).map_err(wrong)?;
    let mut soaked = Soaked::new(guest, peer, mover, &prepared, up.ip());
    let mut report = Report::new(guest_line(&soaked), length);
    if let Some(story) = &mut story {
        story.section("Soak")?;
        story.row("Machine", &report.machine)?;
        story.row("For", &humantime::format_duration(length).to_string())?;
    }
    // Tables and buffers that are made at first need are there before the first look.
    soaked.warm_up();
    report.start = soaked.settled().ok();
    if report.start.is_none() {
        report.deviation("the guest's report at the start: none");
    }
    let began = Instant::now();
    let mut sampled = began;
    let mut kind = 0;
    while began.elapsed() < length && report.is_worth_going_on() {
        let (name, work) = KINDS[kind % KINDS.len()];
        let outcome = work(&mut soaked, kind / KINDS.len());
        if interrupt::requested() {
            break;
        }
        if let Err(failure) = soaked.guest().check() {
            report.deviation(&format!("after {name}: {}", failure.cause));
            break;
        }
        report.add(name, outcome);
        kind += 1;
        if sampled.elapsed() >= SAMPLE_EVERY || kind == KINDS.len() {
            sampled = Instant::now();
            match soaked.sample(began.elapsed()) {
                Ok(sample) => report.samples.push(sample),
                Err(error) => report.deviation(&format!("the guest's report: {error:#}")),
            }
            sink(Progress::Line(&report.line(began.elapsed())));
        }
    }
    report.elapsed_s = began.elapsed().as_secs_f64();
    report.rounds = kind / KINDS.len();
    match soaked.settled() {
        _ if interrupt::requested() => report.deviation("interrupted"),
        Ok(status) => report.compare(&status, &soaked),
        Err(error) => report.deviation(&format!("the guest's report at the end: {error:#}")),
    }
    report.conclude();
    if let Some(story) = &mut story {
        report.tell(story)?;
    }
    Ok(report)
}

/// What is soaked, in a line.
fn guest_line(soaked: &Soaked<'_>) -> String {
    match soaked.status() {
        Ok(status) => format!(
            "{} {}, {} rings, {}",
            status.device.transport,
            status.device.id,
            match soaked.is_packed() {
                true => "packed",
                false => "split",
            },
            soaked.accelerator(),
        ),
        Err(error) => format!("{error:#}"),
    }
}

/// A far end that answers within this is one that works.
fn answers(far: &dyn FarEnd, ip: std::net::IpAddr, bound: Duration) -> bool {
    far.ping(ip, 1, 56, bound)
        .is_ok_and(|report| report.lost() == 0)
}
