//! `kickpath lab ring`: a page on which both ends of a virtqueue are worked by hand. The
//! driver's end is the driver's own code, compiled to WebAssembly and put into the page.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::LabError;
use crate::command::Sink;
use crate::install::Policy;
use crate::toolchain::{self, BuildOptions};
use crate::trace::glossary::{self, Term};
use crate::trace::html;

/// The package that is built (`boot/ring-lab`).
const PACKAGE: &str = "kickpath-ring-lab";

const PAGE: &str = include_str!("ring/ring.html");
const STYLE: &str = include_str!("ring/ring.css");
const SCRIPT: &str = include_str!("ring/ring.js");

/// What the page's scripts are given; those of a trace find a timeline without steps.
#[derive(Serialize)]
struct Data<'a> {
    timeline: Nothing,
    glossary: &'static [Term],
    /// The module, in base 64.
    module: String,
    command: &'a str,
    version: &'static str,
}

#[derive(Default, Serialize)]
struct Nothing {
    steps: [(); 0],
    run: NoRun,
}

/// An object without fields.
#[derive(Default, Serialize)]
struct NoRun {}

/// Builds the module from the sources as they are: its bytes.
///
/// # Errors
/// No toolchain can build it, or none may be had, or it does not compile.
pub fn module(policy: Policy, sink: &mut Sink<'_>) -> Result<Vec<u8>, LabError> {
    let options = BuildOptions::from_env(policy)?;
    Ok(toolchain::build_module(PACKAGE, &options, sink)?)
}

/// The page with this module. `command` is what a reader would type to make one like it.
pub fn page(module: &[u8], command: &str) -> String {
    let data = Data {
        timeline: Nothing::default(),
        glossary: glossary::TERMS,
        module: STANDARD.encode(module),
        command,
        version: env!("CARGO_PKG_VERSION"),
    };
    let data = serde_json::to_string(&data).expect("texts and nothing else");
    let style = [html::STYLE, STYLE].concat();
    let script = [&html::DRAWING[..], &[SCRIPT]].concat().join("\n");
    html::assemble(PAGE, &style, &data, &script)
}
