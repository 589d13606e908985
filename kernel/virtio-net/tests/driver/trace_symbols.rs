//! Tracing is there with the feature `trace` alone.

use std::fs;

use object::{Object, ObjectSymbol};

/// The record ring and the doorbells that a trace can name. This program has
/// them from the driver's data path, which its other tests run, or not at all.
#[test]
fn symbols_for_traces_are_there_with_the_feature_alone() {
    let image = fs::read(std::env::current_exe().unwrap()).unwrap();
    let file = object::File::parse(&*image).unwrap();
    let names: Vec<&str> = file.symbols().filter_map(|s| s.name().ok()).collect();
    assert!(names.iter().any(|name| name.contains("virtio_net")));
    let of_traces = |name: &&&str| {
        let doorbells = ["vp_notify_mmio", "vm_notify", "vp_notify_with_data"];
        name.contains("kickpath_trace")
            || name.contains("KICKPATH_TRACE")
            || doorbells.contains(name)
    };
    let found: Vec<_> = names.iter().filter(of_traces).collect();
    if cfg!(feature = "trace") {
        assert!(found.contains(&&"KICKPATH_TRACE_RING"), "{found:?}");
        assert!(found.contains(&&"vp_notify_mmio"), "{found:?}");
    } else {
        assert_eq!(found, [] as [&&str; 0]);
    }
}
