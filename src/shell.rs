//! Completions for shells and manual pages, made from the command line itself: they name what there is, and nothing else.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::output;

#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Folder for one page a command, made if need be; without it the page of `toroid` goes to standard output
    folder: Option<PathBuf>,
}

/// Prints what the shell reads.
pub fn completions(command: clap::Command, args: &CompletionsArgs) -> Result<ExitCode> {
    output::print(script(command, args.shell)?)?;
    Ok(ExitCode::SUCCESS)
}

fn script(mut command: clap::Command, shell: Shell) -> Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "toroid", &mut script);
    String::from_utf8(script).context("read the completions as text")
}

pub fn man(command: clap::Command, args: &ManArgs) -> Result<ExitCode> {
    let pages = pages(command)?;
    let Some(folder) = &args.folder else {
        let (_, page) = pages.into_iter().next().context("make the page of `toroid`")?;
        output::print(page)?;
        return Ok(ExitCode::SUCCESS);
    };
    write(&pages, folder)?;
    let (num, folder) = (pages.len(), folder.display());
    output::line(format_args!("wrote {num} pages to {folder}; `man {folder}/toroid.1` shows the first"))?;
    Ok(ExitCode::SUCCESS)
}

fn write(pages: &[(String, String)], folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    for (name, page) in pages {
        let file = folder.join(name);
        std::fs::write(&file, page).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Every page by the name of its file, that of `toroid` first.
fn pages(command: clap::Command) -> Result<Vec<(String, String)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    let mut open = vec![("toroid".to_string(), command)];
    while let Some((name, command)) = open.pop() {
        let below = command.get_subcommands().filter(|below| !below.is_hide_set());
        open.extend(below.map(|below| (format!("{name}-{}", below.get_name()), below.clone())));
        let mut page = Vec::new();
        Man::new(command).render(&mut page).with_context(|| format!("make the page of {name}"))?;
        pages.push((format!("{name}.1"), String::from_utf8(page).context("read the page as text")?));
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::command;

    /// Every command by its words, as in `toroid jobs rm`.
    fn all() -> Vec<Vec<String>> {
        let mut found = Vec::new();
        let mut open = vec![(Vec::new(), command())];
        while let Some((words, command)) = open.pop() {
            for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
                let mut words: Vec<String> = words.clone();
                words.push(below.get_name().into());
                open.push((words.clone(), below.clone()));
                found.push(words);
            }
        }
        found
    }

    #[test]
    fn completions_of_each_shell_name_every_command() -> Result<()> {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = script(command(), shell)?;
            for words in all() {
                let last = words.last().context("a command has a name")?;
                assert!(script.contains(last.as_str()), "{shell}: {} is not there", words.join(" "));
            }
        }
        Ok(())
    }

    #[test]
    fn there_is_a_page_of_every_command_and_it_names_its_flags() -> Result<()> {
        let pages = pages(command())?;
        assert_eq!(pages[0].0, "toroid.1");
        assert!(pages[0].1.contains("no coordinator can be reached"), "the exit codes are not there: {}", pages[0].1);
        for words in all() {
            let name = format!("toroid-{}.1", words.join("-"));
            let (_, page) = pages.iter().find(|(n, _)| *n == name).with_context(|| format!("{name} is not there"))?;
            assert!(page.contains(".SH NAME"), "{page}");
        }
        let (_, page) = pages.iter().find(|(name, _)| name == "toroid-drain.1").context("the page of drain")?;
        assert!(page.contains("coordinator") && page.contains("output"), "{page}");
        let dir = tempfile::tempdir()?;
        write(&pages, &dir.path().join("man1"))?;
        assert_eq!(std::fs::read_dir(dir.path().join("man1"))?.count(), pages.len());
        Ok(())
    }
}
