//! The one place that prints: standard output for results, standard error for everything else.
//!
//! Owns colour, `NO_COLOR`, `--json` and `--quiet`. Must never let a guest's bytes reach a terminal
//! as control sequences through a message.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use banger_protocol::api::{Check, CheckStatus};
use serde::Serialize;

use crate::error::{CliError, Result};

/// How this process prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON document on stdout, errors as JSON, no notices.
    pub(crate) json: bool,
    /// No notices, no progress.
    pub(crate) quiet: bool,
    /// Colour on stderr.
    colour: bool,
}

/// How a word on stderr looks.
#[derive(Debug, Clone, Copy)]
enum Style {
    Error,
    Hint,
    Dim,
}

impl Output {
    /// From the global flags and the environment.
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, colour: colour_allowed() && io::stderr().is_terminal() }
    }

    /// Whether people watch: notices and progress may be shown.
    pub(crate) fn chatty(self) -> bool {
        !self.json && !self.quiet
    }

    /// Writes bytes to stdout as they are.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
    }

    /// A line on stdout.
    pub(crate) fn line(self, text: &str) -> Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// The one JSON document on stdout; indented for people.
    pub(crate) fn document<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        let text = if io::stdout().is_terminal() {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        self.line(&text.map_err(CliError::protocol)?)
    }

    /// A list: the document of `--json`, what scripts take with `-q`, or a table for people.
    pub(crate) fn list<T: Serialize>(
        self,
        all: &[T],
        name: impl Fn(&T) -> String,
        table: impl FnOnce(&[T]) -> String,
    ) -> Result<u8> {
        if self.json {
            self.document(all)?;
        } else if self.quiet {
            let names: String = all.iter().map(|one| name(one) + "\n").collect();
            self.bytes(names.as_bytes())?;
        } else {
            self.bytes(table(all).as_bytes())?;
        }
        Ok(0)
    }

    /// Something worth knowing, on stderr, unless quiet.
    pub(crate) fn notice(self, text: &str) {
        if self.chatty() {
            self.say(&format!("{}\n", printable(text)));
        }
    }

    /// Text on stderr that was asked for (a timings table).
    pub(crate) fn aside(self, text: &str) {
        self.say(text);
    }

    /// The error, as text or as the one JSON object.
    pub(crate) fn error(self, error: &CliError) {
        if self.json {
            if let Some(value) = error.to_json() {
                self.say(&format!("{value}\n"));
            }
            return;
        }
        for body in error.bodies() {
            let message = printable(&body.message);
            let (first, rest) = message.split_once('\n').map_or((&*message, None), |(a, b)| (a, Some(b)));
            let mut text = format!("{} {first}", self.paint(Style::Error, "error:"));
            if let Some(op) = &body.op_id {
                text.push(' ');
                text.push_str(&self.paint(Style::Dim, &format!("({op})")));
            }
            text.push('\n');
            if let Some(rest) = rest {
                text.push_str(rest.trim_end());
                text.push('\n');
            }
            if let Some(hint) = &body.hint {
                text.push_str(&format!("{} {}\n", self.paint(Style::Hint, "hint:"), printable(hint)));
            }
            self.say(&text);
        }
    }

    /// One line of `doctor`, and its hint below.
    pub(crate) fn check(self, check: &Check) -> Result<()> {
        let (word, code) = match check.status {
            CheckStatus::Ok => ("ok", "32"),
            CheckStatus::Warn => ("warn", "33"),
            CheckStatus::Fail => ("fail", "1;31"),
        };
        let colour = colour_allowed() && io::stdout().is_terminal();
        let padded = format!("{word:4}");
        let word = if colour { format!("\x1b[{code}m{padded}\x1b[0m") } else { padded };
        let mut text = format!("{word}  {:12} {}\n", check.name, printable(&check.detail));
        if let Some(hint) = &check.hint {
            text.push_str(&format!("      {:12} hint: {}\n", "", printable(hint)));
        }
        self.bytes(text.as_bytes())
    }

    fn paint<'a>(self, style: Style, text: &'a str) -> Cow<'a, str> {
        if !self.colour {
            return text.into();
        }
        let code = match style {
            Style::Error => "1;31",
            Style::Hint => "1;36",
            Style::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m").into()
    }

    /// stderr may be closed; then there is nobody left to tell.
    fn say(self, text: &str) {
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}

/// Whether anybody forbade colour: `NO_COLOR` (no-color.org: set and not empty) or a dumb terminal.
pub(crate) fn colour_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// The text with control characters (but newline and tab) made visible: messages may carry the
/// last lines of a guest's console.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let hostile = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(hostile) {
        return text.into();
    }
    text.chars()
        .map(|c| if hostile(c) { c.escape_default().to_string() } else { c.to_string() })
        .collect::<String>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_escape_sequences_are_shown_not_obeyed() {
        assert_eq!(printable("plain\n\ttext ü"), "plain\n\ttext ü");
        assert_eq!(printable("a\x1b[2Jb\r"), "a\\u{1b}[2Jb\\r");
    }
}
