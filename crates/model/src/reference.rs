//! References: how a word on the command line finds a thing.

use crate::{Error, ErrorCode, Result};

/// Finds what `reference` means among `(id, name)` pairs: exact id, exact name, else a unique
/// prefix of either. `what` is the noun for messages ("VM", "image"); `list` is the command that
/// shows what there is.
///
/// # Errors
/// `ambiguous` with the matches; `not_found` with near names.
pub fn resolve<'a, T>(
    what: &str,
    list: &str,
    reference: &str,
    things: &'a [T],
    key: impl Fn(&'a T) -> (&'a str, &'a str),
) -> Result<&'a T> {
    if let Some(found) = things.iter().find(|t| key(t).0 == reference) {
        return Ok(found);
    }
    if let Some(found) = things.iter().find(|t| key(t).1 == reference) {
        return Ok(found);
    }
    let matches: Vec<&T> = if reference.is_empty() {
        Vec::new()
    } else {
        let prefixed = |t: &&'a T| key(t).0.starts_with(reference) || key(t).1.starts_with(reference);
        things.iter().filter(prefixed).collect()
    };
    match matches.as_slice() {
        [one] => Ok(one),
        [] => {
            let near = near_names(reference, things.iter().map(|t| key(t).1));
            let error = Error::not_found(format!("no {what} '{}'", reference.escape_debug()));
            Err(if near.is_empty() {
                error.with_hint(format!("'{list}' shows what there is"))
            } else {
                error.with_hint(format!("did you mean {}?", near.join(" or ")))
            })
        }
        many => {
            let names: Vec<String> = many.iter().map(|t| format!("{} ({})", key(t).1, key(t).0)).collect();
            Err(Error::new(
                ErrorCode::Ambiguous,
                format!("'{reference}' matches {} {what}s: {}", many.len(), names.join(", ")),
            )
            .with_hint("give more of the name or id"))
        }
    }
}

fn near_names<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = names
        .map(|name| {
            (
                strsim::normalized_damerau_levenshtein(wanted, name)
                    .max(strsim::jaro_winkler(wanted, name) - 0.2),
                name,
            )
        })
        .filter(|(score, _)| *score > 0.6)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, name)| format!("'{name}'")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMS: &[(&str, &str)] = &[
        ("aa1111111111", "web"),
        ("aa2222222222", "web-2"),
        ("bb3333333333", "db"),
        ("cc4444444444", "aa1"),
    ];

    fn find(reference: &str) -> Result<&'static str> {
        resolve("VM", "banger ps -a", reference, VMS, |vm| (vm.0, vm.1)).map(|vm| vm.1)
    }

    #[test]
    fn exact_id_then_exact_name_then_unique_prefix() {
        assert_eq!(find("aa1111111111").unwrap(), "web");
        assert_eq!(find("web").unwrap(), "web", "exact name wins over the prefix of web-2");
        assert_eq!(find("aa1").unwrap(), "aa1", "exact name wins over the prefix of an id");
        assert_eq!(find("bb").unwrap(), "db");
        assert_eq!(find("web-").unwrap(), "web-2");
    }

    #[test]
    fn ambiguity_lists_the_matches_and_absence_suggests_near_names() {
        let many = find("aa").unwrap_err();
        assert_eq!(many.code, ErrorCode::Ambiguous);
        assert!(many.message.contains("web (aa1111111111)"), "{many}");
        let none = find("wbe").unwrap_err();
        assert_eq!(none.code, ErrorCode::NotFound);
        assert!(none.hint.unwrap().contains("'web'"));
        assert_eq!(find("").unwrap_err().code, ErrorCode::NotFound);
    }
}
