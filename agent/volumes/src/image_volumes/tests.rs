use super::*;
use crate::testing::{Node, pod};
use berth_core::ids::{Attempt, SandboxAttempt};
use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
};

struct Case {
    node: Node,
    uid: PodUid,
    id: ContainerId,
    image: PathBuf,
}

impl Case {
    fn new() -> Case {
        let node = Node::new();
        let uid = pod("p").uid;
        let id = ContainerId::derive(&uid, SandboxAttempt(0), &"main".parse().unwrap(), Attempt(0));
        let image = node.path().join("image");
        fs::create_dir(&image).unwrap();
        Case { node, uid, id, image }
    }

    fn make(&self, volumes: &[&str]) -> Result<Vec<PathBuf>, Error> {
        let volumes: Vec<String> = volumes.iter().map(|v| (*v).to_owned()).collect();
        self.node.volumes.image_volumes(&self.uid, &self.id, &volumes, || Ok(File::open(&self.image)?.into()))
    }
}

#[test]
fn a_volume_begins_with_what_the_image_has_there() {
    let case = Case::new();
    fs::create_dir_all(case.image.join("data/sub")).unwrap();
    fs::write(case.image.join("data/sub/seed"), "of the image").unwrap();
    fs::set_permissions(case.image.join("data"), Permissions::from_mode(0o1770)).unwrap();
    chown(case.image.join("data"), Some(1234), Some(99)).unwrap();
    chown(case.image.join("data/sub/seed"), Some(5), Some(6)).unwrap();
    symlink("/data", case.image.join("link")).unwrap();

    let made = case.make(&["/data", "/new/here", "/link"]).unwrap();
    let owned = |path: &Path| {
        let m = fs::symlink_metadata(path).unwrap();
        (m.mode() & 0o7777, m.uid(), m.gid())
    };
    assert_eq!(owned(&made[0]), (0o1770, 1234, 99));
    assert_eq!(owned(&made[0].join("sub/seed")), (0o644, 5, 6));
    assert_eq!(fs::read_to_string(made[0].join("sub/seed")).unwrap(), "of the image");
    assert_eq!(owned(&made[1]), (0o755, 0, 0), "as containerd makes what the image does not have");
    assert_eq!(fs::read_dir(&made[1]).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(made[2].join("sub/seed")).unwrap(), "of the image");
    assert_ne!(made[0], made[2]);

    // A repeated start keeps the files that the container wrote, and does not open the image.
    fs::write(made[0].join("written"), "").unwrap();
    let again = case.node.volumes.image_volumes(&case.uid, &case.id, &["/data".to_owned()], || {
        Err(io::Error::other("not to be opened"))
    });
    assert_eq!(again.unwrap(), made[..1]);
    assert!(made[0].join("written").exists());
    assert!(!case.image.join("data/written").exists());
}

#[test]
fn nothing_of_the_node_gets_in_or_is_harmed() {
    let case = Case::new();
    let outside = case.node.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "of the node").unwrap();
    symlink(format!("../../../../../..{}", outside.display()), case.image.join("up")).unwrap();
    symlink(&outside, case.image.join("absolute")).unwrap();
    fs::create_dir(case.image.join("data")).unwrap();
    symlink(&outside, case.image.join("data/out")).unwrap();

    let made = case.make(&["/up", "/absolute", "/data"]).unwrap();
    for empty in &made[..2] {
        assert_eq!(fs::read_dir(empty).unwrap().count(), 0, "the image has no such directory");
    }
    assert_eq!(fs::read_link(made[2].join("out")).unwrap(), outside);
    // A symlink that a container puts in place of a directory is removed, not followed.
    symlink(&outside, made[0].join("planted")).unwrap();
    case.node.volumes.remove_image_volumes(&case.uid, &case.id).unwrap();
    assert!(!made[0].exists() && !made[2].exists());
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "of the node");
    case.node.volumes.remove_image_volumes(&case.uid, &case.id).unwrap();

    let made = case.make(&["/data"]).unwrap();
    case.node.volumes.unmount(&case.uid).unwrap();
    assert!(!made[0].exists(), "they go with the pod too");
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "of the node");
}

#[test]
fn one_that_was_cut_short_is_made_anew() {
    let case = Case::new();
    fs::create_dir(case.image.join("data")).unwrap();
    fs::write(case.image.join("data/seed"), "whole").unwrap();
    fs::write(case.image.join("file"), "").unwrap();
    // The state that an agent leaves that died in the middle of the copy.
    let dir = case.node.volumes.image_volumes_dir(&case.uid, &case.id);
    fs::create_dir_all(dir.join(UNFINISHED)).unwrap();
    fs::write(dir.join(UNFINISHED).join("seed"), "ha").unwrap();
    let error = case.make(&["/file"]).unwrap_err();
    assert_eq!(
        error.message(),
        "cannot create a directory for the VOLUME \"/file\" of the image: cannot open /file: Not a directory (os error 20)"
    );
    let made = case.make(&["/data"]).unwrap();
    assert_eq!(fs::read_to_string(made[0].join("seed")).unwrap(), "whole");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
}
