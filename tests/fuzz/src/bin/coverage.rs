//! One target under libFuzzer; `.ci/fuzz` builds and runs it. The target's name is in
//! the environment: libFuzzer has the command line.
#![no_main]

use std::sync::OnceLock;

use kickpath_fuzz::Target;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("KICKPATH_FUZZ").unwrap_or_default();
        let all = Target::ALL.iter().copied();
        all.clone()
            .find(|target| target.name() == name)
            .unwrap_or_else(|| panic!("KICKPATH_FUZZ is one of {:?}", all.map(Target::name)))
    });
    target.run(data);
});
