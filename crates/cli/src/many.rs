//! Several references at once: all are tried, the good ones go through, the failures are told together.

use std::collections::HashSet;
use std::future::Future;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::client::{Client, path};
use crate::context::Context;
use crate::error::{CliError, Result};

/// Does the same to each reference, all at once; the results are in the order of the references.
///
/// # Errors
/// When the daemon is not there; it is started once, not once for each.
pub(crate) async fn each<T, F, Fut>(client: &Client, references: &[String], act: F) -> Result<Vec<Result<T>>>
where
    T: Send + 'static,
    F: Fn(Client, String) -> Fut,
    Fut: Future<Output = Result<T>> + Send + 'static,
{
    if references.len() > 1 {
        client.wake().await?;
    }
    let mut seen = HashSet::new();
    let mut tasks = JoinSet::new();
    for (index, reference) in references.iter().filter(|r| seen.insert(r.as_str())).enumerate() {
        let task = act(client.clone(), reference.clone());
        tasks.spawn(async move { (index, task.await) });
    }
    let mut results = tasks.join_all().await;
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Asks for the same change of several things of a `collection`, each by its reference; shows how each gets on.
///
/// # Errors
/// As of [`each`].
pub(crate) async fn change<B, T>(
    context: &Context,
    collection: &'static str,
    references: &[String],
    (method, suffix): (Method, &'static str),
    body: Option<&B>,
) -> Result<Vec<Result<T>>>
where
    B: Serialize + Clone + Send + Sync + 'static,
    T: DeserializeOwned + Send + 'static,
{
    let several = references.len() > 1;
    each(&context.client()?, references, |client, reference| {
        let (method, body) = (method.clone(), body.cloned());
        let mut progress = context.board.track(several.then_some(&*reference));
        async move {
            let path = path(collection, &reference, suffix);
            client.change(method, &path, body.as_ref(), &mut progress).await
        }
    })
    .await
}

/// Prints what went well (with `--json` one document: an object for one reference, an array for
/// several) and fails when anything did not.
pub(crate) fn finish<T: Serialize>(
    context: &Context,
    given: &[String],
    results: Vec<Result<T>>,
    show: impl Fn(&T) -> Result<()>,
) -> Result<u8> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(error) => bad.push(error),
        }
    }
    if !context.output.json {
        good.iter().try_for_each(show)?;
    } else if given.len() > 1 {
        context.output.document(&good)?;
    } else if let [one] = good.as_slice() {
        context.output.document(one)?;
    }
    if bad.is_empty() { Ok(0) } else { Err(CliError::several(bad)) }
}
