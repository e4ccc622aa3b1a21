//! Printing of errors together with their causes.

use std::{error::Error, fmt};

/// An error and its chain of sources as one line, `error: cause: cause of the cause`: the form of errors in
/// logs, events and messages to users.
///
/// The form relies on the workspace's rule for errors: an error keeps its source by `#[source]` and does not
/// repeat the source in its own text.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

impl From<Chain<'_>> for String {
    fn from(chain: Chain<'_>) -> String {
        chain.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start pod")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read record")]
    struct Inner(#[source] io::Error);

    #[test]
    fn a_chain_names_the_error_and_each_cause_once() {
        let error = Outer(Inner(io::Error::other("disk full")));
        assert_eq!(Chain(&error).to_string(), "cannot start pod: cannot read record: disk full");
        assert_eq!(Chain(&error.0.0).to_string(), "disk full");
        let boxed: Box<dyn Error + Send + Sync> = Box::new(error);
        assert_eq!(Chain(&*boxed).to_string(), "cannot start pod: cannot read record: disk full");
    }
}
