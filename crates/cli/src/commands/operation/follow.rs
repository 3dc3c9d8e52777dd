//! Follows one operation by the daemon's news until it is over. Must never ask again and again.

use banger_protocol::api::{News, OperationView};
use hyper::Method;

use crate::client::{Client, Lines, news, path};
use crate::error::Result;
use crate::progress::Progress;

/// The operation as it is when it has ended.
pub(super) async fn to_the_end(
    client: &Client,
    reference: &str,
    progress: &mut Progress,
) -> Result<OperationView> {
    let path = path("operations", reference, "");
    // The news first: what happens between the two questions is not missed.
    let mut stream = client.stream::<()>(Method::GET, "/v1/events", None).await?;
    let mut lines = Lines::default();
    lines.next(&mut stream).await?;
    let mut operation: OperationView = client.get(&path).await?;
    while !operation.state.is_over() {
        progress.show(&operation);
        let line = tokio::select! {
            line = lines.next(&mut stream) => line?,
            () = progress.tick() => continue,
        };
        match news(&line)? {
            Some(News::Operation { operation: now, .. }) if now.id == operation.id => operation = now,
            Some(News::Missed { .. }) => operation = client.get(&path).await?,
            _ => {}
        }
    }
    Ok(operation)
}
