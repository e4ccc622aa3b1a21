//! `kubectl exec`, `attach`, `cp` and `run`.

use super::{PARROT, Stage, WEB, of_version};
use crate::clients::live::Live;
use anyhow::{Context, Result, ensure};
use berth_harness::{
    image::BUSYBOX,
    rng::Rng,
    wait::{self, PATIENCE},
};
use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

/// Bytes that are sent each way.
const BULK: usize = 100_000_000;

/// Exit codes, the two outputs, and programs that do not start.
pub(super) fn codes(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let client = stage.kubectl(kubectl);
    let mut found = Vec::new();
    for (command, code, out, err) in [
        (&["true"][..], 0, "", ""),
        (&["sh", "-c", "exit 7"], 7, "", "command terminated with exit code 7"),
        (
            &["sh", "-c", "echo o; echo e >&2; exit 200"],
            200,
            "o\n",
            "e\ncommand terminated with exit code 200",
        ),
        (&["sh", "-c", "kill -9 $$"], 137, "", "command terminated with exit code 137"),
        (&["/nonexistent"], 1, "", "no such file or directory"),
        (&["/etc"], 1, "", "is a directory"),
    ] {
        let done = client.run(&[&["exec", WEB, "--"], command].concat(), None)?;
        let (text, said) = (done.text(), done.err.to_lowercase());
        ensure!(text == out, "{command:?}: output {text:?}, not {out:?}");
        ensure!(said.contains(err), "{command:?}: {said:?} does not say {err:?}");
        ensure!(done.code == code, "{command:?}: {} not {code}", done.code);
        found.push(done.code.to_string());
    }
    let done = client.run(&["exec", WEB, "-c", "none", "--", "true"], None)?;
    ensure!(done.code == 1 && done.err.contains("container none"), "{} {:?}", done.code, done.err);
    Ok(format!("codes {}", found.join(" ")))
}

/// Random bytes that no compression makes shorter, in a file.
fn bulk_file(stage: &Stage<'_>, name: &str) -> Result<PathBuf> {
    let mut rng = Rng::new(7);
    let bytes: Vec<u8> =
        std::iter::repeat_with(|| rng.draw().to_le_bytes()).take(BULK / 8).flatten().collect();
    let path = stage.cluster.file(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// A hundred megabytes into a container and out of it.
pub(super) fn bulk(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let client = stage.kubectl(kubectl);
    let path = bulk_file(stage, "bulk")?;
    let open = || File::open(&path).context("cannot open the bulk");
    let into = client
        .run(&["exec", "-i", WEB, "--", "sh", "-c", "cat > /bulk; sha256sum < /bulk"], Some(open()?))?;
    let sum = Command::new("sha256sum").stdin(open()?).output().context("cannot run sha256sum")?;
    ensure!(into.code == 0 && into.out == sum.stdout, "in: {} {} {}", into.code, into.text(), into.err);
    let out = client.ok(&["exec", WEB, "--", "cat", "/bulk"])?;
    let wanted = fs::read(&path).context("cannot read the bulk")?;
    ensure!(out.out == wanted, "out: {} bytes of {}, or others", out.out.len(), wanted.len());
    // Both ways at once.
    let both = client.run(&["exec", "-i", WEB, "--", "cat"], Some(open()?))?;
    ensure!(both.code == 0 && both.out == wanted, "both: {} bytes, {}", both.out.len(), both.err);
    client.ok(&["exec", WEB, "--", "rm", "/bulk"])?;
    Ok(format!("{BULK} bytes in, out, and both ways at once"))
}

/// A shell on a terminal whose size changes during the session.
pub(super) fn terminal(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let mut session = stage.kubectl(kubectl).start_on_terminal(&["exec", "-it", WEB, "--", "sh"])?;
    session.says("#", PATIENCE)?;
    let terminal = terminal_of(&session)?;
    for (rows, columns) in [("41", "101"), ("17", "73"), ("55", "211")] {
        let mut stty = Command::new("stty");
        stty.args(["-F", &terminal, "rows", rows, "columns", columns]);
        ensure!(stty.status().context("cannot run stty")?.success(), "cannot set the size of {terminal}");
        let wanted = format!("{rows} {columns}");
        wait::ok(&format!("the container's terminal has {wanted}"), PATIENCE, || {
            session.send(b"stty size\n")?;
            session.says(&wanted, std::time::Duration::from_millis(500))
        })?;
    }
    // The terminal's echo has what is typed, and not the result.
    session.send(b"echo $((6 * 7))x; tty; exit 9\n")?;
    let (code, output) = session.end(PATIENCE)?;
    let text = String::from_utf8_lossy(&output).into_owned();
    ensure!(code == 9, "the session ends with {code}: {text}");
    ensure!(text.contains("42x") && text.contains("/dev/pts/"), "{text}");
    Ok("three sizes, exit code 9".to_owned())
}

/// The terminal of the kubectl that `script` runs.
fn terminal_of(session: &Live) -> Result<String> {
    wait::some("kubectl has a terminal", PATIENCE, || {
        let children = format!("/proc/{0}/task/{0}/children", session.pid());
        let child = fs::read_to_string(children).ok()?.split_whitespace().next()?.to_owned();
        let terminal = fs::read_link(format!("/proc/{child}/fd/0")).ok()?.display().to_string();
        terminal.starts_with("/dev/pts/").then_some(terminal)
    })
}

/// Attaches to a container that reads its input once.
pub(super) fn attach(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let name = of_version(PARROT, kubectl);
    let mut session = stage.kubectl(kubectl).start(&["attach", "-i", &name])?;
    session.says("If you don't see a command prompt", PATIENCE)?;
    for word in ["one", "two"] {
        session.send(format!("{word}\n").as_bytes())?;
        session.says(&format!("said {word}\n"), PATIENCE)?;
    }
    session.close();
    let (code, _) = session.end(PATIENCE)?;
    // kubectl tells the code of the container with `run` alone.
    let path = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
    wait::ok("the container has ended", PATIENCE, || {
        let is = stage.cluster.kubectl(&["get", "pod", &name, "-o", path])?;
        ensure!(is == "4", "exit code {is:?}");
        Ok(())
    })?;
    ensure!(code == 0, "attach ends with {code}");
    Ok("input, output, and the end of both".to_owned())
}

/// A directory into a container and back.
pub(super) fn copy(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let client = stage.kubectl(kubectl);
    let (there, back) = (stage.cluster.file("there"), stage.cluster.file("back"));
    for dir in [&there, &back] {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    fs::create_dir_all(there.join("deep/er")).context("cannot make a directory")?;
    let mut rng = Rng::new(8);
    for (file, words) in [("empty", 0), ("a file", 3), ("deep/er/large", 1 << 19)] {
        let bytes: Vec<u8> =
            std::iter::repeat_with(|| rng.draw().to_le_bytes()).take(words).flatten().collect();
        fs::write(there.join(file), bytes).context("cannot write a file")?;
    }
    client.ok(&["exec", WEB, "--", "rm", "-rf", "/copy"])?;
    client.ok(&["cp", &there.display().to_string(), &format!("{WEB}:/copy")])?;
    client.ok(&["cp", &format!("{WEB}:/copy"), &back.display().to_string()])?;
    let diff = Command::new("diff").arg("-r").arg(&there).arg(&back).output().context("cannot run diff")?;
    ensure!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    Ok("three files of up to 4 MiB there and back".to_owned())
}

/// `run -it --rm`: a pod for one command, with a terminal and with a pipe.
pub(super) fn run(stage: &Stage<'_>, kubectl: &str) -> Result<String> {
    let client = stage.kubectl(kubectl);
    let name = of_version("run", kubectl);
    let image = format!("--image={BUSYBOX}");
    let args = ["run", &name, &image, "--image-pull-policy=Never", "--restart=Never", "--rm"];
    let mut session = client.start_on_terminal(
        &[&args[..], &["-it", "--", "sh", "-c", "read x; echo got=$x; exit 5"]].concat(),
    )?;
    session.says("If you don't see a command prompt", 2 * PATIENCE)?;
    session.send(b"word\n")?;
    let (code, output) = session.end(2 * PATIENCE)?;
    let text = String::from_utf8_lossy(&output).into_owned();
    ensure!(code == 5 && text.contains("got=word") && text.contains("deleted"), "{code}: {text}");
    let path = stage.cluster.file("typed");
    fs::write(&path, "a\nb\n").context("cannot write a file")?;
    let input = File::open(&path).context("cannot open a file")?;
    let name = format!("{name}-pipe");
    let args =
        ["run", &name, &image, "--image-pull-policy=Never", "--restart=Never", "--rm", "-i", "--quiet"];
    let done = client.run(&[&args[..], &["--", "cat"]].concat(), Some(input))?;
    ensure!(
        done.code == 0 && done.text().starts_with("a\nb\n"),
        "{}: {:?} {}",
        done.code,
        done.text(),
        done.err
    );
    Ok("a terminal with exit code 5, a pipe".to_owned())
}
