//! The page size of an `emptyDir` of huge pages. The rule and its texts are the kubelet's (`getPageSizeMountOption`,
//! `pkg/volume/emptydir/empty_dir.go`). Pure.

use berth_core::{model::Pod, quantity::Quantity};

/// Bytes of a page of a volume whose medium names that size, or none (`HugePages`). The pod has to request pages of that
/// size; where the medium names none, all that it requests have one size.
///
/// # Errors
/// The pod requests no such pages, or pages of several sizes.
pub(crate) fn page_size(pod: &Pod, named: Option<&str>) -> Result<u64, String> {
    let medium = named.map_or("HugePages".to_owned(), |size| format!("HugePages-{size}"));
    let named = named.map(|size| bytes(size).ok_or_else(|| format!("{size:?} is no size of a page")));
    let named = named.transpose()?;
    let containers = pod.containers.iter().chain(&pod.init_containers).map(|c| &c.resources);
    let names = containers.chain(&pod.resources).flat_map(|r| r.requests.keys());
    let mut found = None;
    for size in names.filter_map(|name| bytes(name.strip_prefix("hugepages-")?)) {
        match (named, found) {
            (Some(named), _) if named != size => {}
            (None, Some(other)) if other != size => {
                return Err(format!(
                    "medium: {medium} can't be used if container requests multiple huge page sizes"
                ));
            }
            _ => found = Some(size),
        }
    }
    found.ok_or_else(|| {
        format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )
    })
}

/// Bytes of a size of pages, such as `2Mi`.
fn bytes(size: &str) -> Option<u64> {
    let bytes = size.parse::<Quantity>().ok()?.units();
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{container, pod};
    use berth_core::model::Resources;

    fn asking(all: &[&[&str]]) -> Pod {
        let mut pod = pod("p");
        let resources = |sizes: &[&str]| Resources {
            requests: sizes.iter().map(|s| (format!("hugepages-{s}"), "4Mi".parse().unwrap())).collect(),
            ..Resources::default()
        };
        pod.containers.clear();
        for sizes in all {
            let mut container = container("c");
            container.resources = resources(sizes);
            pod.containers.push(container);
        }
        pod
    }

    #[test]
    fn the_page_size_is_the_one_that_the_pod_requests() {
        let none = |medium: &str| {
            Err(format!(
                "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
            ))
        };
        let several = "medium: HugePages can't be used if container requests multiple huge page sizes";
        let of = |all: &[&[&str]], named| page_size(&asking(all), named);
        assert_eq!(of(&[&[], &["2Mi"]], None), Ok(2 << 20));
        assert_eq!(of(&[&["2Mi"], &["2Mi"]], None), Ok(2 << 20));
        assert_eq!(of(&[&["2Mi"], &["1Gi"]], None), Err(several.to_owned()));
        assert_eq!(of(&[&["2Mi", "1Gi"]], Some("1Gi")), Ok(1 << 30));
        assert_eq!(of(&[&["2048Ki"]], Some("2Mi")), Ok(2 << 20), "another name of the same size");
        assert_eq!(of(&[&["2Mi"]], Some("1Gi")), none("HugePages-1Gi"));
        assert_eq!(of(&[&[]], None), none("HugePages"));
        assert_eq!(of(&[&["0"]], Some("0")), Err("\"0\" is no size of a page".to_owned()));
        let mut init = asking(&[]);
        init.init_containers = asking(&[&["2Mi"]]).containers;
        assert_eq!(page_size(&init, None), Ok(2 << 20));
        let mut whole = asking(&[&[]]);
        whole.resources = Some(asking(&[&["1Gi"]]).containers.remove(0).resources);
        assert_eq!(page_size(&whole, None), Ok(1 << 30));
    }
}
