//! Expansion of `$(NAME)` references in commands, `env` and sub-paths.

/// Replaces each `$(NAME)` by the value that `value` returns for NAME, and `$$` by `$`. A reference without
/// value, or without end, stays as written (`k8s.io/kubernetes/third_party/forked/golang/expansion`).
pub fn expand<'v>(text: &str, mut value: impl FnMut(&str) -> Option<&'v str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|s| s.split_once(')')) {
            match value(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_in_commands() {
        let value = |name: &str| match name {
            "A" => Some("one"),
            "EMPTY" => Some(""),
            _ => None,
        };
        for (text, want) in [
            ("$(A)-$(A)", "one-one"),
            ("$(EMPTY)x", "x"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$one"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("ä$(A)ö", "äoneö"),
        ] {
            assert_eq!(expand(text, value), want, "{text}");
        }
    }
}
