//! PEM (RFC 7468): blocks of base64 with a label.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Bytes of a line.
const LINE: usize = 64;

/// A block with this label.
pub(super) fn block(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut block = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        block.push_str(line);
        block.push('\n');
        rest = after;
    }
    block.push_str(&format!("-----END {label}-----\n"));
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    #[test]
    fn a_reader_of_pem_finds_the_same_bytes() {
        for length in [0, 1, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let text = block("CERTIFICATE", &der);
            assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
            assert_eq!(CertificateDer::from_pem_slice(text.as_bytes()).unwrap().as_ref(), der);
        }
    }
}
