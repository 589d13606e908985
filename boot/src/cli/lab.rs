//! The command line of `lab`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kickpath::install::{Policy, QEMU_VARIABLE};
use kickpath::lab::{Options, Outcome};
use kickpath::lang::Lang;

use super::policy;

/// Options of `lab`.
#[derive(Args, Debug)]
pub struct LabArgs {
    /// What to do; without it the experiments are listed.
    #[command(subcommand)]
    pub command: Option<LabCommand>,
    /// The language of what explains; names, errors and this help are in English.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub lang: Lang,
}

/// What to do in the laboratory.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Boot the guest without and with a mistake in its driver, and show what comes of it.
    Run(LabRunArgs),
    /// Say whether your change of the sources puts a mistake right (exit status 0), or not.
    Check(LabCheckArgs),
    /// Make a page on which you work both ends of a ring by hand, by the driver's own code.
    Ring(LabRingArgs),
}

/// Options of `lab run`.
#[derive(Args, Debug)]
pub struct LabRunArgs {
    /// The experiment's number or name, or all.
    pub experiment: String,
    /// What you expect: works, costs, late, damaged, caught or lost. On a terminal you are asked.
    #[arg(long, value_name = "OUTCOME")]
    pub predict: Option<Outcome>,
    /// Write a page with the outcomes into this file: it needs nothing else, and no network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub machine: LabMachineArgs,
}

/// Options of `lab check`.
#[derive(Args, Debug)]
pub struct LabCheckArgs {
    /// The experiment's number or name, or all.
    pub experiment: String,
    /// A change of the sources, as `git diff` writes it, applied to a copy; without it the sources
    /// are taken as they are: edit kernel/virtio-net/lab/experiments.rs.
    #[arg(long, value_name = "FILE")]
    pub patch: Option<PathBuf>,
    #[command(flatten)]
    pub machine: LabMachineArgs,
}

/// Options of `lab ring`.
#[derive(Args, Debug)]
pub struct LabRingArgs {
    /// Write the page into this file: it needs nothing else, and no network.
    #[arg(long, value_name = "FILE")]
    pub html: PathBuf,
    /// Install nothing; say what is missing instead.
    #[arg(long)]
    no_install: bool,
}

impl LabRingArgs {
    /// Whether anything may be installed.
    pub fn policy(&self) -> Policy {
        policy(self.no_install)
    }
}

/// What both have.
#[derive(Args, Debug)]
pub struct LabMachineArgs {
    /// Print one JSON array instead of the text.
    #[arg(long)]
    pub json: bool,
    /// The QEMU program; the one on the path if not given.
    #[arg(long, value_name = "PATH", env = QEMU_VARIABLE)]
    qemu: Option<PathBuf>,
    /// Install nothing; say what is missing instead.
    #[arg(long)]
    no_install: bool,
}

impl LabMachineArgs {
    /// For the library.
    pub fn options(&self) -> Options {
        Options {
            qemu: self.qemu.clone(),
            policy: policy(self.no_install),
        }
    }
}
