//! The outcome of a command, as its client reads it from the error stream. Pure.

use serde_json::json;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It exited with this code.
    Exited(i32),
    /// It could not be run, or its end is not known.
    Failed(String),
}

/// The form of an outcome, by the protocol's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusForm {
    /// The text of a failure, and nothing for a success: versions 1 to 3.
    Text,
    /// A `v1.Status` in JSON: version 4 and later.
    Json,
}

impl Outcome {
    /// The bytes for the error stream; none where nothing is to be sent.
    pub(super) fn bytes(&self, form: StatusForm) -> Vec<u8> {
        let (status, message) = match self {
            Outcome::Exited(0) => (json!({ "metadata": {}, "status": "Success" }), String::new()),
            Outcome::Exited(code) => {
                let message = format!("command terminated with non-zero exit code: exit code {code}");
                let cause = json!({ "reason": "ExitCode", "message": code.to_string() });
                let status = json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": message,
                    "reason": "NonZeroExitCode",
                    "details": { "causes": [cause] },
                });
                (status, message)
            }
            Outcome::Failed(why) => {
                let message = format!("Internal error occurred: {why}");
                let status = json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": message,
                    "reason": "InternalError",
                    "details": { "causes": [{ "message": why }] },
                    "code": 500,
                });
                (status, message)
            }
        };
        match form {
            StatusForm::Text => message.into_bytes(),
            StatusForm::Json => status.to_string().into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_as_a_client_expects_them() {
        let text = |outcome: &Outcome, form| String::from_utf8(outcome.bytes(form)).unwrap();
        assert_eq!(text(&Outcome::Exited(0), StatusForm::Text), "");
        let success: serde_json::Value =
            serde_json::from_str(&text(&Outcome::Exited(0), StatusForm::Json)).unwrap();
        assert_eq!(success["status"], "Success");
        let failure: serde_json::Value =
            serde_json::from_str(&text(&Outcome::Exited(42), StatusForm::Json)).unwrap();
        assert_eq!(failure["reason"], "NonZeroExitCode");
        assert_eq!(failure["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "42" }));
        let failed = Outcome::Failed("error executing command in container: no such file".to_owned());
        assert_eq!(
            text(&failed, StatusForm::Text),
            "Internal error occurred: error executing command in container: no such file"
        );
        assert!(text(&failed, StatusForm::Json).contains("\"code\":500"));
    }
}
