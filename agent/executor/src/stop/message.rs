//! The termination message of a run: from its file, or from the end of its output.

use crate::{NodeExecutor, pod_locks::Area};
use berth_core::{
    ids::ContainerName,
    model::{Pod, TerminationMessagePolicy},
    plan::Failure,
};
use berth_logd::reader;
use berth_pods::Context;

/// The last lines and bytes of the output that `FallbackToLogsOnError` takes
/// (`pkg/kubelet/container/runtime.go`).
const TAIL_LINES: u64 = 80;
const TAIL_BYTES: usize = 2048;
/// The most bytes of output held while its end is searched.
const LARGEST_TAIL: usize = 64 << 10;

/// The limit in bytes for all termination messages of a pod together (`MaxPodTerminationMessageLogLength`).
const POD_MESSAGES: usize = 12 << 10;

/// The share of [`POD_MESSAGES`] for one container's message. Every container has the same share, whether the
/// others write a message or not (`pkg/kubelet/status/status_manager.go`, `normalizeStatus`).
pub(super) fn message_budget(pod: &Pod) -> usize {
    POD_MESSAGES.checked_div(pod.all_containers().count()).unwrap_or(POD_MESSAGES)
}

/// The beginning of the text, at most `most` bytes, cut at a character boundary.
pub(super) fn head(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

impl NodeExecutor {
    /// The message that the run wrote to its termination message file.
    pub(super) async fn termination_file_message(
        &self,
        context: &Context,
        container: &ContainerName,
    ) -> Result<Option<String>, Failure> {
        let (volumes, context, container) = (self.volumes.clone(), context.clone(), container.clone());
        let uid = context.pod.uid.clone();
        self.pod_locks
            .blocking(&uid, Area::Files, move || {
                let pod = &context.pod;
                let (spec, attempt) =
                    pod.container(&container).zip(context.run.as_ref().map(|r| r.attempt))?;
                // An unreadable message counts as none, because the exit itself must be stored.
                volumes.termination_message(pod, spec, attempt).ok().flatten()
            })
            .await
    }

    /// The end of the run's output.
    pub(super) async fn end_of_output(
        &self,
        context: &Context,
        container: &ContainerName,
    ) -> Result<Option<String>, Failure> {
        let Some(run) = &context.run else { return Ok(None) };
        let (attempt, roots) = (run.attempt, self.config.roots.clone());
        let (pod, container) = (context.pod.clone(), container.clone());
        let uid = pod.uid.clone();
        self.pod_locks
            .blocking(&uid, Area::Files, move || {
                let set = reader::LogSet::open(&roots, &pod.key, &pod.uid, &container, attempt).ok()?;
                tail(&set)
            })
            .await
    }
}

/// Whether the container takes the end of its output where a failed run left no message.
pub(super) fn falls_back_to_logs(context: &Context, container: &ContainerName) -> bool {
    context
        .pod
        .container(container)
        .is_some_and(|c| c.termination_message_policy == TerminationMessagePolicy::FallbackToLogsOnError)
}

/// The end of an output that arrives in pieces. Older bytes are dropped while reading, because eighty lines
/// may be the whole output.
#[derive(Default)]
struct OutputTail(Vec<u8>);

impl OutputTail {
    /// Appends the next piece.
    fn push(&mut self, piece: &[u8]) {
        // Only the end of a piece longer than the limit can matter.
        let piece = piece.get(piece.len().saturating_sub(LARGEST_TAIL)..).unwrap_or_default();
        if self.0.len().saturating_add(piece.len()) > LARGEST_TAIL {
            self.0.drain(..self.0.len().saturating_sub(TAIL_BYTES));
        }
        self.0.extend_from_slice(piece);
    }

    /// The last [`TAIL_BYTES`] bytes, cut at a character boundary. `None` where the output is empty.
    fn text(&self) -> Option<String> {
        let from = self.0.len().saturating_sub(TAIL_BYTES);
        // A cut character has lost its first byte. Its continuation bytes are skipped, because they would
        // show as replacement characters.
        let cut = self.0.get(from..)?.iter().skip_while(|b| from > 0 && **b & 0xc0 == 0x80).copied();
        let text = String::from_utf8_lossy(&cut.collect::<Vec<_>>()).into_owned();
        (!text.is_empty()).then_some(text)
    }
}

/// The end of a run's output, from its log files.
fn tail(set: &reader::LogSet) -> Option<String> {
    let mut end = OutputTail::default();
    let mut emit = |record: berth_logd::format::Record<'_>| {
        end.push(record.text);
        if !record.partial {
            end.push(b"\n");
        }
    };
    set.read(reader::ReadFrom::Tail(TAIL_LINES), &mut emit).ok()?;
    end.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::{
        ids::{Attempt, NodeName, PodKey},
        model::Container,
        roots::Roots,
    };

    fn empty_pod() -> Pod {
        let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
        Pod::new("u".parse().unwrap(), key, "n".parse().unwrap())
    }

    #[test]
    fn containers_share_a_pods_budget_for_messages() {
        let mut pod = empty_pod();
        pod.containers = (0..8).map(|n| Container::new(format!("c{n}").parse().unwrap(), "i")).collect();
        assert_eq!(message_budget(&pod), 1536);
        assert_eq!(head(&"x".repeat(4096), 1536).len(), 1536);
        assert_eq!((head("short", 1536), head("aä", 2), head("", 0)), ("short", "a", ""));
    }

    #[test]
    fn the_end_of_the_output_is_whole_without_a_last_newline_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "none");
        let (pod, name) = (empty_pod(), "c".parse().unwrap());
        let logs = roots.pod_log_dir(&pod.key, &pod.uid).join("c");
        std::fs::create_dir_all(&logs).unwrap();
        let message = |records: &str| {
            std::fs::write(logs.join("0.log"), records).unwrap();
            let set = reader::LogSet::open(&roots, &pod.key, &pod.uid, &name, Attempt(0)).unwrap();
            tail(&set)
        };
        let at = "2026-01-01T00:00:00.000000000Z";
        assert_eq!(message(""), None);
        assert_eq!(
            message(&format!("{at} stdout F x\n{at} stderr P panic: y\n")).as_deref(),
            Some("x\npanic: y")
        );
        let long = format!("{at} stdout F {}\n", "ä".repeat(8000)).repeat(100);
        let end = message(&long).unwrap();
        assert!(
            end.len() <= TAIL_BYTES && end.len() > TAIL_BYTES - 4 && end.ends_with("ä\n"),
            "{}",
            end.len()
        );
        assert!(!end.contains('\u{fffd}'));
    }

    #[test]
    fn of_any_output_no_more_than_its_end_is_held() {
        let mut end = OutputTail::default();
        for n in 0..2000 {
            end.push(format!("{n} ").repeat(1000).as_bytes());
            end.push(b"\n");
            assert!(end.0.capacity() <= 4 * LARGEST_TAIL, "{} bytes are held", end.0.capacity());
        }
        let text = end.text().unwrap();
        assert!(text.len() == TAIL_BYTES && text.ends_with("1999 1999 \n"), "{} bytes", text.len());
        end.push(&vec![b'x'; 10 * LARGEST_TAIL]);
        assert!(end.0.capacity() <= 4 * LARGEST_TAIL);
        assert_eq!(end.text().unwrap(), "x".repeat(TAIL_BYTES));
    }
}
