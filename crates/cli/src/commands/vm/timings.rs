//! `--timings`: where the time of a start went.

use banger_protocol::api::{CreatedVm, Timing};
use serde::Serialize;
use serde_json::Value;

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::table::table;

/// The table of `--timings`, on stderr.
pub(super) fn show(timings: &[Timing], context: &Context) {
    let total: f64 = timings.iter().map(|t| t.ms).sum();
    let rows: Vec<Vec<String>> = timings
        .iter()
        .map(|t| (t.step.as_str(), t.ms))
        .chain(std::iter::once(("total", total)))
        .map(|(step, ms)| vec![step.to_owned(), format!("{ms:>9.1}")])
        .collect();
    context.output.aside(&table(&["STEP", "       MS"], &rows));
}

/// The JSON of a VM that was started: with the field `timings` only when asked for.
pub(super) fn document(created: &CreatedVm, timings: bool) -> Result<Value> {
    fn value<T: Serialize>(v: &T) -> Result<Value> {
        serde_json::to_value(v).map_err(CliError::protocol)
    }
    if timings { value(created) } else { value(&created.vm) }
}
