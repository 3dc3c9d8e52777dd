//! Whether the host's repository has moved on since it was copied in, told to whoever runs a command. Must never keep a
//! command waiting for long.

use std::time::{Duration, Instant};

use banger_model::Vm;
use banger_workspace::Cancel;
use banger_workspace::capture::{Drift, Manifest};

use super::Workspaces;
use crate::artifacts::blocking;

/// How long a command may wait for this.
const LIMIT: Duration = Duration::from_millis(500);

impl Workspaces {
    /// One sentence when the host's HEAD or files are other than they were copied; none also when that cannot be found
    /// out in time.
    pub(crate) async fn moved_on(&self, vm: &Vm) -> Option<String> {
        let workspace = vm.whole_workspace()?;
        let (file, until) = (self.manifest(&vm.id), Instant::now() + LIMIT);
        let look = blocking(move || {
            let cancel = Cancel::new(move || Instant::now() > until);
            Ok(Manifest::load(&file).map(|manifest| manifest.drift(&cancel)).transpose()?)
        });
        let drift = match tokio::time::timeout(LIMIT, look).await.ok()? {
            Ok(drift) => drift?,
            Err(error) => {
                tracing::debug!(%error, "the host's repository could not be looked at");
                return None;
            }
        };
        if drift.is_none() {
            return None;
        }
        Some(format!(
            "{} has moved on since it was copied into VM '{}' ({}): 'banger vm workspace prepare {}' or --auto-prepare brings \
             the guest up to date",
            workspace.source_path.to_string_lossy(),
            vm.name,
            told(&drift),
            vm.name
        ))
    }
}

fn told(drift: &Drift) -> String {
    let mut said = Vec::new();
    if let Some((_, now)) = &drift.head {
        let now = now.as_deref().map_or("no commit", |id| id.get(..12).unwrap_or(id));
        said.push(format!("HEAD is {now}"));
    }
    if let Some((_, now)) = &drift.branch {
        said.push(now.as_ref().map_or_else(|| "HEAD is detached".to_owned(), |b| format!("on branch {b}")));
    }
    if drift.changed > 0 {
        let named: Vec<String> =
            drift.examples.iter().take(3).map(|p| p.to_string_lossy().into_owned()).collect();
        let files = if drift.changed == 1 { "file" } else { "files" };
        said.push(format!("{} {files} changed: {}", drift.changed, named.join(", ")));
    }
    if said.is_empty() {
        said.push("the index changed".to_owned());
    }
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_is_said_in_few_words() {
        let drift = Drift {
            head: Some((None, Some("0123456789abcdef0123".into()))),
            changed: 1,
            examples: vec!["a b".into()],
            ..Drift::default()
        };
        assert_eq!(told(&drift), "HEAD is 0123456789ab; 1 file changed: a b");
        assert_eq!(told(&Drift { index: true, ..Drift::default() }), "the index changed");
    }
}
