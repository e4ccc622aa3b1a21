//! Columns for people.

/// Rows under a head; columns as wide as their widest cell, three blanks apart, the last one open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
}

impl Table {
    /// With this head.
    pub(crate) fn new(head: &[&str]) -> Table {
        let mut table = Table::default();
        table.row(head.iter().map(|h| (*h).to_owned()).collect());
        table
    }

    /// Adds a row. Line breaks and control characters of a cell are shown as blanks: no text of a pod draws on the
    /// user's terminal.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        let cells: Vec<String> = cells.iter().map(|c| plain(c)).collect();
        for (n, cell) in cells.iter().enumerate() {
            let width = cell.chars().count();
            match self.widths.get_mut(n) {
                Some(w) => *w = (*w).max(width),
                None => self.widths.push(width),
            }
        }
        self.rows.push(cells);
    }

    /// How many rows there are beside the head.
    pub(crate) fn len(&self) -> usize {
        self.rows.len().saturating_sub(1)
    }

    /// The rows since the last call, one line each.
    pub(crate) fn take(&mut self) -> String {
        let mut text = String::new();
        for row in self.rows.drain(..) {
            let mut line = String::new();
            for (n, cell) in row.iter().enumerate() {
                let width = self.widths.get(n).copied().unwrap_or_default();
                let last = n.saturating_add(1) == row.len();
                line.push_str(cell);
                if !last {
                    let pad = width.saturating_sub(cell.chars().count()).saturating_add(3);
                    line.extend(std::iter::repeat_n(' ', pad));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// One line without control characters.
pub(crate) fn plain(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_escape_nothing_to_the_terminal() {
        let mut table = Table::new(&["NAME", "WHY"]);
        table.row(vec!["ä".into(), "a\nb\x1b[2J".into()]);
        table.row(vec!["longer-name".into(), String::new()]);
        assert_eq!(table.len(), 2);
        assert_eq!(table.take(), "NAME          WHY\nä             a b [2J\nlonger-name\n");
        table.row(vec!["x".into(), "y".into()]);
        assert_eq!(table.take(), "x             y\n");
    }
}
