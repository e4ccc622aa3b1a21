//! Pages of `berth image inspect`, `prune` and `verify`.

use super::images::bytes;
use crate::table::plain;
use berth_api::view::{ImageDetails, PruneView, VerifiedImage};
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

/// What was pruned: the removed names, a line with what was freed, and the reasons why others stay.
pub(crate) fn pruned(view: &PruneView) -> String {
    let mut text: String = view.removed.iter().map(|name| format!("{}\n", plain(name))).collect();
    text.push_str(&format!("{} freed\n", bytes(view.freed)));
    if !view.kept.is_empty() {
        let kept: Vec<String> = view.kept.iter().map(|(why, n)| format!("{n} {}", plain(why))).collect();
        text.push_str(&format!("kept: {}\n", kept.join(", ")));
    }
    text
}

/// The check of an image: one line, or a line for each damaged part.
pub(crate) fn verified(image: &VerifiedImage) -> String {
    let name = plain(&image.name);
    if image.damage.is_empty() {
        return format!("{name}: ok, {} blobs, {}\n", image.blobs, bytes(image.bytes));
    }
    let line = |d: &berth_api::view::DamagedPart| {
        format!("{name}: {} {}: {}\n", plain(&d.part), plain(&d.digest), plain(&d.reason))
    };
    image.damage.iter().map(line).collect()
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

    #[test]
    fn what_is_pruned_and_damaged_is_said() {
        let view = PruneView {
            removed: vec!["a.test/x:1".into()],
            freed: 3 << 20,
            kept: vec![("in use".into(), 2), ("pinned".into(), 1)],
        };
        assert_eq!(pruned(&view), "a.test/x:1\n3.0 MiB freed\nkept: 2 in use, 1 pinned\n");
        let mut image =
            VerifiedImage { name: "a.test/x:1".into(), blobs: 3, bytes: 2048, ..VerifiedImage::default() };
        assert_eq!(verified(&image), "a.test/x:1: ok, 3 blobs, 2.0 KiB\n");
        let part = berth_api::view::DamagedPart {
            part: "layer 0".into(),
            digest: "sha256:aa".into(),
            reason: "it is missing".into(),
        };
        image.damage.push(part);
        assert_eq!(verified(&image), "a.test/x:1: layer 0 sha256:aa: it is missing\n");
    }
}
