//! The `kickpath` command: reads the command line and calls the library.

mod cli;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kickpath::accel::AccelChoice;
use kickpath::bench;
use kickpath::bench::baseline::{self, Baseline, Counted};
use kickpath::command::{Progress, Sink};
use kickpath::compare;
use kickpath::doctor;
use kickpath::gallery;
use kickpath::guest::Cause;
use kickpath::image::{self, Images};
use kickpath::interrupt;
use kickpath::lang::Lang;
use kickpath::linux::{self, Linux};
use kickpath::nested::{self, NestedError};
use kickpath::output::Output;
use kickpath::qemu::{self, Boot, Net, Vmm};
use kickpath::session::{Mismatch, NetChoice, Prepared, SessionError, Settings};
use kickpath::terminal::{Story, Ticker};
use kickpath::toolchain::{self, BuildOptions, Kernel};
use kickpath::{lab, run, serve, soak, trace, vmm};

use cli::{
    BenchArgs, Cli, Command, CompareArgs, DoctorArgs, GalleryArgs, GuestArg, ImageArgs, LabArgs,
    LabCheckArgs, LabCommand, LabRingArgs, LabRunArgs, RunArgs, ServeArgs, SoakArgs, TraceArgs,
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
            Command::Soak(args) => soak_command(&args),
            Command::Lab(args) => lab_command(&args),
            Command::Gallery(args) => gallery_command(&args),
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
            anstream::eprintln!("\nInterrupted. {} has ended.", failure.vmm);
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
    let settings = args.vmm.settings(&args.machine);
    let choice = args.net();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if settings.accel == AccelChoice::Nested {
        let words = words_for_nested(args.machine.dry_run)?;
        let status = nested::run(&settings, args.net(), args.json, &words, &mut sink)?;
        settings.keep_pcap(Ok(()))?;
        return Ok(ExitCode::from(status));
    }
    if args.machine.dry_run {
        settings.check_with(choice)?;
        let mut prepared = settings.prepare(true, &mut sink)?;
        let net = run::dry_run_net(&prepared, choice)?;
        return print_command_line(&mut prepared, net);
    }
    let story = &mut Story::stdout();
    let story = (!args.json).then_some(story);
    let result = run::run(&settings, choice, story, &mut sink);
    let result = settings.keep_pcap(result);
    if args.json {
        return print_json(result, |report| report.ok);
    }
    result?;
    Ok(ExitCode::SUCCESS)
}

fn serve_command(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let settings = args.vmm.settings(&args.machine);
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.machine.dry_run {
        settings.check_with(serve::net(settings.vmm))?;
        let mut prepared = settings.prepare(true, &mut sink)?;
        let net = serve::dry_run_net(&prepared, args.options())?;
        return print_command_line(&mut prepared, net);
    }
    let result = serve::serve(&settings, args.options(), &mut Story::stdout(), &mut sink);
    settings.keep_pcap(result)?;
    Ok(ExitCode::SUCCESS)
}

fn bench_command(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let settings = args.vmm.settings(&args.machine);
    let on_kvm = settings.asks_for_kvm();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.guest == GuestArg::Linux {
        let options = args.linux_options().map_err(SessionError::from)?;
        let mut story = (!args.json).then(Story::stdout);
        let result = bench::linux::bench(&settings, options, story.as_mut(), &mut sink);
        let result = settings.keep_pcap(result);
        if args.json {
            return print_json(result, |_| true);
        }
        result?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.machine.dry_run {
        let mut prepared = bench::prepare(&settings, true, &mut sink)?;
        let choice = match on_kvm {
            true => NetChoice::Tap,
            false => NetChoice::Dgram,
        };
        let net = run::dry_run_net(&prepared, choice)?;
        prepared.attach(net.clone());
        if !on_kvm {
            bench::without_ioeventfd(&mut prepared.machine);
        }
        print(&(vmm::command_line(&prepared.machine) + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = args.options();
    match on_kvm {
        true => bench_with(args, &settings, &mut sink, |story, sink| {
            bench::on_kvm::bench(&settings, &options, story, sink)
        }),
        false => bench_with(args, &settings, &mut sink, |story, sink| {
            bench::bench(&settings, &options, story, sink)
        }),
    }
}

/// Measures, and keeps and compares the counts as the options say.
fn bench_with<R: Counted>(
    args: &BenchArgs,
    settings: &Settings,
    sink: &mut Sink<'_>,
    bench: impl FnOnce(Option<&mut Story<anstream::Stdout>>, &mut Sink<'_>) -> Result<R, SessionError>,
) -> anyhow::Result<ExitCode> {
    // Before the work.
    let machine = baseline::machine(settings);
    let before = args.baseline.as_deref();
    let before = before
        .map(|file| Baseline::read(file, &machine))
        .transpose()?;
    let saved = Written::begin(args.save.as_deref())?;
    let mut story = (!args.json).then(Story::stdout);
    let mut result = settings.keep_pcap(bench(story.as_mut(), sink));
    if let Ok(report) = &mut result {
        let compiler = guest_compiler(settings, sink)?;
        saved.end(|| Ok(Baseline::of(report, machine, compiler).to_json()?))?;
        if let Some(before) = before {
            let comparison = before.compare(report, args.tolerance);
            if let Some(story) = &mut story {
                let told = comparison.tell(R::WHAT, story);
                told.map_err(SessionError::Output)?;
            }
            report.put_beside(comparison);
        }
    }
    if args.json {
        return print_json(result, Counted::is_ok);
    }
    Ok(if result?.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Compares two traces that are in files.
fn diff_command(files: &[PathBuf], args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let [a, b] = files else {
        unreachable!("the command line takes two files");
    };
    // Nothing is waited for that may never come.
    for file in [a, b] {
        SessionError::check_file("--diff", file)?;
    }
    let json = Written::begin(args.json.as_deref())?;
    let html = Written::begin(args.html.as_deref())?;
    let (first, second) = (trace::diff::read(a)?, trace::diff::read(b)?);
    let diff = trace::diff::diff((a, &first), (b, &second))?;
    let to_stdout = matches!(json, Written::StandardOutput);
    json.end(|| Ok(serde_json::to_string_pretty(&diff)?))?;
    let page = trace::diff::page(&diff, &first, &second, &own_command());
    html.end(|| Ok(args.lang.page(page)))?;
    if !to_stdout {
        let story = &mut Story::stdout().in_language(args.lang);
        trace::diff::print(story, &diff, &first, &second).map_err(SessionError::Output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// This command, as a person would type it.
fn own_command() -> String {
    let words = std::env::args_os().skip(1);
    let words: Vec<String> = words.map(|word| qemu::quote(&word)).collect();
    format!("cargo run -- {}", words.join(" "))
}

/// The version of the compiler that has built the guest, unless another guest was named.
fn guest_compiler(settings: &Settings, sink: &mut Sink<'_>) -> anyhow::Result<Option<String>> {
    if settings.kernel.is_some() || settings.image.is_some() {
        return Ok(None);
    }
    let toolchain = toolchain::complete(&BuildOptions::from_env(settings.policy)?, sink)?;
    Ok(Some(toolchain.version.to_string()))
}

/// Succeeds where every layer tells the same story.
fn trace_command(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    if let Some(files) = &args.diff {
        return diff_command(files, args);
    }
    let settings = args.vmm.settings(&args.machine);
    let net = args.net();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    let is_nested = settings.accel == AccelChoice::Nested;
    let is_linux = args.guest == GuestArg::Linux;
    match args.guest {
        GuestArg::Linux => trace::linux::check(&settings, net),
        GuestArg::Kickpath => trace::cable::check(&settings, net),
    }
    .map_err(SessionError::from)?;
    if args.machine.dry_run && !is_nested {
        if is_linux {
            let option = "--dry-run";
            let why = "what --guest linux boots is made anew for every run, and goes with it";
            return Err(Mismatch::Decided { option, why }.into());
        }
        let mut prepared = settings.prepare(true, &mut sink)?;
        let net = run::dry_run_net(&prepared, net)?;
        return print_command_line(&mut prepared, net);
    }
    if args.gdb {
        drop(ticker);
        return gdb_command(&settings, args);
    }
    // Before the work whose result they are to hold.
    let json = Written::begin(args.json.as_deref())?;
    let html = Written::begin(args.html.as_deref())?;
    let perfetto = Written::begin(args.perfetto.as_deref())?;
    let recorded = Written::begin(args.recording.as_deref())?;
    let (boot, recording) = if is_nested {
        let words = words_for_nested(args.machine.dry_run)?;
        let linux = is_linux.then(|| Linux::get(linux::GUEST, settings.policy, &mut sink));
        let linux = linux.transpose().map_err(SessionError::from)?;
        let recorded = nested::record(&settings, net, linux.as_ref(), &words, &mut sink)?;
        settings.keep_pcap(Ok(()))?;
        recorded
    } else {
        let result = match is_linux {
            true => trace::linux::record(&settings, &mut sink),
            false => trace::record(&settings, net, &mut sink),
        };
        let (prepared, recording) = settings.keep_pcap(result)?;
        (prepared.executable(), recording)
    };
    recorded.end(|| Ok(serde_json::to_string(&recording)?))?;
    let timeline = trace::timeline(&boot, &recording).map_err(SessionError::from)?;
    drop(ticker);
    let to_stdout = matches!(json, Written::StandardOutput);
    json.end(|| Ok(serde_json::to_string_pretty(&timeline)?))?;
    html.end(|| {
        Ok(args
            .lang
            .page(trace::html::render(&timeline, &own_command())?))
    })?;
    perfetto.end(|| Ok(trace::perfetto::render(&timeline).to_string()))?;
    if !to_stdout {
        let story = &mut Story::stdout().in_language(args.lang);
        trace::text::print(story, &timeline).map_err(SessionError::Output)?;
    }
    Ok(if timeline.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Stops the guest before its kick. Succeeds where the debugger did as it was told.
fn gdb_command(settings: &Settings, args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let refuse = |option, why| Err(Mismatch::Decided { option, why }.into());
    if args.guest == GuestArg::Linux {
        return refuse("--guest linux", "--gdb knows where our own guest kicks");
    }
    if settings.accel == AccelChoice::Nested {
        return refuse("--accel nested", "--gdb stops a guest that runs here");
    }
    if settings.vmm != Vmm::Qemu {
        return refuse(
            "--vmm",
            "--gdb takes the server for a debugger that QEMU has",
        );
    }
    let json = Written::begin(args.json.as_deref())?;
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    let mut stopped = trace::gdb::stop(settings, args.net(), &mut sink)?;
    let debugger = stopped.debugger(settings, &mut sink);
    drop(ticker);
    let is_asked =
        matches!(json, Written::Nowhere) && io::stdin().is_terminal() && io::stdout().is_terminal();
    let story = &mut Story::stdout();
    match debugger {
        Ok(debugger) if is_asked => {
            trace::gdb::print(story, &stopped).map_err(SessionError::Output)?;
            stopped.hand_over(debugger)?;
        }
        Ok(debugger) => {
            stopped.ask(&debugger)?;
            if !matches!(json, Written::StandardOutput) {
                trace::gdb::print(story, &stopped).map_err(SessionError::Output)?;
            }
            json.end(|| Ok(serde_json::to_string_pretty(&stopped.walk)?))?;
        }
        // Somebody may have one elsewhere.
        Err(error) if is_asked => {
            trace::gdb::print(story, &stopped).map_err(SessionError::Output)?;
            story.section("To connect").map_err(SessionError::Output)?;
            print(&format!(
                "  {}\n\n{error}\nCtrl-C ends it.\n",
                stopped.walk.connect
            ))?;
            stopped.hold();
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn compare_command(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let settings = args.machine.settings();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.machine.dry_run {
        for line in compare::dry_run(&settings, &mut sink)? {
            print(&(line + "\n"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let story = &mut Story::stdout().in_language(args.lang);
    let story = (!args.json).then_some(story);
    if let Some(vmms) = &args.vmm {
        let report = compare::vmms::compare(&settings, &vmms.0, story, &mut sink);
        if args.json {
            return print_json(report, |report| !report.rows.is_empty());
        }
        return Ok(match report?.rows.is_empty() {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        });
    }
    let html = Written::begin(args.html.as_deref())?;
    let result = compare::compare(&settings, args.echoes, story, &mut sink);
    let result = settings.keep_pcap(result);
    let page = result.as_ref().ok().map(compare::html::page);
    let code = if args.json {
        print_json(result, |report| !report.rows.is_empty())?
    } else {
        result?;
        ExitCode::SUCCESS
    };
    // Last: a file that cannot be written takes nothing else along.
    if let Some(page) = page {
        html.end(|| Ok(args.lang.page(page?)))?;
    }
    Ok(code)
}

/// The arguments of this program, for the same command inside.
fn words_for_nested(dry_run: bool) -> anyhow::Result<Vec<OsString>> {
    if dry_run {
        return Err(NestedError::DryRun.into());
    }
    Ok(std::env::args_os().skip(1).collect())
}

/// Succeeds where nothing deviated.
fn soak_command(args: &SoakArgs) -> anyhow::Result<ExitCode> {
    let settings = args.machine.settings();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    if args.machine.dry_run {
        settings.check_with(soak::NET)?;
        let mut prepared = settings.prepare(true, &mut sink)?;
        let net = run::dry_run_net(&prepared, soak::NET)?;
        return print_command_line(&mut prepared, net);
    }
    let html = Written::begin(args.html.as_deref())?;
    let length = Duration::from_secs(60 * u64::from(args.minutes));
    let story = &mut Story::stdout().in_language(args.lang);
    let story = (!args.json).then_some(story);
    let result = soak::soak(&settings, length, story, &mut sink);
    let result = settings.keep_pcap(result);
    let page = result.as_ref().ok().map(soak::html::page);
    let code = if args.json {
        print_json(result, |report| report.ok)?
    } else {
        match result?.ok {
            true => ExitCode::SUCCESS,
            // What was found until then has been told.
            false if interrupt::requested() => ExitCode::from(interrupt::EXIT_STATUS),
            false => ExitCode::FAILURE,
        }
    };
    if let Some(page) = page {
        html.end(|| Ok(args.lang.page(page)))?;
    }
    Ok(code)
}

fn lab_command(args: &LabArgs) -> anyhow::Result<ExitCode> {
    let lang = args.lang;
    match &args.command {
        None => {
            lab::list(&mut Story::stdout().in_language(lang)).map_err(SessionError::Output)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(LabCommand::Run(args)) => lab_run_command(args, lang),
        Some(LabCommand::Check(args)) => lab_check_command(args, lang),
        Some(LabCommand::Ring(args)) => lab_ring_command(args, lang),
    }
}

/// Succeeds where the experiments have an outcome, whatever it is.
fn lab_run_command(args: &LabRunArgs, lang: Lang) -> anyhow::Result<ExitCode> {
    let experiments = lab::find(&args.experiment)?;
    let html = Written::begin(args.html.as_deref())?;
    let story = &mut Story::stdout().in_language(lang);
    let options = args.machine.options();
    let is_asked = args.predict.is_none()
        && experiments.len() == 1
        && !args.machine.json
        && io::stdin().is_terminal()
        && io::stdout().is_terminal();
    let predicted = match experiments.first() {
        Some(experiment) if is_asked => lab::ask(story, experiment, &mut io::stdin().lock())?,
        _ => args.predict,
    };
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    let kernel = lab::build(None, options.policy, &mut sink)?;
    let mut reports = Vec::new();
    for experiment in experiments {
        let report = lab::run(experiment, predicted, &kernel.file, &options, &mut sink)?;
        if !args.machine.json {
            lab::tell(story, &report).map_err(SessionError::Output)?;
        }
        reports.push(report);
    }
    if args.machine.json {
        print(&(serde_json::to_string_pretty(&reports)? + "\n"))?;
    }
    html.end(|| Ok(lang.page(lab::page(&reports))))?;
    Ok(ExitCode::SUCCESS)
}

/// Succeeds where the student's change puts it right.
fn lab_check_command(args: &LabCheckArgs, lang: Lang) -> anyhow::Result<ExitCode> {
    let experiments = lab::find(&args.experiment)?;
    let story = &mut Story::stdout().in_language(lang);
    let options = args.machine.options();
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    let kernel = lab::build(args.patch.as_deref(), options.policy, &mut sink)?;
    let mut all = Vec::new();
    for experiment in experiments {
        let checked = lab::check(experiment, &kernel.file, &options, &mut sink)?;
        if !args.machine.json {
            lab::tell_check(story, &checked).map_err(SessionError::Output)?;
        }
        all.push(checked);
    }
    if args.machine.json {
        print(&(serde_json::to_string_pretty(&all)? + "\n"))?;
    }
    Ok(match all.iter().all(|checked| checked.ok) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Builds the driver's queue for a browser, and puts it into a page.
fn lab_ring_command(args: &LabRingArgs, lang: Lang) -> anyhow::Result<ExitCode> {
    let html = Written::begin(Some(&args.html))?;
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    let module = lab::ring::module(args.policy(), &mut sink)?;
    let page = lab::ring::page(&module, &own_command());
    html.end(|| Ok(lang.page(page)))?;
    Ok(ExitCode::SUCCESS)
}

/// Where a result goes that was asked for.
enum Written {
    Nowhere,
    StandardOutput,
    File(Output),
}

impl Written {
    /// For a file that a command line names, or the standard output for `-`.
    fn begin(file: Option<&Path>) -> Result<Self, SessionError> {
        Ok(match file {
            None => Self::Nowhere,
            Some(file) if file == Path::new("-") => Self::StandardOutput,
            Some(file) => Self::File(Output::create(file)?),
        })
    }

    /// Makes the text where it is wanted, and writes it.
    fn end(self, text: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
        match self {
            Self::Nowhere => {}
            Self::StandardOutput => print(&(text()? + "\n"))?,
            Self::File(output) => output
                .write(text()?.as_bytes())
                .map_err(SessionError::from)?,
        }
        Ok(())
    }
}

/// Writes to the standard output, which may be closed or full.
fn print(text: &str) -> Result<(), SessionError> {
    let mut out = anstream::stdout();
    let printed = io::Write::write_all(&mut out, text.as_bytes());
    printed
        .and_then(|()| io::Write::flush(&mut out))
        .map_err(SessionError::Output)
}

/// Succeeds where all that this machine can record was recorded.
fn gallery_command(args: &GalleryArgs) -> anyhow::Result<ExitCode> {
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    let (directory, settings) = (&args.directory, args.settings());
    let report = gallery::make(directory, &args.only, &settings, &mut sink)?;
    drop(ticker);
    if args.json {
        print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        gallery::tell(&mut Story::stdout(), directory, &report).map_err(SessionError::Output)?;
    }
    Ok(match report.ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn image_command(args: &ImageArgs) -> anyhow::Result<ExitCode> {
    let mut ticker = Ticker::new();
    let mut sink = |progress: Progress<'_>| ticker.show(progress);
    // Before the work whose result they are to hold.
    let begin = |file: &Option<PathBuf>| -> Result<_, SessionError> {
        Ok(file.as_deref().map(Output::create).transpose()?)
    };
    let images = Images {
        bios: begin(&args.bios)?,
        uefi: begin(&args.uefi)?,
        bzimage: begin(&args.bzimage)?,
    };
    let options = BuildOptions::from_env(args.policy())?;
    let kernel = match &args.kernel {
        Some(kernel) => {
            SessionError::check_file("--kernel", kernel)?;
            kernel.clone()
        }
        None => toolchain::build_kernel(Kernel::Plain, &options, &mut sink)?,
    };
    image::build_images(&kernel, images, &options, &mut sink)?;
    drop(ticker);
    for file in [&args.bios, &args.uefi].into_iter().flatten() {
        let file = file.display();
        print(&format!(
            "Made {file}; boot it with: cargo run -- --image {file}\n"
        ))?;
    }
    if let Some(file) = &args.bzimage {
        let file = file.display();
        print(&format!(
            "Made {file}; boot it with: cargo run -- --kernel {file}\n"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Succeeds where `run` has all it needs.
fn doctor_command(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = doctor::examine(args.qemu.as_deref());
    if args.json {
        print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        print(&report.to_string())?;
    }
    Ok(if report.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_command_line(prepared: &mut Prepared, net: Net) -> anyhow::Result<ExitCode> {
    let hint = match &net {
        Net::Dgram { .. } => {
            "Nobody is at the far end of this cable when the line is pasted; \
             `--net user` makes one that this machine's programs can reach."
        }
        Net::TapName { .. } => "Paste this where a tap device of this name exists.",
        Net::User { .. } | Net::TapFds(_) => "",
    };
    prepared.attach(net);
    print(&(vmm::command_line(&prepared.machine) + "\n"))?;
    if let Boot::Kernel(kernel) = &prepared.machine.boot
        && !kernel.is_file()
    {
        anstream::eprintln!("# The guest is not built yet: `cargo run` builds it.");
    }
    if !hint.is_empty() {
        anstream::eprintln!("# {hint}");
    }
    Ok(ExitCode::SUCCESS)
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
    print(&(json + "\n"))?;
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
