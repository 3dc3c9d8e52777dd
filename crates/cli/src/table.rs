//! Tables and small words for people: columns, ages, sizes. Must never do I/O.

use std::time::Duration;

use banger_model::Bytes;
use jiff::Timestamp;

use crate::output::printable;

/// Aligned columns under a heading, two spaces apart, without trailing blanks.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|h| h.len()).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell).replace(['\n', '\t'], " ")).collect())
        .collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let heading: Vec<String> = heading.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&heading).chain(&rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `key: value` lines, values aligned.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 2;
    pairs
        .iter()
        .map(|(key, value)| format!("{:width$}{}\n", format!("{key}:"), printable(value).replace('\n', " ")))
        .collect()
}

/// An absent value in a cell.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// A number of bytes.
pub(crate) fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// How long ago, in the largest unit: `12 s ago`.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = u64::try_from(now.duration_since(then).as_secs()).unwrap_or(0);
    format!("{} ago", span(Duration::from_secs(seconds)))
}

/// A span in the largest unit that fits: `12 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn span(span: Duration) -> String {
    match span.as_secs() {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min", s / 60),
        s if s < 86_400 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// Milliseconds as seconds with one decimal.
pub(crate) fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        let rows = vec![vec!["a".into(), "long cell".into()], vec!["bbbb".into(), String::new()]];
        assert_eq!(table(&["ID", "NAME"], &rows), "ID    NAME\na     long cell\nbbbb\n");
    }

    #[test]
    fn cells_cannot_break_the_table_or_the_terminal() {
        assert_eq!(table(&["A"], &[vec!["x\ny\x1b".into()]]), "A\nx y\\u{1b}\n");
    }

    #[test]
    fn ages_use_the_largest_unit_and_never_run_backwards() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(ago(at(0), at(59)), "59 s ago");
        assert_eq!(ago(at(0), at(7300)), "2 h ago");
        assert_eq!(ago(at(0), at(3 * 86_400)), "3 d ago");
        assert_eq!(ago(at(10), at(0)), "0 s ago", "a clock that was set back");
        assert_eq!(seconds(1234), "1.2 s");
    }
}
