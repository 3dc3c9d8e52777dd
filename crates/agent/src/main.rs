//! The agent's one file in the guest: process 1 first, then the server. Outside a guest it serves a
//! unix socket for tests (`--socket PATH`).

use std::process::ExitCode;

use banger_agent::boot::{self, Role};

fn main() -> ExitCode {
    match boot::role() {
        Role::Init => boot::run_init(),
        Role::Server => {
            boot::enter_server();
            banger_agent::serve_guest()
        }
        Role::Other => {
            let mut args = std::env::args_os().skip(1);
            match (args.next(), args.next()) {
                (Some(flag), Some(path)) if flag == "--socket" => banger_agent::serve_socket(path.as_ref()),
                _ => boot::explain(),
            }
        }
    }
}
