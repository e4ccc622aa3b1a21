//! Parameters of a request for a stream, as the kubelet reads them from the query. Pure.

use super::WantedStreams;
use crate::query::pairs;

/// The decoded pairs of a query, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query.
    pub(super) fn parse(query: Option<&str>) -> Query {
        Query(pairs(query))
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is_set(&self, name: &str) -> bool {
        self.all(name).next() == Some("1")
    }

    /// The command of an exec: one parameter for each word.
    pub(super) fn command(&self) -> Vec<String> {
        self.all("command").map(str::to_owned).collect()
    }

    /// The command of a run: words between single spaces, as the kubelet splits it.
    pub(super) fn run_command(&self) -> Vec<String> {
        self.all("cmd").next().unwrap_or_default().split(' ').map(str::to_owned).collect()
    }

    /// The streams that the client wants. Standard error of a terminal is its output.
    pub(super) fn streams(&self) -> Result<WantedStreams, String> {
        let tty = self.is_set("tty");
        let stderr = self.is_set("error") && !tty;
        let wanted =
            WantedStreams { stdin: self.is_set("input"), stdout: self.is_set("output"), stderr, tty };
        if wanted.stdin || wanted.stdout || wanted.stderr {
            return Ok(wanted);
        }
        Err("you must specify at least 1 of stdin, stdout, stderr".to_owned())
    }

    /// The ports of a port-forward by channels; several may stand in one parameter, between commas.
    pub(super) fn ports(&self) -> Result<Vec<u16>, String> {
        let mut ports = Vec::new();
        for list in self.all("port") {
            if list.is_empty() {
                return Err("query parameter \"port\" cannot be empty".to_owned());
            }
            for port in list.split(',') {
                ports.push(parse_port(port).map_err(|reason| match reason {
                    PortError::NotANumber => format!("unable to parse {list:?} as a port"),
                    PortError::Zero => format!("port {list:?} must be > 0"),
                })?);
            }
        }
        if ports.is_empty() { Err("query parameter \"port\" is required".to_owned()) } else { Ok(ports) }
    }
}

/// Why a text is no port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortError {
    /// It is no number of 16 bits.
    NotANumber,
    /// It is 0.
    Zero,
}

/// Reads a port from 1 to 65535.
pub(super) fn parse_port(text: &str) -> Result<u16, PortError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PortError::NotANumber);
    }
    match text.parse::<u16>() {
        Ok(0) => Err(PortError::Zero),
        Ok(port) => Ok(port),
        Err(_) => Err(PortError::NotANumber),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_command_is_read_word_by_word() {
        let query = Query::parse(Some("command=sh&command=-c&command=echo+%22a%26b%22&command=&output=1"));
        assert_eq!(query.command(), ["sh", "-c", "echo \"a&b\"", ""]);
        assert_eq!(Query::parse(Some("cmd=ls++-l%20/")).run_command(), ["ls", "", "-l", "/"]);
        assert_eq!(Query::parse(None).run_command(), [""]);
    }

    #[test]
    fn streams_are_those_that_are_set_to_1() {
        let wanted = |query: &str| Query::parse(Some(query)).streams();
        let all = WantedStreams { stdin: true, stdout: true, stderr: true, tty: false };
        assert_eq!(wanted("input=1&output=1&error=1"), Ok(all));
        assert_eq!(
            wanted("input=1&output=1&error=1&tty=1"),
            Ok(WantedStreams { stderr: false, tty: true, ..all })
        );
        assert_eq!(wanted("output=1&input=true"), Ok(WantedStreams { stdout: true, ..Default::default() }));
        assert!(wanted("tty=1&error=1").is_err() && wanted("output=0").is_err() && wanted("").is_err());
    }

    #[test]
    fn ports_are_numbers_from_1_to_65535() {
        let ports = |query: &str| Query::parse(Some(query)).ports();
        assert_eq!(ports("port=80&port=8080,9090"), Ok(vec![80, 8080, 9090]));
        for bad in ["", "port=", "port=0", "port=65536", "port=-1", "port=%2b1", "port=80,", "ports=1"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read(query in "\\PC{0,80}") {
            let query = Query::parse(Some(&query));
            let (_command, _ports) = (query.command(), query.ports());
        }
    }
}
