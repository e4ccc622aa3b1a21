//! Whether a cluster is the one that a person means: the bootstrap token, the pins of its CA, and the
//! signature of its ConfigMap `cluster-info`. Pure.
//!
//! The formats are kubeadm's: a token is `[a-z0-9]{6}.[a-z0-9]{16}`; a pin is `sha256:` and the hash of the
//! CA's public key (SPKI) in hex; the signature is a detached JWS (RFC 7515, appendix F) by HMAC-SHA256 with
//! the token's secret.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde::Deserialize;
use std::{fmt, str::FromStr};

/// A bootstrap token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    id: String,
    secret: String,
}

/// SHA-256 of a CA's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pin([u8; 32]);

// The secret stays out of logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Token, String> {
        let is = |part: &str, length| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        };
        match text.split_once('.') {
            Some((id, secret)) if is(id, 6) && is(secret, 16) => {
                Ok(Token { id: id.to_owned(), secret: secret.to_owned() })
            }
            _ => {
                Err("must be a bootstrap token such as abcdef.0123456789abcdef (kubeadm token create)"
                    .to_owned())
            }
        }
    }
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Pin, String> {
        let wrong = || "must be sha256: and 64 digits in hex, as `kubeadm token create` prints it".to_owned();
        let (format, hex) = text.split_once(':').ok_or_else(wrong)?;
        if !format.eq_ignore_ascii_case("sha256") || hex.len() != 64 || !hex.is_ascii() {
            return Err(wrong());
        }
        let mut digest = [0; 32];
        for (byte, at) in digest.iter_mut().zip((0..hex.len()).step_by(2)) {
            let digits = hex.get(at..at + 2).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
            let parsed = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            *byte = parsed.ok_or_else(wrong)?;
        }
        Ok(Pin(digest))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Token {
    /// Id of the token, which is no secret.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The whole token, for a kubeconfig.
    pub(crate) fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// Whether a detached JWS is this token's signature of a text.
    ///
    /// # Errors
    /// The reason why it is none.
    pub(crate) fn verify(&self, signature: &str, content: &str) -> Result<(), &'static str> {
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            #[serde(default)]
            kid: String,
        }
        let mut parts = signature.split('.');
        let (Some(head), Some(""), Some(tag), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("the signature is no detached JWS");
        };
        let header = URL_SAFE_NO_PAD.decode(head).ok();
        let header = header.and_then(|text| serde_json::from_slice::<Header>(&text).ok());
        let header = header.ok_or("the signature has no readable header")?;
        if header.alg != "HS256" || header.kid != self.id {
            return Err("the signature is of another kind or another token");
        }
        let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_invalid| "the signature is no base64")?;
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(content));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        hmac::verify(&key, signed.as_bytes(), &tag).map_err(|_mismatch| "the signature is not of this token")
    }
}

/// Whether one of the CAs is pinned.
///
/// # Errors
/// None is; the text has the pins of all, for a person who compares.
pub(crate) fn check_pins(pins: &[Pin], digests: &[[u8; 32]]) -> Result<(), String> {
    if digests.iter().any(|digest| pins.contains(&Pin(*digest))) {
        return Ok(());
    }
    let found: Vec<String> = digests.iter().map(|digest| Pin(*digest).to_string()).collect();
    let found = if found.is_empty() { "none that can be read".to_owned() } else { found.join(", ") };
    Err(format!("its CA is not the one of --ca-hash; its CA has {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        "abcdef.0123456789abcdef".parse().unwrap()
    }

    fn signed(header: &str, content: &str, secret: &str) -> String {
        let head = URL_SAFE_NO_PAD.encode(header);
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let text = format!("{head}.{}", URL_SAFE_NO_PAD.encode(content));
        format!("{head}..{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes())))
    }

    #[test]
    fn tokens_and_pins_have_kubeadms_form() {
        assert_eq!((token().id(), token().reveal().as_str()), ("abcdef", "abcdef.0123456789abcdef"));
        assert!(!format!("{:?}", token()).contains("0123"), "no secret in a log");
        for bad in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "abcdef.0123456789abcdeF",
            "abcde\u{e9}.0123456789abcdef",
        ] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
        let hex = "3b793efefe27a19f93b0fbe6e637e9c41d0dde8a377d6ab1c0f656bf1136dd8a";
        let pin: Pin = format!("SHA256:{}", hex.to_uppercase()).parse().unwrap();
        assert_eq!(pin.to_string(), format!("sha256:{hex}"));
        let signs = format!("sha256:{}", "+1".repeat(32));
        for bad in ["", hex, "md5:00", "sha256:00", &signs, "sha256:\u{e9}"] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_tokens_own_signature_of_the_text_counts() {
        let (header, content) = (r#"{"alg":"HS256","kid":"abcdef"}"#, "apiVersion: v1\n");
        let good = signed(header, content, "0123456789abcdef");
        assert_eq!(token().verify(&good, content), Ok(()));
        assert!(token().verify(&good, "apiVersion: v2\n").is_err());
        assert!(token().verify(&signed(header, content, "other"), content).is_err());
        for header in [r#"{"alg":"none","kid":"abcdef"}"#, r#"{"alg":"HS256","kid":"abcdeg"}"#, "{}", "x"] {
            assert!(
                token().verify(&signed(header, content, "0123456789abcdef"), content).is_err(),
                "{header}"
            );
        }
        for bad in ["", "..", "a.b.c", "a..b.c", good.trim_end_matches(|c| c != '.')] {
            assert!(token().verify(bad, content).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_recorded_signature_of_kubernetes_is_taken() {
        // `token/jws/jws_test.go` of k8s.io/cluster-bootstrap.
        let token: Token = "joshua.0123456789abcdef".parse().unwrap();
        let known = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8";
        let secret = "my voice is my passcode";
        let token = Token { secret: secret.to_owned(), ..token };
        assert_eq!(
            token.verify(known, "Hello from the other side. I must have called a thousand times."),
            Ok(())
        );
    }

    #[test]
    fn a_ca_that_is_not_pinned_is_told_with_its_pin() {
        let pin: Pin = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        assert_eq!(check_pins(&[pin], &[[1; 32], [0xab; 32]]), Ok(()));
        let told = check_pins(&[pin], &[[1; 32]]).unwrap_err();
        assert!(told.contains(&format!("sha256:{}", "01".repeat(32))), "{told}");
        assert!(check_pins(&[], &[[1; 32]]).is_err());
    }
}
