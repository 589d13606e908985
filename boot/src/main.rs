//! The `kickpath` command: reads the command line and calls the library.

mod cli;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use kickpath::bench;
use kickpath::command::Progress;
use kickpath::compare;
use kickpath::doctor;
use kickpath::guest::Cause;
use kickpath::image::{self, ImageOptions};
use kickpath::interrupt;
use kickpath::qemu::{self, Boot, Net};
use kickpath::session::{Prepared, SessionError};
use kickpath::terminal::{Story, Ticker};
use kickpath::toolchain::{self, BuildOptions};
use kickpath::{run, serve, trace};

use cli::{
    BenchArgs, Cli, Command, CompareArgs, DoctorArgs, ImageArgs, RunArgs, ServeArgs, TraceArgs,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::set_logger(&Warnings).expect("the first and only logger");
    log::set_max_level(log::LevelFilter::Warn);
    let result = interrupt::install()
        .map_err(|error| anyhow::anyhow!("cannot take over signals: {error}"))
        .and_then(|()| match cli.command.unwrap_or(Command::Run(cli.run)) {
            Command::Run(args) => run_command(&args),
            Command::Serve(args) => serve_command(&args),
            Command::Bench(args) => bench_command(&args),
            Command::Trace(args) => trace_command(&args),
            Command::Compare(args) => compare_command(&args),
            Command::Image(args) => image_command(&args),
            Command::Doctor(args) => doctor_command(&args),
        });
    match result {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

/// Says what went wrong, and what the exit status is.
fn report(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<SessionError>() {
        // Whoever reads us has seen enough (`| head`).
        Some(SessionError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::FAILURE;
        }
        Some(SessionError::Guest(failure)) if matches!(failure.cause, Cause::Interrupted) => {
            anstream::eprintln!("\nInterrupted. QEMU has ended.");
            return ExitCode::from(interrupt::EXIT_STATUS);
        }
        _ if interrupt::requested() => return ExitCode::from(interrupt::EXIT_STATUS),
        _ => {}
    }
    let style = anstyle::AnsiColor::Red.on_default().bold();
    anstream::eprintln!("{style}error:{style:#} {error}");
    ExitCode::FAILURE
}

fn run_command(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let settings = args.machine.settings();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.machine.dry_run {
        settings.check_with(args.net)?;
        let mut prepared = settings.prepare(true, &mut sink)?;
        let net = run::dry_run_net(&prepared, args.net)?;
        return Ok(print_command_line(&mut prepared, net));
    }
    let story = &mut Story::stdout();
    let story = (!args.json).then_some(story);
    let result = run::run(&settings, args.net, story, &mut sink);
    if args.json {
        return print_json(result, |report| report.ok);
    }
    result?;
    Ok(ExitCode::SUCCESS)
}

fn serve_command(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let settings = args.machine.settings();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.machine.dry_run {
        settings.check_with(serve::NET)?;
        let mut prepared = settings.prepare(true, &mut sink)?;
        let net = serve::dry_run_net(&prepared, args.options())?;
        return Ok(print_command_line(&mut prepared, net));
    }
    serve::serve(&settings, args.options(), &mut Story::stdout(), &mut sink)?;
    Ok(ExitCode::SUCCESS)
}

fn bench_command(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let settings = args.machine.settings();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.machine.dry_run {
        let mut prepared = bench::prepare(&settings, true, &mut sink)?;
        let net = run::dry_run_net(&prepared, Default::default())?;
        prepared.attach(net.clone());
        bench::without_ioeventfd(&mut prepared.machine);
        anstream::println!("{}", prepared.machine.command_line());
        return Ok(ExitCode::SUCCESS);
    }
    let story = &mut Story::stdout();
    let story = (!args.json).then_some(story);
    let result = bench::bench(&settings, args.options(), story, &mut sink);
    if args.json {
        return print_json(result, |report| report.ok);
    }
    Ok(if result?.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Succeeds where every layer tells the same story.
fn trace_command(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let settings = args.machine.settings();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.machine.dry_run {
        settings.check_with(trace::NET)?;
        let mut prepared = settings.prepare(true, &mut sink)?;
        let net = run::dry_run_net(&prepared, trace::NET)?;
        return Ok(print_command_line(&mut prepared, net));
    }
    let outputs = [&args.json, &args.html, &args.perfetto, &args.recording];
    check_places(outputs.into_iter().flatten())?;
    let (prepared, recording) = trace::record(&settings, &mut sink)?;
    if let Some(file) = &args.recording {
        write_output(file, &serde_json::to_string(&recording)?)?;
    }
    let timeline = trace::timeline(&prepared, &recording).map_err(SessionError::from)?;
    drop(ticker);
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&timeline)?;
        write_output(file, &json)?;
    }
    if let Some(file) = &args.html {
        // What made it is told as a person would type it.
        let words: Vec<String> = std::env::args_os()
            .skip(1)
            .map(|word| qemu::quote(&word))
            .collect();
        let command = format!("cargo run -- {}", words.join(" "));
        write_output(file, &trace::html::render(&timeline, &command)?)?;
    }
    if let Some(file) = &args.perfetto {
        write_output(file, &trace::perfetto::render(&timeline).to_string())?;
    }
    if !to_stdout {
        trace::text::print(&mut Story::stdout(), &timeline).map_err(SessionError::Output)?;
    }
    Ok(if timeline.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn compare_command(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let settings = args.machine.settings();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.machine.dry_run {
        for line in compare::dry_run(&settings, &mut sink)? {
            anstream::println!("{line}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    check_places(&args.html)?;
    let story = &mut Story::stdout();
    let story = (!args.json).then_some(story);
    let result = compare::compare(&settings, args.echoes, story, &mut sink);
    let page = match (&result, &args.html) {
        (Ok(report), Some(_)) => Some(compare::html::page(report)?),
        _ => None,
    };
    let code = if args.json {
        print_json(result, |report| !report.rows.is_empty())?
    } else {
        result?;
        ExitCode::SUCCESS
    };
    // Last: a file that cannot be written takes nothing else along.
    if let (Some(page), Some(file)) = (page, &args.html) {
        write_output(file, &page)?;
    }
    Ok(code)
}

/// Whether these files can be where they are wanted. Said before the work
/// whose result they are to hold.
fn check_places<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), SessionError> {
    for file in files {
        let directory = match file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let problem = if file.is_dir() {
            io::ErrorKind::IsADirectory
        } else if !directory.is_dir() {
            io::ErrorKind::NotADirectory
        } else {
            continue;
        };
        return Err(SessionError::System {
            what: format!("write {}", file.display()),
            source: problem.into(),
        });
    }
    Ok(())
}

/// Writes a file, or the standard output for `-`.
fn write_output(file: &Path, text: &str) -> Result<(), SessionError> {
    if file == Path::new("-") {
        let mut out = anstream::stdout();
        return io::Write::write_all(&mut out, text.as_bytes())
            .and_then(|()| io::Write::write_all(&mut out, b"\n"))
            .map_err(SessionError::Output);
    }
    std::fs::write(file, text).map_err(|source| SessionError::System {
        what: format!("write {}", file.display()),
        source,
    })
}

fn image_command(args: &ImageArgs) -> anyhow::Result<ExitCode> {
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    check_places([&args.bios, &args.uefi].into_iter().flatten())?;
    let options = BuildOptions::from_env(args.policy())?;
    let kernel = match &args.kernel {
        Some(kernel) if kernel.is_file() => kernel.clone(),
        Some(kernel) => {
            let (option, file) = ("--kernel", kernel.clone());
            return Err(SessionError::NoFile { option, file }.into());
        }
        None => toolchain::build_kernel(&options, &mut sink)?,
    };
    let images = ImageOptions {
        bios: args.bios.clone(),
        uefi: args.uefi.clone(),
    };
    image::build_images(&kernel, &images, &options, &mut sink)?;
    drop(ticker);
    for file in [&args.bios, &args.uefi].into_iter().flatten() {
        let file = file.display();
        anstream::println!("Made {file}; boot it with: cargo run -- --image {file}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Succeeds where `run` has all it needs.
fn doctor_command(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = doctor::examine(args.qemu.as_deref());
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        anstream::print!("{report}");
    }
    Ok(if report.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_command_line(prepared: &mut Prepared, net: Net) -> ExitCode {
    let hint = match &net {
        Net::Dgram { .. } => {
            "Nobody is at the far end of this cable when the line is pasted; \
             `--net user` makes one that this machine's programs can reach."
        }
        Net::TapName { .. } => "Paste this where a tap device of this name exists.",
        Net::User { .. } | Net::TapFds(_) => "",
    };
    prepared.attach(net);
    anstream::println!("{}", prepared.machine.command_line());
    if let Boot::Kernel(kernel) = &prepared.machine.boot
        && !kernel.is_file()
    {
        anstream::eprintln!("# The guest is not built yet: `cargo run` builds it.");
    }
    if !hint.is_empty() {
        anstream::eprintln!("# {hint}");
    }
    ExitCode::SUCCESS
}

/// One JSON object, whatever happened.
fn print_json<T: serde::Serialize>(
    result: Result<T, SessionError>,
    ok: impl Fn(&T) -> bool,
) -> anyhow::Result<ExitCode> {
    let (good, json) = match &result {
        Ok(report) => (ok(report), serde_json::to_string_pretty(report)?),
        Err(error) => {
            let object = serde_json::json!({ "ok": false, "failures": [error.to_string()] });
            (false, serde_json::to_string_pretty(&object)?)
        }
    };
    let mut out = anstream::stdout();
    io::Write::write_all(&mut out, json.as_bytes())
        .and_then(|()| io::Write::write_all(&mut out, b"\n"))
        .map_err(SessionError::Output)?;
    let interrupted = interrupt::requested();
    Ok(match (good, interrupted) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => ExitCode::from(interrupt::EXIT_STATUS),
        (false, false) => ExitCode::FAILURE,
    })
}

/// Shows the library's warnings on the standard error.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn && metadata.target().starts_with("kickpath")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            anstream::eprintln!("warning: {}", record.args());
        }
    }

    fn flush(&self) {}
}
