//! `banger completion`, and the names that shells complete: from a daemon that runs, silently
//! nothing from one that does not.

use std::ffi::OsStr;
use std::time::Duration;

use banger_model::Error;
use clap::ValueEnum;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use crate::client::Client;
use crate::context::Context;
use crate::error::Result;
use crate::place::Place;

/// The variable by which a shell's script asks for completions.
pub(crate) const ASKED: &str = "BANGER_COMPLETE";
/// A shell must not hang because the daemon does.
const PATIENCE: Duration = Duration::from_millis(500);

/// Print the script that completes banger's commands and names in a shell
///
/// bash: source <(banger completion bash); zsh: source <(banger completion zsh);
/// fish: banger completion fish | source
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Shells that can complete.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<u8> {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell
        .write_registration(ASKED, "banger", "banger", "banger", &mut script)
        .map_err(|e| Error::internal(format!("cannot write the completion script: {e}")))?;
    context.output.bytes(&script)?;
    Ok(0)
}

/// Names of VMs.
pub(crate) fn vms(word: &OsStr) -> Vec<CompletionCandidate> {
    names("/v1/vms?all=true", word)
}

/// Names of images.
pub(crate) fn images(word: &OsStr) -> Vec<CompletionCandidate> {
    names("/v1/images", word)
}

/// Names of kernels.
pub(crate) fn kernels(word: &OsStr) -> Vec<CompletionCandidate> {
    names("/v1/kernels", word)
}

/// Names of kernels that can be pulled.
pub(crate) fn catalog(word: &OsStr) -> Vec<CompletionCandidate> {
    names("/v1/kernels/available", word)
}

/// Ids of operations.
pub(crate) fn operations(word: &OsStr) -> Vec<CompletionCandidate> {
    fields("/v1/operations", "id", word)
}

fn names(path: &str, word: &OsStr) -> Vec<CompletionCandidate> {
    fields(path, "name", word)
}

/// What the elements of a list call themselves.
fn fields(path: &str, field: &str, word: &OsStr) -> Vec<CompletionCandidate> {
    let ask = async {
        let client = Client::without_start(Place::from_env()?);
        client.get::<Vec<serde_json::Value>>(path).await
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let found = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await });
    let Ok(Ok(found)) = found else { return Vec::new() };
    let word = word.to_string_lossy();
    found
        .iter()
        .filter_map(|element| element.get(field)?.as_str())
        .filter(|name| name.starts_with(&*word))
        .map(CompletionCandidate::new)
        .collect()
}
