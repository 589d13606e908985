//! Text: the kernel's command line, and the report that the runner reads.

use kickpath_abi::config::Config;
use kickpath_abi::status::Status;

/// What is understood is written as it was meant.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut refused = 0;
    let config = Config::parse(&text, |error| {
        // What was wrong can be told.
        refused += error.to_string().len();
    });
    let written = config.to_string();
    let again = Config::parse(&written, |error| panic!("{error} in {written:?}"));
    assert_eq!(again, config, "{written:?}");
    if let Ok(status) = serde_json::from_slice::<Status>(data) {
        let json = serde_json::to_vec(&status).unwrap();
        let again: Status = serde_json::from_slice(&json).unwrap();
        assert_eq!(again, status);
    }
}
