//! Text that leaves this machine: pages and traces that a person gives to others, without the
//! directories of this one.

use std::env;
use std::path::Path;

use crate::{scratch, toolchain};

/// `text` with directories shortened: of the project's nothing is left, so that a command can be
/// pasted there; the user's is `$HOME`; that for temporary files is `/tmp`, and a directory of
/// ours in it, which is gone with its run, is `$TMP`.
pub(crate) fn shorten(text: &str) -> String {
    let workspace = toolchain::workspace().ok();
    let home = env::var_os("HOME");
    shorten_these(
        text,
        workspace.as_deref(),
        &env::temp_dir(),
        home.as_deref().map(Path::new),
    )
}

fn shorten_these(
    text: &str,
    workspace: Option<&Path>,
    temporary: &Path,
    home: Option<&Path>,
) -> String {
    // Each may lie in the next. The root, as a home, says nothing of anybody.
    let home = home.filter(|home| home.parent().is_some());
    let directories = [
        (workspace, ""),
        (Some(temporary), "/tmp/"),
        (home, "$HOME/"),
    ];
    let mut text = text.to_owned();
    for (directory, with) in directories {
        if let Some(directory) = directory {
            text = replace(&text, &directory.to_string_lossy(), with);
        }
    }
    let ours = format!("/tmp/{}", scratch::PREFIX);
    let mut parts = text.split(&ours);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |done, part| {
        let end = part.find(|c: char| !c.is_alphanumeric() && c != '.');
        done + "$TMP" + &part[end.unwrap_or(part.len())..]
    })
}

/// Replaces `directory` where it begins a path that goes on.
fn replace(text: &str, directory: &str, with: &str) -> String {
    let directory = directory.trim_end_matches('/').to_owned() + "/";
    let mut replaced = String::new();
    let mut end = 0;
    for (at, _) in text.match_indices(&directory) {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || "/._-".contains(c)) {
            continue;
        }
        replaced += &text[end..at];
        replaced += with;
        end = at + directory.len();
    }
    replaced + &text[end..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortened(text: &str) -> String {
        let (top, temporary) = (Path::new("/home/me/kickpath"), Path::new("/var/tmp/me/"));
        shorten_these(text, Some(top), temporary, Some(Path::new("/home/me")))
    }

    #[test]
    fn a_command_keeps_what_can_be_pasted() {
        for (text, short) in [
            (
                "/usr/bin/qemu-system-x86_64 -kernel /home/me/kickpath/target/kernel",
                "/usr/bin/qemu-system-x86_64 -kernel target/kernel",
            ),
            (
                "-kernel /home/me/.cache/kickpath/vmlinuz -D /var/tmp/me/qemu-%d.log",
                "-kernel $HOME/.cache/kickpath/vmlinuz -D /tmp/qemu-%d.log",
            ),
            (
                "local.path=/var/tmp/me/kickpath-qemu.sock,remote.path=/var/tmp/me/kickpath-host.sock",
                "local.path=/tmp/kickpath-qemu.sock,remote.path=/tmp/kickpath-host.sock",
            ),
            (
                "-initrd /var/tmp/me/kickpath.linux.a1B2c3/initramfs -append 'a b'",
                "-initrd $TMP/initramfs -append 'a b'",
            ),
            (
                "cannot read /var/tmp/me/kickpath.trace.a1B2c3: no",
                "cannot read $TMP: no",
            ),
        ] {
            assert_eq!(shortened(text), short);
        }
    }

    #[test]
    fn what_only_looks_like_one_stays() {
        for text in [
            "/srv/home/me/x",
            "/home/merle/x",
            "~/home/me",
            "/home/me",
            "",
        ] {
            assert_eq!(shortened(text), text);
        }
        // Of a user whose home is the root.
        let text = shorten_these(
            "/usr/bin/qemu",
            None,
            Path::new("/tmp"),
            Some(Path::new("/")),
        );
        assert_eq!(text, "/usr/bin/qemu");
    }
}
