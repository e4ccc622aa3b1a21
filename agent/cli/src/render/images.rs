//! Table and JSON of `berth images`. The JSON items have the fields of `v1.Node`'s `status.images`,
//! and the digest and time besides.

use crate::{table::Table, time};
use berth_api::view::ImageView;
use berth_core::time::Wall;
use serde_json::{Value, json};

/// The table of images.
pub(crate) fn table(images: &[ImageView], now: Wall) -> Table {
    let mut table = Table::new(&["NAME", "DIGEST", "SIZE", "AGE"]);
    for i in images {
        let digest: String = i.digest.strip_prefix("sha256:").unwrap_or(&i.digest).chars().take(13).collect();
        let size = i.size.map_or_else(|| "incomplete".to_owned(), bytes);
        table.row(vec![i.name.clone(), digest, size, time::age(i.created, now)]);
    }
    table
}

/// The JSON list of images.
pub(crate) fn json(images: &[ImageView]) -> Value {
    let items: Vec<Value> = images
        .iter()
        .map(|i| {
            json!({
                "names": [i.name], "sizeBytes": i.size, "digest": i.digest,
                "createdAt": i.created.map(time::stamp),
            })
        })
        .collect();
    json!({ "apiVersion": "berth/v1", "kind": "ImageList", "items": items })
}

pub(super) fn bytes(n: u64) -> String {
    let mut unit = "B";
    let mut whole = n;
    let mut tenths = 0;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if whole < 1024 {
            break;
        }
        tenths = (whole % 1024) * 10 / 1024;
        whole /= 1024;
        unit = next;
    }
    if unit == "B" { format!("{whole} B") } else { format!("{whole}.{tenths} {unit}") }
}
