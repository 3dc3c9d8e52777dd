//! `banger doctor`: what works on this host, and what to type next. Also when the daemon does not.

use banger_protocol::api::{Check, CheckStatus};

use crate::context::Context;
use crate::error::Result;

/// Check whether this machine is ready, and say what to type next
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: &Args, context: &Context) -> Result<u8> {
    let asked = match context.client() {
        Ok(client) => client.get::<Vec<Check>>("/v1/doctor").await,
        Err(error) => Err(error),
    };
    let checks = match asked {
        Ok(mut checks) => {
            if !checks.iter().any(|c| c.name == "daemon") {
                checks.insert(0, daemon(CheckStatus::Ok, "it answers".to_owned(), None));
            }
            checks
        }
        Err(error) => match error.bodies() {
            [body, ..] => vec![daemon(CheckStatus::Fail, body.message.clone(), body.hint.clone())],
            [] => return Err(error),
        },
    };
    if context.output.json {
        context.output.document(&checks)?;
    } else {
        for check in &checks {
            context.output.check(check)?;
        }
    }
    Ok(u8::from(checks.iter().any(|c| c.status == CheckStatus::Fail)))
}

fn daemon(status: CheckStatus, detail: String, hint: Option<String>) -> Check {
    Check { name: "daemon".to_owned(), status, detail, hint }
}
