//! Builds a cage around itself and becomes the program that is to run in it: `banger-cage DESCRIPTION-FD ANSWER-FD`.
//! All of it is in the library (`banger_vmm::cage::inside`).

fn main() -> std::process::ExitCode {
    banger_vmm::cage::inside::main()
}
