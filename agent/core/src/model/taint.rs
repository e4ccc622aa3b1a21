//! Taints of effect NoExecute, and the tolerations of a pod (`component-helpers/scheduling/corev1/helpers.go`). The
//! other effects are the scheduler's: a node ignores them.

use super::Pod;
use serde::{Deserialize, Serialize};

/// A taint of a node with effect NoExecute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoExecuteTaint {
    /// `key`.
    pub key: String,
    /// `value`; empty where there is none.
    pub value: String,
}

/// One of `spec.tolerations` that can tolerate a taint of effect NoExecute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toleration {
    /// `key`; `None` stands for every key.
    pub key: Option<String>,
    /// `value` of operator Equal; `None` for operator Exists, which stands for every value.
    pub value: Option<String>,
}

impl Toleration {
    fn tolerates(&self, taint: &NoExecuteTaint) -> bool {
        self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

impl Pod {
    /// Whether the pod may run on a node with these taints.
    pub fn tolerates(&self, taints: &[NoExecuteTaint]) -> bool {
        taints.iter().all(|taint| self.tolerations.iter().any(|t| t.tolerates(taint)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PodKey;

    #[test]
    fn a_pod_tolerates_the_taints_that_its_tolerations_name() {
        let key = PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() };
        let mut pod = Pod::new("u".parse().unwrap(), key, "n1".parse().unwrap());
        let taint = |key: &str, value: &str| NoExecuteTaint { key: key.to_owned(), value: value.to_owned() };
        assert!(pod.tolerates(&[]));
        assert!(!pod.tolerates(&[taint("gpu", "")]));
        for (key, value, gpu_a, gpu_b, other) in [
            (None, None, true, true, true),
            (Some("gpu"), None, true, true, false),
            (Some("gpu"), Some("a"), true, false, false),
            (Some("gpu"), Some(""), false, false, false),
        ] {
            let (key, value) = (key.map(str::to_owned), value.map(str::to_owned));
            pod.tolerations = vec![Toleration { key, value }];
            let seen = [taint("gpu", "a"), taint("gpu", "b"), taint("x", "a")].map(|t| pod.tolerates(&[t]));
            assert_eq!(seen, [gpu_a, gpu_b, other], "{:?}", pod.tolerations);
        }
        pod.tolerations = vec![Toleration { key: Some("gpu".to_owned()), value: None }];
        assert!(!pod.tolerates(&[taint("gpu", "a"), taint("x", "a")]), "every taint needs a toleration");
    }
}
