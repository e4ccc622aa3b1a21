//! `/logs/`: files and directories of the node's log directory, as Go's file server shows them.
//!
//! Containers may write below the log directory, so nothing is followed that could lead out: no symbolic link, no mount
//! magic, and only regular files are read. The kubelet follows links.

use crate::{Cut, ResponseBody, path::RequestPath, response};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use rustix::{
    fs::{Dir, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{fs::File, io::Read as _, path::Path};
use tokio::{sync::mpsc, task::spawn_blocking};

/// Bytes of one read.
const CHUNK: usize = 32 << 10;

/// Most entries of a directory that are shown.
const ENTRIES: usize = 10_000;

/// What a path of the log directory is.
enum Found {
    File(File),
    Directory(String),
}

/// Answers a request for a file or directory below `root`.
pub(crate) async fn serve(root: &Path, path: &RequestPath, segments: &[&str]) -> Response<ResponseBody> {
    let relative = if segments.is_empty() { ".".to_owned() } else { segments.join("/") };
    let root = root.to_owned();
    let found = spawn_blocking(move || open(&root, &relative)).await;
    match found {
        Ok(Ok(Found::File(_))) if path.is_directory() => response::not_found(),
        Ok(Ok(Found::File(file))) => send(file),
        Ok(Ok(Found::Directory(page))) => {
            let mut answer = response::text(StatusCode::OK, page);
            let html = HeaderValue::from_static("text/html; charset=utf-8");
            answer.headers_mut().insert(header::CONTENT_TYPE, html);
            answer
        }
        Ok(Err(Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::XDEV)) => {
            response::text(StatusCode::FORBIDDEN, "403 Forbidden\n")
        }
        Ok(Err(Errno::NOENT | Errno::NOTDIR)) => response::not_found(),
        _ => response::text(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n"),
    }
}

fn open(root: &Path, relative: &str) -> Result<Found, Errno> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The root belongs to the node's owner, so links in its path are followed.
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    // Without blocking, because a FIFO would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(&root, relative, flags, Mode::empty(), beneath)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) {
        FileType::RegularFile => Ok(Found::File(File::from(opened))),
        FileType::Directory => Ok(Found::Directory(page(Dir::read_from(&opened)?)?)),
        _ => Err(Errno::ACCESS),
    }
}

/// The page of a directory: a link for each entry, sorted.
fn page(entries: Dir) -> Result<String, Errno> {
    let mut names = Vec::new();
    for entry in entries.take(ENTRIES) {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name != "." && name != ".." {
            let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
            names.push(format!("{name}{slash}"));
        }
    }
    names.sort();
    let mut page =
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for name in names {
        page += &format!("<a href=\"{}\">{}</a>\n", link(&name), escaped(&name));
    }
    Ok(page + "</pre>\n")
}

/// The name as a relative reference.
fn link(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    let mut link: String = name
        .bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect();
    // A colon in the first segment would be a scheme; it is escaped above, so nothing is left to do.
    if link.is_empty() {
        link.push('.');
    }
    link
}

/// The name as text of a page.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        match c {
            '&' => text += "&amp;",
            '<' => text += "&lt;",
            '>' => text += "&gt;",
            '"' => text += "&#34;",
            '\'' => text += "&#39;",
            c => text.push(c),
        }
    }
    text
}

/// Sends a file, up to the size that it has now.
fn send(file: File) -> Response<ResponseBody> {
    let (parts, body) = mpsc::channel(1);
    let Ok(size) = file.metadata().map(|metadata| metadata.len()) else {
        return response::text(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error\n");
    };
    let mut answer = response::stream(body);
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    let mut rest = file.take(size);
    tokio::spawn(async move {
        loop {
            let Ok(slot) = parts.reserve().await else { return };
            let reading = spawn_blocking(move || {
                let mut chunk = vec![0; CHUNK];
                let read = rest.read(&mut chunk).map(|n| {
                    chunk.truncate(n);
                    chunk
                });
                (rest, read)
            });
            match reading.await {
                Ok((_, Ok(chunk))) if chunk.is_empty() => return,
                Ok((file, Ok(chunk))) => {
                    slot.send(Ok(Bytes::from(chunk)));
                    rest = file;
                }
                Ok((_, Err(error))) => return slot.send(Err(Cut(error.to_string()))),
                Err(error) => return slot.send(Err(Cut(error.to_string()))),
            }
        }
    });
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use std::{fs, os::unix::fs::symlink};

    async fn get(root: &Path, raw: &str) -> (u16, String) {
        let path = RequestPath::decode(raw).unwrap();
        let segments: Vec<&str> = path.segments().skip(1).collect();
        let answer = serve(root, &path, &segments).await;
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn files_and_directories_are_shown_and_nothing_leads_out() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("log");
        fs::create_dir_all(root.join("pods/a")).unwrap();
        fs::write(tmp.path().join("secret"), "s").unwrap();
        fs::write(root.join("x<y>.log"), "").unwrap();
        let long = "line\n".repeat(50_000);
        fs::write(root.join("pods/a/0.log"), &long).unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("pods", root.join("in")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, 0o600.into(), 0).unwrap();
        let (code, page) = get(&root, "/logs/").await;
        assert_eq!(code, 200);
        assert!(page.contains("<a href=\"pods/\">pods/</a>\n"), "{page}");
        assert!(page.contains("<a href=\"x%3Cy%3E.log\">x&lt;y&gt;.log</a>\n"), "{page}");
        assert_eq!(get(&root, "/logs/pods/a/0.log").await, (200, long));
        assert_eq!(get(&root, "/logs/x%3Cy%3E.log").await, (200, String::new()));
        for (path, code) in
            [("out", 403), ("in/a/0.log", 403), ("fifo", 403), ("none", 404), ("pods/a/0.log/x", 404)]
        {
            assert_eq!(get(&root, &format!("/logs/{path}")).await.0, code, "{path}");
        }
    }
}
