//! Page of `berth image inspect`.

use super::images::bytes;
use crate::table::plain;
use berth_api::view::ImageDetails;
use serde_json::Value;

/// The page of an image. Empty fields are left out.
pub(crate) fn page(image: &ImageDetails) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{:<22}{}\n", format!("{name}:"), plain(value)));
        }
    };
    for name in &image.names {
        field("Name", name);
    }
    field("Digest", &image.digest);
    field("Image ID", &image.id);
    field("Size", &bytes(image.size));
    for key in ["Entrypoint", "Cmd", "User", "WorkingDir", "Env", "Volumes", "StopSignal"] {
        match image.config.get(key) {
            Some(Value::Array(all)) if !all.is_empty() => {
                let words: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
                field(key, &words.join(" "));
            }
            Some(Value::String(word)) => field(key, word),
            _ => {}
        }
    }
    for (n, (digest, size)) in image.layers.iter().enumerate() {
        field(&format!("Layer {n}"), &format!("{digest}  {}", bytes(*size)));
    }
    for user in &image.used_by {
        field("Used by", user);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_has_what_is_known() {
        let image = ImageDetails {
            names: vec!["a.test/x:1".into()],
            digest: "sha256:aa".into(),
            size: 2048,
            layers: vec![("sha256:bb".into(), 1024)],
            config: json!({"Cmd": ["sh", "-c"], "User": "", "Env": []}),
            ..ImageDetails::default()
        };
        let wanted = "Name:                 a.test/x:1\nDigest:               sha256:aa\n\
                      Size:                 2.0 KiB\nCmd:                  sh -c\n\
                      Layer 0:              sha256:bb  1.0 KiB\n";
        assert_eq!(page(&image), wanted);
    }
}
