//! Every target, briefly: the committed corpus, and bytes of a fixed seed.
//! `KICKPATH_FUZZ_RUNS` runs more of them, `KICKPATH_SEED` others.

use std::path::Path;

use fastrand::Rng;
use kickpath_fuzz::Target;

const RUNS: u64 = 300;

fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is no number")),
        Err(_) => otherwise,
    }
}

fn run(target: Target) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name());
    let mut inputs: Vec<_> = std::fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    let mut seeds = Vec::new();
    for path in inputs {
        let bytes = std::fs::read(&path).unwrap();
        println!("{}", path.display());
        target.run(&bytes);
        seeds.push(bytes);
    }
    let mut random = Rng::with_seed(number("KICKPATH_SEED", 0x6b69_636b));
    for run in 0..number("KICKPATH_FUZZ_RUNS", RUNS) {
        // One of the corpus with some bytes changed, and behind it others.
        let from = random.usize(..seeds.len());
        let mut bytes = seeds[from].clone();
        for _ in 0..random.u8(..8) {
            if !bytes.is_empty() {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
        }
        let more = random.u8(..64);
        bytes.extend((0..more).map(|_| random.u8(..)));
        let again = bytes.clone();
        let result = std::panic::catch_unwind(move || target.run(&bytes));
        if result.is_err() {
            panic!("{}, run {run}: {again:?}", target.name());
        }
    }
}

macro_rules! targets {
    ($($name:ident => $target:ident,)+) => {
        $(#[test] fn $name() { run(Target::$target); })+
    };
}

targets! {
    ring => Ring,
    device => Device,
    registers => Registers,
    frames => Frames,
    dhcp => Dhcp,
    http => Http,
    words => Words,
    runner => Runner,
    recordings => Recordings,
}
