//! Wrong usage in our own words where the parser's lose a hint. Must never print.

use std::error::Error as _;

use banger_model::Error;
use clap::error::{ContextKind, ContextValue};

use crate::error::CliError;

/// The hint of a value that did not parse.
pub(crate) fn hint(error: &clap::Error) -> Option<&str> {
    cause(error)?.hint.as_deref()
}

/// `error: …` without the parser's usage lines.
pub(crate) fn brief(error: &clap::Error) -> String {
    format!("error: {}", sentence(error))
}

/// Wrong usage as an error of the contract.
pub(crate) fn as_error(error: &clap::Error) -> CliError {
    let told = Error::invalid(sentence(error));
    told.with_hint(hint(error).unwrap_or("try '--help'")).into()
}

fn cause(error: &clap::Error) -> Option<&Error> {
    error.source()?.downcast_ref()
}

fn sentence(error: &clap::Error) -> String {
    if let Some(cause) = cause(error) {
        return match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(arg)) => format!("{arg}: {cause}"),
            _ => cause.to_string(),
        };
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let paragraph: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    paragraph.join(" ")
}
