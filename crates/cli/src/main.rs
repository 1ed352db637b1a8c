//! The `umbra` command.
//!
//! What was typed is in [`args`]; what that means, in [`plan`]; each command has a module. Here is only what they
//! share: reading the command line, and turning a failure into one sentence and an exit status.

mod args;
mod console;
mod counters;
mod debian;
mod debug;
mod disk;
mod doctor;
mod documents;
mod duration;
mod environment;
mod files;
mod help;
mod initramfs;
mod keys;
mod message;
mod number;
mod plan;
mod progress;
mod report;
mod run;
mod seed;
mod source;
mod status;
mod vms;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use clap::error::{ContextKind, ErrorKind};

use args::{Args, Command, FetchArgs};
use debian::{Cache, Freshness, Wanted};
use source::Source;
use spec::DebianSpec;
use status::Status;
use vms::{commands, list, usage};

fn main() -> ExitCode {
    // A thread that panics leaves the terminal raw and the VM headless: put the one back and end the other.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        console::terminal::restore();
        // A backtrace is made from the program's file, which a jailed thread cannot open.
        if host::jail::is_shut() {
            let thread = std::thread::current();
            message::block(&format!("thread '{}' {info}", thread.name().unwrap_or("unnamed")));
        } else {
            default_hook(info);
        }
        message::error("this is a bug in umbra; please report the lines above");
        std::process::exit(i32::from(Status::OURS.0));
    }));
    let status = match Args::try_parse() {
        Ok(args) => execute(args.command).unwrap_or_else(|error| {
            message::error(&format!("{error:#}"));
            Status::OURS
        }),
        Err(error) => misuse(&error),
    };
    status.into()
}

fn execute(command: Command) -> Result<Status> {
    match command {
        Command::Run(args) => run::run(*args),
        Command::Ps(args) => list::run(&args),
        Command::Exec(args) => commands::exec(args),
        Command::Cp(args) => commands::cp(&args),
        Command::Console(args) => commands::console(&args.name),
        Command::Logs(args) => commands::logs(&args),
        Command::Stop(args) => commands::stop(&args),
        Command::Kill(args) => commands::kill(&args.vms),
        Command::Pause(args) => commands::pause(&args.vms),
        Command::Resume(args) => commands::resume(&args.vms),
        Command::Wait(args) => commands::wait(&args.vms),
        Command::Rm(args) => commands::rm(&args),
        Command::Update(args) => commands::update(&args),
        Command::Plug(args) => commands::plug(&args),
        Command::Unplug(args) => commands::unplug(&args),
        Command::Inspect(args) => commands::inspect(&args.vms),
        Command::Stats(args) => usage::run(&args),
        Command::Fetch(args) => fetch(&args),
        Command::Doctor(_) => doctor::run(),
        Command::Debug(args) => debug::run(&args.what),
        Command::Disk(args) => disk::run(&args.what),
        Command::Completions(args) => documents::completions(args.shell),
        Command::Man(args) => documents::man(args.dir.as_deref()),
    }
}

fn fetch(args: &FetchArgs) -> Result<Status> {
    let cache = Cache::of_user()?;
    let wanted = args.package.as_deref().map_or(Wanted::NewestKernel, Wanted::Package);
    let freshness = if args.cached { Freshness::Cached } else { Freshness::Newest };
    if let Source::Debian(debian) = Source::of(args.package.as_deref().map(Path::new))? {
        let debian = DebianSpec { packages: args.packages.clone(), ..debian };
        let image = debian::root(&cache, &debian, freshness)?;
        return documents::print(&format!("{}\n", image.display()));
    }
    ensure!(
        args.packages.is_empty(),
        "--packages belongs to a root: write 'umbra fetch debian --packages …'"
    );
    let kernel = debian::kernel(&cache, wanted, freshness)?;
    if args.package.is_none() {
        debian::busybox(&cache, freshness)?;
    }
    documents::print(&format!("{}\n", kernel.display()))
}

/// Shows help, or says in one sentence what is wrong with the command line.
fn misuse(error: &clap::Error) -> Status {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            Status::OK
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Status::OURS
        }
        _ => {
            message::error(&usage_sentence(error));
            Status::OURS
        }
    }
}

fn usage_sentence(error: &clap::Error) -> String {
    let option = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    // A value that its type refuses: the type's own sentence says it best.
    if let (Some(source), Some(option)) = (std::error::Error::source(error), &option) {
        return format!("{}: {source}", option.split(' ').next().unwrap_or(option));
    }
    let text = error.to_string();
    // What is missing, or possible, stands on lines of its own; what else could be meant comes after an empty one.
    let said: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    format!("{said} (see '{} --help')", command_of(&text))
}

/// The command that a failure is about, as clap says how it is used.
fn command_of(text: &str) -> String {
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or("umbra");
    let is_name = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
    usage.split(' ').take_while(is_name).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misuse_is_a_sentence_that_says_what_and_where() {
        for (words, sentence) in [
            (
                "disk create x",
                "the following required arguments were not provided: <SIZE> (see 'umbra disk create --help')",
            ),
            (
                "disk create x 1G --format x",
                "invalid value 'x' for '--format <FORMAT>' [possible values: raw, qcow2] (see 'umbra --help')",
            ),
            ("disk create x 1", "[SIZE]: size '1' has no unit"),
            ("fly", "unrecognized subcommand 'fly' (see 'umbra --help')"),
            ("ps --fly", "unexpected argument '--fly' found (see 'umbra ps --help')"),
        ] {
            let error = Args::try_parse_from(["umbra"].into_iter().chain(words.split(' '))).err().unwrap();
            let said = usage_sentence(&error);
            assert!(said.starts_with(sentence), "{said}");
        }
    }
}
