use super::*;
use crate::oci::{Entry, Image};
use serde_json::json;
use std::io::{Read, Write};

fn get(registry: &Registry, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(registry.state.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let at = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    (String::from_utf8_lossy(&all[..at]).into_owned(), all[at + 4..].to_vec())
}

fn image() -> Image {
    let layer = vec![Entry::file("a", 0o644, vec![b'x'; 10_000])];
    Image { name: "x".into(), layers: vec![layer], config: json!({}) }
}

#[test]
fn content_is_served_whole_and_from_an_offset_and_counted() {
    let registry = Registry::start().unwrap();
    let pushed = registry.push("team/app", "1", &image(), Encoding::Tar).unwrap();
    let (head, body) = get(&registry, "/v2/team/app/manifests/1", "");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains(&pushed.digest), "{head}");
    let manifest: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let path = format!("/v2/team/app/blobs/{layer}");
    let whole = get(&registry, &path, "").1;
    let (head, part) = get(&registry, &path, "Range: bytes=100-\r\n");
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    assert_eq!(part, whole[100..]);
    assert_eq!(registry.sent(), (whole.len() + part.len()) as u64);
    assert!(get(&registry, "/v2/team/app/manifests/2", "").0.starts_with("HTTP/1.1 404"));
    assert_eq!(registry.asked().len(), 4);
}

#[test]
fn faults_and_credentials_take_effect() {
    let registry = Registry::start().unwrap();
    registry.push("app", "1", &image(), Encoding::Gzip).unwrap();
    registry.add_fault(Fault::Status(Part::Manifest, 503, 1));
    let path = "/v2/app/manifests/1";
    assert!(get(&registry, path, "").0.starts_with("HTTP/1.1 503"));
    assert!(get(&registry, path, "").0.starts_with("HTTP/1.1 200"));
    registry.set_auth(Auth::Basic("me".into(), "pw".into()));
    assert!(get(&registry, path, "").0.contains("Basic realm"));
    assert!(get(&registry, path, "Authorization: Basic bWU6cHc=\r\n").0.starts_with("HTTP/1.1 200"));
    registry.set_auth(Auth::Token("me".into(), "pw".into()));
    assert!(get(&registry, path, "").0.contains("Bearer realm"));
    let (_, token) = get(&registry, "/token", "Authorization: Basic bWU6cHc=\r\n");
    let token: serde_json::Value = serde_json::from_slice(&token).unwrap();
    let bearer = format!("Authorization: Bearer {}\r\n", token["token"].as_str().unwrap());
    assert!(get(&registry, path, &bearer).0.starts_with("HTTP/1.1 200"));
    assert!(get(&registry, "/token", "").0.starts_with("HTTP/1.1 401"));
}
