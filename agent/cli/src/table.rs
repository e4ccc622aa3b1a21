//! Text tables: columns for people.

/// Rows under a header. Columns are as wide as their widest cell and three blanks apart; the last
/// one is not padded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
}

impl Table {
    /// An empty table with this header.
    pub(crate) fn new(head: &[&str]) -> Table {
        let mut table = Table::default();
        table.row(head.iter().map(|h| (*h).to_owned()).collect());
        table
    }

    /// Adds a row. Control characters and line breaks become blanks, so that no text of a pod
    /// controls the terminal.
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

    /// Fits the table into a screen of that many columns. The widest columns are cut, except the last
    /// one, which may wrap. A cell is cut in its middle, because names differ at their beginning and
    /// at their end.
    pub(crate) fn fit(&mut self, columns: Option<usize>) {
        let Some(columns) = columns else { return };
        let last = self.widths.len().saturating_sub(1);
        let room = columns.saturating_sub(OPEN.min(self.widths.get(last).copied().unwrap_or_default()));
        loop {
            let kept = self.widths.get(..last).unwrap_or_default();
            let taken: usize = kept.iter().map(|w| w.saturating_add(3)).sum();
            let widest = kept.iter().copied().enumerate().max_by_key(|(_, w)| *w);
            let Some((n, width)) = widest.filter(|(_, w)| taken > room && *w > NARROWEST) else { break };
            if let Some(w) = self.widths.get_mut(n) {
                *w = width.saturating_sub(taken.saturating_sub(room)).max(NARROWEST);
            }
        }
        for row in &mut self.rows {
            for (cell, width) in row.iter_mut().zip(self.widths.iter().take(last)) {
                if cell.chars().count() > *width {
                    *cell = cut(cell, *width);
                }
            }
        }
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

/// Minimum width of a column that is cut.
const NARROWEST: usize = 16;
/// Minimum width kept for the last column.
const OPEN: usize = 20;

fn cut(cell: &str, width: usize) -> String {
    let all: Vec<char> = cell.chars().collect();
    let head = width.saturating_sub(1).div_ceil(2);
    let tail = width.saturating_sub(1).saturating_sub(head);
    let from = all.len().saturating_sub(tail);
    all.iter().take(head).chain(&['…']).chain(all.iter().skip(from)).collect()
}

/// One line without control characters.
pub(crate) fn plain(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_column_is_cut_for_a_narrow_screen_and_the_last_is_not() {
        let mut table = Table::new(&["NAME", "STATUS", "WHY"]);
        table.row(vec![format!("{}-end", "a".repeat(200)), "Running".into(), "w".repeat(50)]);
        let whole = table.clone().take();
        table.fit(None);
        assert_eq!(table.clone().take(), whole);
        table.fit(Some(80));
        let text = table.take();
        let [_, row] = text.lines().collect::<Vec<_>>().try_into().unwrap();
        let name = row.split_whitespace().next().unwrap();
        assert!(name.starts_with("aaaaaa") && name.contains('…') && name.ends_with("-end"), "{name}");
        assert_eq!(name.chars().count(), 80 - 20 - 3 - "Running".len() - 3);
        assert!(row.ends_with(&"w".repeat(50)));
        // A cut column keeps its minimum width.
        let mut tiny = Table::new(&["A", "B"]);
        tiny.row(vec!["b".repeat(40), String::new()]);
        tiny.fit(Some(1));
        assert_eq!(tiny.take().lines().nth(1).unwrap().chars().count(), 16);
    }

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
