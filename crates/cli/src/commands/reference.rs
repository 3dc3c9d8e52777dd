//! docs/cli.md is this tree: the test writes it with `BANGER_BLESS=1` and compares it otherwise.

use std::fmt::Write as _;
use std::path::Path;

use clap::CommandFactory as _;

use super::Cli;

const HEAD: &str = "# The command line\n\n<!-- Made from the program's own --help: BANGER_BLESS=1 cargo test -p banger-cli reference -->\n\nWhat scripts may rely on besides, and what was added to the contract that the project began with: [contract.md](contract.md).\n";

fn page() -> String {
    let mut root = Cli::command().term_width(100);
    root.build();
    let mut page = HEAD.to_owned();
    section(&mut page, &mut root, "banger");
    page
}

fn section(page: &mut String, command: &mut clap::Command, name: &str) {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(page, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        let name = format!("{name} {}", sub.get_name());
        section(page, sub, &name);
    }
}

#[test]
fn the_reference_page_is_what_help_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = page();
    if std::env::var_os("BANGER_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == written, "docs/cli.md is out of date: BANGER_BLESS=1 cargo test -p banger-cli reference");
}
