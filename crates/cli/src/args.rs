//! The command line. Parses only; what a spec or an expression means is for the host to find out.

use clap::{Parser, Subcommand};
use std::ffi::OsString;

#[derive(Parser)]
#[command(
    name = "rightlane",
    version,
    about = "Runs Python functions in the lane that suits them",
    after_help = "Exit codes: 0 done; 1 a lane failed or results differ; 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the user asked for.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run one function serially, in processes and in threads, and say which wins
    Compare {
        /// The function, as `package.module:function`
        spec: String,
        /// A Python expression, evaluated once in the module's namespace: what to call the function with
        #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
        items: String,
        /// Try no pool larger than this
        #[arg(long, value_name = "N", value_parser = positive)]
        max_workers: Option<usize>,
    },
    /// Show what this machine allows, and what works here
    Doctor,
}

/// What to print instead of running a command: help, the version or a usage error.
#[derive(Debug)]
pub struct Answer {
    pub text: String,
    pub is_error: bool,
}

/// Parses `args`, which starts with the name of the program.
pub fn parse(args: &[OsString]) -> Result<Command, Answer> {
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(cli.command),
        Err(error) => Err(Answer {
            text: error.render().to_string(),
            is_error: error.use_stderr(),
        }),
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".into()),
        Ok(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Command, Answer> {
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&args)
    }

    #[test]
    fn compare_takes_a_spec_and_items() {
        let parsed = parse_words(&["rightlane", "compare", "m:f", "--items", "-1 * N"]);
        assert_eq!(
            parsed.expect("valid"),
            Command::Compare {
                spec: "m:f".into(),
                items: "-1 * N".into(),
                max_workers: None
            }
        );
    }

    #[test]
    fn wrong_usage_is_an_error_and_help_is_not() {
        for words in [
            &["rightlane"][..],
            &["rightlane", "compare", "m:f"],
            &["rightlane", "race"],
            &[
                "rightlane",
                "compare",
                "m:f",
                "--items",
                "x",
                "--max-workers",
                "0",
            ],
        ] {
            assert!(
                parse_words(words).expect_err("wrong usage").is_error,
                "{words:?}"
            );
        }
        let version = parse_words(&["rightlane", "--version"]).expect_err("text to print");
        assert!(!version.is_error);
        assert_eq!(
            version.text,
            concat!("rightlane ", env!("CARGO_PKG_VERSION"), "\n")
        );
    }
}
