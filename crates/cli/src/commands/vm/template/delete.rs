//! `banger vm template delete`

use banger_protocol::api::TemplateView;
use clap::builder::NonEmptyStringValueParser;
use hyper::Method;

use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Delete templates; VMs that went on from them do not notice
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The templates: ids, names, or unique beginnings of either
    #[arg(value_name = "TEMPLATE", required = true, value_parser = NonEmptyStringValueParser::new())]
    templates: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let results =
        many::change(context, "templates", &args.templates, (Method::DELETE, ""), None::<&()>).await?;
    many::finish(context, &args.templates, results, |template: &TemplateView| {
        context.output.notice(&format!("template '{}' is deleted", template.id));
        Ok(())
    })
}
