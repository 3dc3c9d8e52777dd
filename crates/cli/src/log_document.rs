//! A log as JSON: its bytes in, as they come, one document out; of a log that is followed, one document a line.
//!
//! Must never hold more than the line that is not complete yet.

use serde_json::Value;

/// What a line of the log is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Text: a string.
    Text,
    /// A JSON document, which stays one. What is none is a string.
    Document,
}

/// Makes JSON of a log.
#[derive(Debug)]
pub(crate) struct LogDocument {
    line: Line,
    follow: bool,
    /// What goes before the first line and behind the last.
    around: (String, &'static str),
    begun: bool,
    partial: Vec<u8>,
}

impl LogDocument {
    /// `{"source": …, "lines": […]}`; followed, `{"line": …}` for each.
    pub(crate) fn of_text(source: &str, follow: bool) -> Self {
        let before = format!("{{\"source\":{},\"lines\":[", Value::from(source));
        Self { line: Line::Text, follow, around: (before, "]}\n"), begun: false, partial: Vec::new() }
    }

    /// An array of what the lines are; followed, each as it is.
    pub(crate) fn of_documents(follow: bool) -> Self {
        let around = ("[".to_owned(), "]\n");
        Self { line: Line::Document, follow, around, begun: false, partial: Vec::new() }
    }

    /// Takes in bytes of the log; returns what can be written.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.partial.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            self.put(&mut out);
        }
        self.partial.extend_from_slice(rest);
        out
    }

    /// The rest, when the log has ended.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.partial.is_empty() {
            self.put(&mut out);
        }
        if !self.follow {
            if !self.begun {
                out.extend_from_slice(self.around.0.as_bytes());
            }
            out.extend_from_slice(self.around.1.as_bytes());
        }
        out
    }

    /// Writes the line that is complete.
    fn put(&mut self, out: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.partial);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\r');
        let value = match self.line {
            Line::Text if self.follow => serde_json::json!({ "line": text }),
            Line::Text => Value::from(text),
            Line::Document => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        };
        if !self.follow {
            let before = if self.begun { "," } else { self.around.0.as_str() };
            out.extend_from_slice(before.as_bytes());
        }
        self.begun = true;
        out.extend_from_slice(value.to_string().as_bytes());
        if self.follow {
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(mut log: LogDocument, chunks: &[&[u8]]) -> String {
        let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| log.feed(chunk)).collect();
        out.extend(log.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_document_however_the_bytes_come_and_one_a_line_when_followed() {
        let text = || LogDocument::of_text("console", false);
        assert_eq!(whole(text(), &[]), "{\"source\":\"console\",\"lines\":[]}\n");
        let chunks: [&[u8]; 3] = [b"a \"b", b"\"\r\nsecond\xff\n", b"cut"];
        let expected = "{\"source\":\"console\",\"lines\":[\"a \\\"b\\\"\",\"second\u{fffd}\",\"cut\"]}\n";
        assert_eq!(whole(text(), &chunks), expected);
        assert_eq!(
            whole(LogDocument::of_text("vmm", true), &[b"x\ny\n"]),
            "{\"line\":\"x\"}\n{\"line\":\"y\"}\n"
        );
        assert_eq!(whole(LogDocument::of_documents(false), &[]), "[]\n");
        assert_eq!(whole(LogDocument::of_documents(false), &[b"{\"a\":1}\nno\n"]), "[{\"a\":1},\"no\"]\n");
        assert_eq!(whole(LogDocument::of_documents(true), &[b"{\"a\":1}\n"]), "{\"a\":1}\n");
    }
}
