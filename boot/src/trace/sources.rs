//! The lines of our source around each step, where the files are those that
//! the guest was built of.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::timeline::{Absent, Excerpt, Source, Timeline};
use crate::qemu::Boot;
use crate::toolchain;

/// Lines before and behind the one of the step.
const AROUND: u32 = 9;

/// Adds the lines to the steps, or says why not.
pub fn attach(timeline: &mut Timeline, boot: &Boot) {
    let absent = match boot {
        Boot::Kernel(kernel) => attach_lines(timeline, kernel).err(),
        Boot::Disk(_) => Some("a disk image does not say what it was built of".to_owned()),
        // Its steps are none of our source.
        Boot::Linux(_) => None,
    };
    if let Some(reason) = absent {
        timeline.absent.push(Absent {
            what: "the lines of our source".to_owned(),
            reason,
            enable: None,
        });
    }
}

fn attach_lines(timeline: &mut Timeline, kernel: &Path) -> Result<(), String> {
    let workspace = toolchain::workspace().map_err(|error| error.to_string())?;
    let built = fs::metadata(kernel).and_then(|file| file.modified());
    let built = built.map_err(|error| format!("{}: {error}", kernel.display()))?;
    let mut files: HashMap<String, Option<Vec<String>>> = HashMap::new();
    let mut newer = None;
    for step in &mut timeline.steps {
        let Some(source) = &mut step.source else {
            continue;
        };
        let lines = files.entry(source.file.clone()).or_insert_with(|| {
            // The name comes from the executable: nothing outside of the
            // workspace is read.
            let name = Path::new(&source.file);
            let inside = name
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            let file = workspace.join(name);
            let changed = fs::metadata(&file).and_then(|file| file.modified()).ok()?;
            if !inside || changed > built {
                newer = Some(source.file.clone());
                return None;
            }
            let text = fs::read_to_string(&file).ok()?;
            Some(text.lines().map(str::to_owned).collect())
        });
        source.excerpt = lines.as_ref().and_then(|lines| excerpt(lines, source.line));
        if let (Some(instruction), Some(lines)) = (&mut step.instruction, lines) {
            instruction.source =
                written(lines, &instruction.symbol, &instruction.text).map(|line| Source {
                    line,
                    excerpt: excerpt(lines, line),
                    ..source.clone()
                });
        }
    }
    match newer {
        Some(file) => Err(format!("{file} was changed after the guest was built")),
        None => Ok(()),
    }
}

/// The line, from 1, on which the function `symbol` has the instruction `text`:
/// in its assembly, or as the driver's write of a register.
fn written(lines: &[String], symbol: &str, text: &str) -> Option<u32> {
    let head = format!("fn {symbol}(");
    let function = lines.iter().position(|line| line.contains(&head))?;
    let (mnemonic, _) = text.split_once(' ')?;
    let template = format!("\"{mnemonic} ");
    let body = lines[function + 1..].iter();
    let inside = body.take_while(|line| !line.starts_with('}'));
    let place = inside
        .enumerate()
        .find(|(_, line)| {
            line.trim_start().starts_with(&template)
                || mnemonic == "mov" && line.contains("mmio::write(")
        })?
        .0;
    u32::try_from(function + place + 2).ok()
}

fn excerpt(lines: &[String], line: u32) -> Option<Excerpt> {
    let count = u32::try_from(lines.len()).ok()?;
    if line == 0 || line > count {
        return None;
    }
    let first = line.saturating_sub(AROUND).max(1);
    let last = line.saturating_add(AROUND).min(count);
    Some(Excerpt {
        first,
        lines: lines[first as usize - 1..last as usize].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_found_in_its_function() {
        let text = "fn other() {\n    \"out dx, al\"\n}\nunsafe fn ring(port: u16) {\n    asm!(\n        \
                    \"out dx, ax\",\n    );\n}\nfn last() {\n    \"mov ax, bx\"\n}";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(written(&lines, "ring", "out dx,ax"), Some(6));
        assert_eq!(written(&lines, "ring", "mov ax,bx"), None);
        let store = ["fn store(", ") {", "    mmio::write(at, 1);", "}"].map(str::to_owned);
        assert_eq!(written(&store, "store", "mov [rsi],di"), Some(3));
        assert_eq!(written(&lines, "gone", "out dx,ax"), None);
        assert_eq!(written(&lines, "last", "ret"), None);
    }

    #[test]
    fn an_excerpt_stays_within_its_file() {
        let lines: Vec<String> = (1..=20).map(|n| n.to_string()).collect();
        let middle = excerpt(&lines, 10).unwrap();
        assert_eq!((middle.first, middle.lines.len()), (1, 19));
        assert_eq!(middle.lines[9], "10");
        let start = excerpt(&lines, 1).unwrap();
        assert_eq!((start.first, start.lines.len()), (1, 10));
        let end = excerpt(&lines, 20).unwrap();
        assert_eq!((end.first, end.lines.len()), (11, 10));
        assert_eq!(excerpt(&lines, 0), None);
        assert_eq!(excerpt(&lines, 21), None);
    }
}
