//! Check of the names in documents against the repository: links, files, tests, suites, crates and
//! dependencies.
//!
//! The module owns the rules by which a name in a Markdown file is recognised. A name that the repository
//! does not have fails the check, so that a rename includes the documents.

use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Folders without documents or sources of this repository.
const SKIPPED: &[&str] = &["target", ".git", "node_modules"];

/// Maximum length of ARCHITECTURE.md in lines, so that readers read the page whole.
const ARCHITECTURE_LINES: usize = 150;

/// Names that documents may use: the contents of the repository.
#[derive(Debug, Default)]
struct Known {
    /// Every file and folder, relative to the repository's root.
    paths: BTreeSet<PathBuf>,
    /// Names of all functions.
    functions: BTreeSet<String>,
    /// Names of the workspace's packages.
    packages: BTreeSet<String>,
    /// Names accepted after `--suite`.
    suites: BTreeSet<String>,
    /// The first paragraph of each module's page, on one line and in lower case.
    heads: BTreeMap<PathBuf, String>,
}

/// Checks every Markdown file of the repository.
///
/// # Errors
/// A document names a thing that does not exist; the error lists each place.
pub(crate) fn check() -> Result<()> {
    let root = crate::root();
    let known = Known::read(&root)?;
    let mut wrong = Vec::new();
    for path in known.paths.iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(root.join(path)).with_context(|| format!("read {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let found = known.wrong(folder, &text);
        wrong.extend(found.into_iter().map(|(line, what)| format!("{}:{line}: {what}", path.display())));
    }
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).context("read ARCHITECTURE.md")?;
    let lines = architecture.lines().count();
    if lines > ARCHITECTURE_LINES {
        wrong.push(format!("ARCHITECTURE.md has {lines} lines, more than {ARCHITECTURE_LINES}"));
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("read Cargo.toml")?;
    wrong.extend(dependencies(&manifest, &architecture));
    let contributing = fs::read_to_string(root.join("CONTRIBUTING.md")).context("read CONTRIBUTING.md")?;
    wrong.extend(words(&contributing, &known.heads));
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

impl Known {
    fn read(root: &Path) -> Result<Known> {
        let mut known = Known::default();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(root.join(&folder)).context("read the repository's folders")? {
                let entry = entry.context("read the repository's folders")?;
                let name = entry.file_name();
                if SKIPPED.iter().any(|skipped| name == *skipped) {
                    continue;
                }
                let path = folder.join(&name);
                if entry.file_type().context("read the repository's folders")?.is_dir() {
                    folders.push(path.clone());
                }
                known.paths.insert(path);
            }
        }
        for path in known.paths.iter().filter(|p| p.extension().is_some_and(|e| e == "rs")) {
            let text =
                fs::read_to_string(root.join(path)).with_context(|| format!("read {}", path.display()))?;
            known.functions.extend(names_after(&text, "fn "));
            let head = text.lines().map_while(|line| line.strip_prefix("//! ")).collect::<Vec<_>>().join(" ");
            known.heads.insert(path.clone(), head.to_lowercase());
        }
        for path in known.paths.iter().filter(|p| p.ends_with("Cargo.toml")) {
            let text =
                fs::read_to_string(root.join(path)).with_context(|| format!("read {}", path.display()))?;
            let package = text.split("[package]").nth(1).and_then(|package| quoted(package, "name"));
            known.packages.extend(package);
        }
        let runner =
            fs::read_to_string(root.join("tests/xtask/src/test.rs")).context("read the test runner")?;
        known.suites.extend(
            runner.split("Some(\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned),
        );
        let tests = ["tests/node/tests", "tests/services/tests"];
        for path in known.paths.iter().filter(|p| tests.iter().any(|t| p.parent() == Some(Path::new(t)))) {
            known.suites.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
        Ok(known)
    }

    /// Names in a document of this folder that do not exist, with line numbers from 1.
    fn wrong(&self, folder: &Path, text: &str) -> Vec<(usize, String)> {
        let mut wrong = Vec::new();
        for (number, line) in text.lines().enumerate() {
            for link in between(line, "](", ")") {
                let target = link.split('#').next().unwrap_or_default();
                if !target.is_empty() && !target.contains("://") && !self.has(folder, target) {
                    wrong.push((number + 1, format!("link to {target}, which is not there")));
                }
            }
            for code in between(line, "`", "`") {
                wrong.extend(self.wrong_code(folder, code).map(|what| (number + 1, what)));
            }
            let words: Vec<&str> = line.split(|c: char| c.is_whitespace() || "`,;()".contains(c)).collect();
            for pair in words.windows(2) {
                let [flag, name] = pair else { continue };
                let name = name.trim_end_matches(['.', ':']);
                let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                if *flag == "--suite" && plain && !self.suites.contains(name) {
                    wrong.push((number + 1, format!("suite {name}, which is not there")));
                }
                if *flag == "-p" && name.starts_with("berth") && !self.packages.contains(name) {
                    wrong.push((number + 1, format!("package {name}, which is not there")));
                }
            }
        }
        wrong
    }

    /// Error of a word in backticks of the form `file.rs` or `file.rs: test_name`; `None` where the names
    /// exist.
    fn wrong_code(&self, folder: &Path, code: &str) -> Option<String> {
        let (file, test) = code.split_once(": ").map_or((code, None), |(file, test)| (file, Some(test)));
        let is_source = file.ends_with(".rs")
            && file.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
            && !file.starts_with('/')
            && !file.starts_with('.')
            // `foo` stands for any module.
            && !file.starts_with("foo");
        if is_source && !self.has(folder, file) {
            return Some(format!("file {file}, which is not there"));
        }
        let test = test.filter(|_| is_source)?;
        let name: String = test.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        (!self.functions.contains(&name)).then(|| format!("test {name}, which is not there"))
    }

    /// Whether a path exists: relative to the document, relative to the root, or as the end of a path.
    fn has(&self, folder: &Path, target: &str) -> bool {
        let target = Path::new(target.trim_end_matches('/'));
        let mut from_document = PathBuf::new();
        for part in folder.join(target).components() {
            match part {
                std::path::Component::ParentDir => {
                    from_document.pop();
                }
                std::path::Component::Normal(name) => from_document.push(name),
                _ => {}
            }
        }
        self.paths.contains(&from_document)
            || self.paths.contains(target)
            || self.paths.iter().any(|path| path.ends_with(target))
    }
}

/// Words of the section "Where to find it" that do not stand in exactly their one module.
fn words(page: &str, heads: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let section = page.split("## Where to find it").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | `"));
    let mut wrong = Vec::new();
    let mut any = false;
    for (word, module) in rows {
        any = true;
        let module = Path::new(module.trim_end_matches([' ', '|', '`']));
        let sought = word.to_lowercase();
        let found: Vec<_> =
            heads.iter().filter(|(_, head)| head.contains(&sought)).map(|(path, _)| path).collect();
        if found != [module] {
            wrong.push(format!(
                "\"{word}\" should lead to {} alone, and stands in {found:?}",
                module.display()
            ));
        }
    }
    if !any {
        wrong.push("CONTRIBUTING.md has no list \"Where to find it\"".to_owned());
    }
    wrong
}

/// Workspace dependencies without a reason on the page, and reasons for things that are no dependency.
fn dependencies(manifest: &str, page: &str) -> Vec<String> {
    let table = manifest.split("[workspace.dependencies]").nth(1).unwrap_or_default();
    let table = table.split("\n[").next().unwrap_or_default();
    let used: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name.trim()))
        .filter(|name| !name.is_empty() && !name.starts_with("berth") && !name.starts_with('#'))
        .collect();
    let section = page.split("## Dependencies").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let named: BTreeSet<&str> = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| --") && !line.starts_with("| Crate"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split(','))
        .map(str::trim)
        .collect();
    let missing = used
        .difference(&named)
        .map(|name| format!("ARCHITECTURE.md gives no reason for the dependency {name}"));
    let unknown =
        named.difference(&used).map(|name| format!("ARCHITECTURE.md names {name}, which is no dependency"));
    missing.chain(unknown).collect()
}

/// The words that follow `keyword` in the text.
fn names_after<'t>(text: &'t str, keyword: &'t str) -> impl Iterator<Item = String> + 't {
    text.split(keyword)
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect())
}

/// The first quoted value of a key.
fn quoted(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.split('=').next().is_some_and(|name| name.trim() == key))?;
    line.split('"').nth(1).map(str::to_owned)
}

/// The texts between two marks within one line.
fn between<'t>(line: &'t str, open: &'t str, close: &'t str) -> impl Iterator<Item = &'t str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let from = rest.find(open)? + open.len();
        let inside = rest.get(from..)?;
        let to = inside.find(close)?;
        rest = inside.get(to + close.len()..).unwrap_or_default();
        inside.get(..to)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn known() -> Known {
        Known {
            paths: ["README.md", "agent/core/src/plan.rs"].map(PathBuf::from).into(),
            functions: ["a_test".to_owned()].into(),
            packages: ["berth-core".to_owned()].into(),
            suites: ["kill".to_owned()].into(),
            heads: BTreeMap::new(),
        }
    }

    #[test]
    fn what_is_not_there_is_found_with_its_line() {
        let text = "[gone](docs/gone.md)\n`core/src/lost.rs`, `plan.rs: no_test`\n`cargo test -p berth-none`\n--suite none";
        let wrong = known().wrong(Path::new(""), text);
        let lines: Vec<usize> = wrong.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 2, 3, 4], "{wrong:?}");
    }

    #[test]
    fn what_is_there_is_found_from_the_document_from_the_root_and_by_its_end() {
        let text = "[up](../README.md#top) [far](https://x.test/y.md) `agent/core/src/plan.rs` `core/src/plan.rs: a_test`\n\
                    `cargo test -p berth-core --test kill` --suite kill `berth agent --suite=x`";
        assert_eq!(known().wrong(Path::new("agent"), text), []);
    }

    #[test]
    fn a_word_leads_to_one_module() {
        let heads = |two: &str| {
            [("a.rs", "back-off: of containers"), ("b.rs", two)]
                .map(|(path, head)| (PathBuf::from(path), head.to_owned()))
                .into()
        };
        let page = "## Where to find it\n| Word | Module |\n| --- | --- |\n| back-off | `a.rs` |\n";
        assert_eq!(words(page, &heads("something else")), Vec::<String>::new());
        assert_eq!(words(page, &heads("the crash back-off")).len(), 1);
        assert_eq!(words("", &heads("")).len(), 1, "a page without the list");
    }

    #[test]
    fn every_dependency_has_a_reason_and_every_reason_a_dependency() {
        let manifest = "[workspace.dependencies]\ntokio = \"1\"\nnix = \"0.31\"\nberth-core = { path = \"x\" }\n\n[workspace.lints.rust]\nx = \"y\"";
        let page =
            "## Dependencies\n| Crate | Why |\n| --- | --- |\n| tokio, serde | tasks |\n## More\n| nix | x |";
        let wrong = dependencies(manifest, page);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong.iter().any(|w| w.contains("nix")) && wrong.iter().any(|w| w.contains("serde")));
    }
}
