//! Progress of an operation on stderr: a spinner or bar on a terminal, a plain line for a stage that
//! takes its time elsewhere, nothing with `--quiet` or `--json`. Must never write to stdout.

use std::io::IsTerminal as _;
use std::time::Duration;

use banger_protocol::api;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::output::{Output, colour_allowed, printable};

/// Off a terminal a stage is mentioned only when it lasts, so that quick commands stay quiet.
const PLAIN_AFTER: Duration = Duration::from_secs(2);
/// A spinner that appears for a blink is noise.
const SPINNER_AFTER_MS: u64 = 150;

/// The progress of one or more operations that run at once.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    output: Output,
    bars: Option<MultiProgress>,
}

impl Board {
    /// For this process's stderr.
    pub(crate) fn new(output: Output) -> Self {
        let bars = output.chatty() && std::io::stderr().is_terminal();
        Self { output, bars: bars.then(MultiProgress::new) }
    }

    /// The progress of one operation; `label` names it among several.
    pub(crate) fn track(&self, label: Option<&str>) -> Progress {
        let label = label.map(|l| format!("{}: ", printable(l))).unwrap_or_default();
        Progress { board: self.clone(), label, bar: None, stage: String::new(), pending: None }
    }
}

/// The progress of one operation.
#[derive(Debug)]
pub(crate) struct Progress {
    board: Board,
    label: String,
    bar: Option<ProgressBar>,
    /// The stage being shown.
    stage: String,
    /// The plain line to print when its stage has lasted.
    pending: Option<(Instant, String)>,
}

impl Progress {
    /// The operation moved on.
    pub(crate) fn update(&mut self, progress: &api::Progress) {
        if !self.board.output.chatty() {
            return;
        }
        let text = format!("{}{}", self.label, printable(&progress.message).replace('\n', " "));
        let new_stage = self.stage != progress.stage;
        self.stage.clone_from(&progress.stage);
        let Some(bars) = &self.board.bars else {
            if new_stage {
                self.pending = Some((Instant::now() + PLAIN_AFTER, text));
            }
            return;
        };
        if self.bar.is_none() && progress.since_start_ms < SPINNER_AFTER_MS {
            self.pending = Some((Instant::now() + Duration::from_millis(SPINNER_AFTER_MS), text));
            return;
        }
        let bar = self.bar.get_or_insert_with(|| bars.add(spinner()));
        bar.set_message(text);
        if let Some(percent) = progress.percent {
            bar.set_style(style(true));
            bar.set_length(100);
            bar.set_position(u64::from(percent.min(100)));
        } else if new_stage {
            bar.set_style(style(false));
        }
        self.pending = None;
    }

    /// The operation of somebody else is there now.
    pub(crate) fn show(&mut self, operation: &api::OperationView) {
        let (Some(stage), Some(message)) = (&operation.stage, &operation.message) else { return };
        let since_start = jiff::Timestamp::now().duration_since(operation.started_at);
        self.update(&api::Progress {
            stage: stage.clone(),
            message: message.clone(),
            percent: operation.percent,
            since_start_ms: u64::try_from(since_start.as_millis()).unwrap_or(0),
            since_last_stage_ms: 0,
        });
    }

    /// Something to know, once.
    pub(crate) fn notice(&self, message: &str) {
        let text = format!("{}{message}", self.label);
        match &self.board.bars {
            Some(bars) => bars.suspend(|| self.board.output.notice(&text)),
            None => self.board.output.notice(&text),
        }
    }

    /// Resolves when a line is due; pending for ever when none is.
    pub(crate) async fn tick(&mut self) {
        match &self.pending {
            Some((when, _)) => tokio::time::sleep_until(*when).await,
            None => std::future::pending().await,
        }
        let Some((_, text)) = self.pending.take() else { return };
        match &self.board.bars {
            Some(bars) => self.bar.get_or_insert_with(|| bars.add(spinner())).set_message(text),
            None => self.board.output.notice(&text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_style(style(false));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn style(percent: bool) -> ProgressStyle {
    let template = match (percent, colour_allowed()) {
        (true, true) => "{spinner:.cyan} {msg} {bar:24.cyan/dim} {percent}%",
        (true, false) => "{spinner} {msg} {bar:24} {percent}%",
        (false, true) => "{spinner:.cyan} {msg} {elapsed:.dim}",
        (false, false) => "{spinner} {msg} {elapsed}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(stage: &str) -> api::Progress {
        api::Progress {
            stage: stage.to_owned(),
            message: format!("doing {stage}"),
            percent: None,
            since_start_ms: 0,
            since_last_stage_ms: 0,
        }
    }

    #[test]
    fn off_a_terminal_only_the_latest_stage_is_due_and_quiet_has_none() {
        let board = Board { output: Output::new(false, false), bars: None };
        let mut progress = board.track(Some("web"));
        progress.update(&at("boot"));
        progress.update(&at("copy"));
        assert_eq!(progress.pending.as_ref().unwrap().1, "web: doing copy");

        for silent in [Output::new(true, false), Output::new(false, true)] {
            let mut progress = Board { output: silent, bars: None }.track(None);
            progress.update(&at("boot"));
            assert!(progress.pending.is_none());
        }
    }
}
