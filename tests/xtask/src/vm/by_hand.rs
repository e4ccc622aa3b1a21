//! README's section "By hand" as a script.

use super::payload::CHECKOUT;
use anyhow::{Context, Result, ensure};

/// The indented lines of the section, unchanged, for a checkout that is already built.
///
/// # Errors
/// README has no such section, or the section is empty.
pub(super) fn script() -> Result<String> {
    let path = crate::root().join("README.md");
    let readme = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(format!("set -e -x\ncd {CHECKOUT}\n{}", of(&readme)?))
}

fn of(readme: &str) -> Result<String> {
    let section = readme.split("\n## ").find(|s| s.starts_with("By hand\n"));
    let section = section.context("README has no section \"By hand\"")?;
    let commands: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        // Build commands are left out: the VM gets a built checkout.
        .filter(|line| !line.starts_with("cargo build "))
        .collect();
    ensure!(!commands.is_empty(), "README's section \"By hand\" has no commands");
    Ok(commands.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_of_the_section_and_of_no_other_are_taken() {
        let readme = "# X\n\n    no\n\n## By hand\n\nFirst:\n\n    cargo build -p x   # long\n    install x /y\n\n    cat <<E\n      a\n    E\n\n## Next\n\n    no\n";
        assert_eq!(of(readme).unwrap(), "install x /y\ncat <<E\n  a\nE\n");
        assert!(of("# X\n").is_err());
        assert!(of("\n## By hand\n\nnothing\n").is_err());
    }

    #[test]
    fn readme_has_them() {
        let script = script().unwrap();
        assert!(script.contains("install target/release/berth ") && script.contains("systemctl"), "{script}");
    }
}
