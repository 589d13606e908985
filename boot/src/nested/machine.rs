//! QEMU with an emulated CPU that has SVM, the Linux in it, and what they print.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::NestedError;
use crate::command::{Progress, Sink};
use crate::interrupt;
use crate::linux::Linux;
use crate::linux::initramfs::{self, Entry};
use crate::qemu::tcg_cpus;
use crate::scratch::Scratch;
use crate::session::SessionError;

/// Memory of the machine between, in MiB.
pub const MEMORY: u32 = 3072;

/// How long it may take. A minute on an idle machine.
const LIMIT: Duration = Duration::from_secs(1200);

/// How often is looked at what it prints.
const POLL: Duration = Duration::from_millis(100);

/// Lines of its console that a failure shows.
const CONSOLE_LINES: usize = 40;

/// Words of the kernel. One CPU has no other to be kept in step with, and what
/// keeps a CPU from guessing costs an emulated one time.
const WORDS: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable \
                     no_timer_check";

/// What is run inside, by the shell of the machine outside.
#[derive(Debug)]
pub struct Job {
    /// The directory that it runs in.
    pub directory: PathBuf,
    /// Variables of the environment.
    pub environment: Vec<(String, String)>,
    /// The program and its arguments.
    pub words: Vec<String>,
}

/// Where the results are inside.
pub const RESULTS: &str = "/run/kickpath";

impl Job {
    /// The script that does it.
    fn script(&self) -> Result<String, NestedError> {
        let quote = |word: &str| {
            let quoted = shlex::try_quote(word).map_err(|_| NestedError::ZeroByte)?;
            Ok::<_, NestedError>(quoted.into_owned())
        };
        let mut script = String::new();
        for (name, value) in &self.environment {
            script += &format!("export {name}={}\n", quote(value)?);
        }
        script += &format!("cd {} || exit\n", quote(&self.directory.to_string_lossy())?);
        let words = self.words.iter().map(|word| quote(word));
        let words = words.collect::<Result<Vec<_>, _>>()?;
        script += &format!("exec {}\n", words.join(" "));
        Ok(script)
    }
}

/// The machine between, before it starts and after.
#[derive(Debug)]
pub struct Between {
    directory: Scratch,
    qemu: PathBuf,
    kernel: PathBuf,
}

impl Between {
    /// Makes what it boots.
    ///
    /// # Errors
    /// A file cannot be written or read.
    pub fn new(linux: &Linux, qemu: &Path, job: &Job) -> Result<Self, NestedError> {
        let directory = Scratch::new("nested").map_err(SessionError::from)?;
        let between = Self {
            directory,
            qemu: qemu.to_owned(),
            kernel: linux.kernel(),
        };
        let results = between.result("");
        fs::create_dir(&results).map_err(NestedError::system("make", &results))?;
        let script = job.script()?;
        let files = [
            Entry::program("init", include_str!("init.sh")),
            Entry::text("job", script),
        ];
        initramfs::write(&between.file("initramfs"), linux, files)?;
        Ok(between)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of the results.
    pub fn result(&self, name: &str) -> PathBuf {
        self.file("results").join(name)
    }

    /// QEMU's command.
    fn command(&self) -> Command {
        // A comma in a value is written twice.
        let value = |path: &Path| path.to_string_lossy().replace(',', ",,");
        let mut command = Command::new(&self.qemu);
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-accel", "tcg,thread=multi,tb-size=512"])
            .args(["-M", "q35", "-cpu", "EPYC,+svm,+npt"])
            // Of two CPUs every third boot hung.
            .args(["-smp", &tcg_cpus(1), "-display", "none"])
            .args(["-m", &MEMORY.to_string()])
            .arg("-serial")
            .arg(format!("file:{}", value(&self.file("console"))))
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(self.file("initramfs"))
            .args(["-append", WORDS]);
        let results = value(&self.result(""));
        for (name, path, more) in [("root", "/", ",readonly=on"), ("results", &results, "")] {
            let share =
                format!("local,id={name},path={path},security_model=none,multidevs=remap{more}");
            let device = format!("virtio-9p-pci,fsdev={name},mount_tag={name}");
            command.args(["-fsdev", &share, "-device", &device]);
        }
        command
    }

    /// Runs the job. What it prints goes to `out` while it prints it, and its
    /// steps to `sink`; returns its exit status.
    ///
    /// # Errors
    /// The machine ends without a result, takes too long, or is interrupted.
    pub fn run(&self, out: &mut dyn Write, sink: &mut Sink<'_>) -> Result<u8, NestedError> {
        let messages = self.file("qemu");
        let log = File::create(&messages).map_err(NestedError::system("write", &messages))?;
        let again = log.try_clone();
        let again = again.map_err(NestedError::system("write", &messages))?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log).stderr(again);
        // Ctrl-C reaches this program alone.
        command.process_group(0);
        // SAFETY: one system call, which neither allocates nor takes a lock.
        unsafe {
            // It ends with this thread, which waits for it, if that is killed.
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command.spawn();
        let child = child.map_err(NestedError::system("run", &self.qemu))?;
        let mut process = Process(child);
        let started = Instant::now();
        let mut console = Lines::of(self.file("console"));
        let mut errors = Lines::of(self.result("errors"));
        let mut story = Growing::of(self.result("out"));
        let status = loop {
            // In this order: what it left before it ended is all seen.
            let ended = process.ended();
            for line in console.new_lines() {
                sink(Progress::Line(&line));
            }
            for line in errors.new_lines() {
                match line.strip_prefix("- ") {
                    Some(step) => sink(Progress::Step(step)),
                    None => sink(Progress::Line(&line)),
                }
            }
            out.write_all(&story.more())
                .and_then(|()| out.flush())
                .map_err(NestedError::Output)?;
            if let Some(status) = ended {
                break status;
            }
            if interrupt::requested() {
                return Err(NestedError::Interrupted);
            }
            if started.elapsed() >= LIMIT {
                return Err(NestedError::TimedOut {
                    limit: LIMIT,
                    console: console.end(),
                });
            }
            thread::sleep(POLL);
        };
        let result = fs::read_to_string(self.result("status")).unwrap_or_default();
        result.trim().parse().map_err(|_| {
            let said = fs::read_to_string(&messages).unwrap_or_default();
            NestedError::Ended {
                status,
                console: said + &console.end(),
            }
        })
    }

    /// What the job said of errors.
    pub fn errors(&self) -> String {
        let text = fs::read_to_string(self.result("errors")).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with("- "));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// QEMU; killed, with what it started, when it is dropped.
struct Process(Child);

impl Process {
    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none()
            && let Ok(pid) = i32::try_from(self.0.id())
        {
            // The group exists as long as nobody has waited for it.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// A file that another process writes to its end.
struct Growing {
    file: PathBuf,
    read: u64,
}

impl Growing {
    fn of(file: PathBuf) -> Self {
        Self { file, read: 0 }
    }

    /// What has come since the last call; nothing where there is no file yet.
    fn more(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.file)
            && file.seek(SeekFrom::Start(self.read)).is_ok()
        {
            // What a failing read has got is kept.
            let _ = file.read_to_end(&mut bytes);
            self.read += bytes.len() as u64;
        }
        bytes
    }
}

/// The same by lines; the last ones are kept.
struct Lines {
    growing: Growing,
    pending: Vec<u8>,
    last: VecDeque<String>,
}

impl Lines {
    fn of(file: PathBuf) -> Self {
        Self {
            growing: Growing::of(file),
            pending: Vec::new(),
            last: VecDeque::new(),
        }
    }

    /// The lines that have become whole.
    fn new_lines(&mut self) -> Vec<String> {
        self.pending.extend(self.growing.more());
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.pending.split_off(end + 1);
        let whole = std::mem::replace(&mut self.pending, rest);
        let text = String::from_utf8_lossy(&whole);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        self.last.extend(lines.iter().cloned());
        let many = self.last.len().saturating_sub(CONSOLE_LINES);
        self.last.drain(..many);
        lines
    }

    /// The last lines.
    fn end(&self) -> String {
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tempfile::TempDir;

    use super::*;

    fn between(qemu: &Path) -> Between {
        let directory = Scratch::new("test").unwrap();
        fs::create_dir(directory.path().join("results")).unwrap();
        Between {
            directory,
            qemu: qemu.to_owned(),
            kernel: "vmlinuz".into(),
        }
    }

    /// A program in place of QEMU that does this; `$results` and `$console` are
    /// where it is told to write.
    fn fake(script: &str) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("qemu");
        let arguments = "for word; do case $word in\n\
                         file:*) console=${word#file:};;\n\
                         local,id=results*) results=${word#*path=}; results=${results%%,*};;\n\
                         esac; done";
        crate::install::tests::write_script(&program, &format!("{arguments}\n{script}"));
        (directory, program)
    }

    #[test]
    fn a_job_is_quoted() {
        let job = Job {
            directory: "/a b".into(),
            environment: vec![("NAME".into(), "it's".into())],
            words: vec!["kickpath".into(), "--features=-mac".into(), "$(x)".into()],
        };
        let script = job.script().unwrap();
        assert!(script.starts_with("export NAME=\"it's\"\ncd '/a b' || exit\n"));
        assert!(
            script.ends_with("exec kickpath '--features=-mac' '$(x)'\n"),
            "{script}"
        );
        let zero = Job {
            words: vec!["\0".into()],
            ..job
        };
        assert!(matches!(zero.script(), Err(NestedError::ZeroByte)));
    }

    #[test]
    fn what_it_prints_and_its_status_come_out() {
        let (_kept, program) = fake(
            "echo booting > $console; echo '- Building' > $results/errors\n\
             echo why >> $results/errors; echo story > $results/out; echo 3 > $results/status",
        );
        let between = between(&program);
        let (mut out, mut steps) = (Vec::new(), Vec::new());
        let status = between.run(&mut out, &mut |progress| {
            if let Progress::Step(step) = progress {
                steps.push(step.to_owned());
            }
        });
        assert_eq!(status.unwrap(), 3);
        assert_eq!(out, b"story\n");
        assert_eq!(steps, ["Building"]);
        assert_eq!(between.errors(), "why");
    }

    #[test]
    fn a_machine_that_ends_without_a_result_shows_its_console() {
        let (_kept, program) = fake("seq 100 > $console; echo no such CPU; exit 1");
        let error = between(&program)
            .run(&mut io::sink(), &mut |_| {})
            .unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, NestedError::Ended { .. }), "{text}");
        assert!(
            text.contains("no such CPU") && text.ends_with("99\n100"),
            "{text}"
        );
        assert!(!text.contains("\n60\n"), "{text}");
    }
}
