//! Check that a pod's status never runs backwards from one change to the next.

use serde_json::Value;
use std::collections::BTreeMap;

/// State of the check for one pod.
#[derive(Debug, Default)]
pub(crate) struct Course {
    phase: String,
    restarts: BTreeMap<String, u64>,
    /// Whether a main container has run.
    begun: bool,
    /// Violations found, without repetition.
    pub(crate) wrong: Vec<String>,
}

impl Course {
    /// Compares the next status with the earlier ones.
    pub(crate) fn see(&mut self, status: &Value) {
        let phase = status["phase"].as_str().unwrap_or_default().to_owned();
        let ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
        if ended(&self.phase) && phase != self.phase {
            self.note(format!("phase {} to {phase}", self.phase));
        }
        if self.phase == "Running" && phase == "Pending" {
            self.note("phase Running to Pending".to_owned());
        }
        let lists = ["initContainerStatuses", "containerStatuses"];
        let mut restarts = BTreeMap::new();
        for container in lists.iter().filter_map(|l| status[*l].as_array()).flatten() {
            let name = container["name"].as_str().unwrap_or_default();
            let count = container["restartCount"].as_u64().unwrap_or(0);
            if self.restarts.get(name).is_some_and(|before| *before > count) {
                self.note(format!("restartCount of {name} falls"));
            }
            if ended(&phase) && self.begun && !container["state"]["waiting"].is_null() {
                self.note(format!("{name} is waiting in a pod that has ended"));
            }
            restarts.insert(name.to_owned(), count);
        }
        self.restarts.extend(restarts);
        let mains = status["containerStatuses"].as_array();
        self.begun |= mains.into_iter().flatten().any(|c| !c["state"]["running"].is_null());
        let conditions = status["conditions"].as_array();
        let initialized = conditions.into_iter().flatten().find(|c| c["type"] == "Initialized");
        if self.begun && initialized.is_some_and(|c| c["status"] == "False") {
            self.note("Initialized is False after a container has run".to_owned());
        }
        self.phase = phase;
    }

    fn note(&mut self, text: String) {
        if !self.wrong.contains(&text) {
            self.wrong.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(phase: &str, state: &str, restarts: u64) -> Value {
        json!({"phase": phase, "containerStatuses": [{"name": "a", "state": {state: {}}, "restartCount": restarts}]})
    }

    #[test]
    fn what_runs_backwards_is_noted() {
        let course = |steps: &[Value]| {
            let mut course = Course::default();
            steps.iter().for_each(|s| course.see(s));
            course.wrong
        };
        let forth = [
            status("Pending", "waiting", 0),
            status("Running", "running", 1),
            status("Failed", "terminated", 1),
        ];
        assert!(course(&forth).is_empty());
        assert_eq!(course(&[forth[2].clone(), forth[0].clone()]).len(), 2);
        assert_eq!(course(&[forth[1].clone(), forth[0].clone()]).len(), 2);
        assert_eq!(course(&[forth[1].clone(), status("Failed", "waiting", 1)]).len(), 1);
        let mut uninitialized = forth[1].clone();
        uninitialized["conditions"] = json!([{"type": "Initialized", "status": "False"}]);
        assert_eq!(course(&[forth[1].clone(), uninitialized]).len(), 1);
    }
}
