//! The `synapse` command.

use std::process::ExitCode;

use clap::Parser;
use synapse::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::start_logging(&cli);
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::report(&error),
    }
}
