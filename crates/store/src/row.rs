//! Between SQL values and the model's types.

use rusqlite::Row;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StoreError;

/// A column of text, parsed into a model type.
pub(crate) fn parsed<T>(row: &Row<'_>, column: &str) -> Result<T, StoreError>
where
    T: TryFrom<String>,
    T::Error: std::fmt::Display,
{
    let text: String = row.get(column)?;
    T::try_from(text).map_err(|e| StoreError::BadRow(format!("{column}: {e}")))
}

/// A column of text that holds one of a type's words.
pub(crate) fn word<T>(row: &Row<'_>, column: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|e| StoreError::BadRow(format!("{column}: {e}")))
}

/// A nullable column that holds one of a type's words.
pub(crate) fn optional_word<T>(row: &Row<'_>, column: &str) -> Result<Option<T>, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let text: Option<String> = row.get(column)?;
    text.map(|t| t.parse().map_err(|e| StoreError::BadRow(format!("{column}: {e}")))).transpose()
}

/// A nullable column of JSON.
pub(crate) fn optional_json<T: DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.get(column)?;
    text.map(|t| serde_json::from_str(&t).map_err(|e| StoreError::BadRow(format!("{column}: {e}"))))
        .transpose()
}

/// A value as JSON text, for [`optional_json`].
pub(crate) fn to_json<T: Serialize>(value: Option<&T>) -> Result<Option<String>, StoreError> {
    value.map(|v| serde_json::to_string(v).map_err(|e| StoreError::BadRow(e.to_string()))).transpose()
}

/// An unsigned number; SQLite has signed ones only.
pub(crate) fn unsigned<T: TryFrom<i64>>(row: &Row<'_>, column: &str) -> Result<T, StoreError> {
    let number: i64 = row.get(column)?;
    T::try_from(number).map_err(|_| StoreError::BadRow(format!("{column}: {number}")))
}

/// A nullable unsigned number.
pub(crate) fn optional_unsigned<T: TryFrom<i64>>(
    row: &Row<'_>,
    column: &str,
) -> Result<Option<T>, StoreError> {
    let number: Option<i64> = row.get(column)?;
    number.map(|n| T::try_from(n).map_err(|_| StoreError::BadRow(format!("{column}: {n}")))).transpose()
}
