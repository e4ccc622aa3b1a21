//! Words for a command that did not start.

use crate::net::kernels_words;
use berth_sys::exec::Stage;
use rustix::io::Errno;

/// Why a command did not start.
pub(super) fn explain(stage: Stage, errno: Errno) -> String {
    let what = match stage {
        Stage::Descriptors => "set up the command's descriptors",
        Stage::Cgroup => "join the container's cgroup",
        Stage::Namespaces if errno == Errno::SRCH => return "the container has ended".to_owned(),
        Stage::Namespaces => "join the container's namespaces",
        Stage::Rlimit => "set the command's resource limits",
        Stage::WorkingDirectory => "change to the container's working directory",
        Stage::Bounding | Stage::Capabilities => "set the command's capabilities",
        Stage::Credentials => "set the command's user and groups",
        Stage::NoNewPrivs => "set no_new_privs",
        Stage::Fork => "start a process in the container",
        Stage::Lookup | Stage::Exec => "execute the command",
        Stage::Terminal => "make the command's terminal",
    };
    format!("cannot {what}: {}", kernels_words(&errno))
}

/// Why a client's command did not start, in the words that clients of every other node read: programs look for them.
pub(super) fn explain_to_client(stage: Stage, errno: Errno, program: &str) -> String {
    let words = kernels_words(&errno);
    let why = match (stage, errno) {
        (Stage::Lookup, _) if !program.contains('/') => {
            format!("exec: {program:?}: executable file not found in $PATH")
        }
        (Stage::Lookup, Errno::NOENT | Errno::NOTDIR) => {
            format!("exec: {program:?}: stat {program}: {words}")
        }
        (Stage::Lookup, _) => format!("exec: {program:?}: {words}"),
        _ => explain(stage, errno),
    };
    format!("OCI runtime exec failed: exec failed: unable to start container process: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_as_the_oci_runtime_tells_it() {
        let said = |errno, program| {
            let text = explain_to_client(Stage::Lookup, errno, program);
            text.rsplit_once("container process: ").unwrap().1.to_owned()
        };
        assert_eq!(said(Errno::NOENT, "x"), "exec: \"x\": executable file not found in $PATH");
        assert_eq!(said(Errno::ACCESS, "x"), "exec: \"x\": executable file not found in $PATH");
        assert_eq!(said(Errno::NOENT, "/x"), "exec: \"/x\": stat /x: no such file or directory");
        assert_eq!(said(Errno::ACCESS, "/x"), "exec: \"/x\": permission denied");
        assert_eq!(said(Errno::ISDIR, "/x"), "exec: \"/x\": is a directory");
    }
}
