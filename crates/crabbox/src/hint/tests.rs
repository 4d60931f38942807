use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crabbox_core::config::key::Name;

use super::*;

fn flag(key: Name, value: &str) -> FlagValue {
    FlagValue {
        key,
        values: vec![value.to_owned()],
    }
}

#[test]
fn a_command_gets_the_flags_that_it_takes_and_has_not() {
    let given = [
        flag(Name::ProviderName, "ssh"),
        flag(Name::StaticHost, "my host"),
        flag(Name::Ttl, "1h"),
        flag(Name::Desktop, "true"),
    ];
    let whole = |text: &str| complete(text, &given);
    assert_eq!(
        whole("`crabbox ssh static_h` claims it; `crabbox list --provider=firecracker` and `x` do not"),
        "`crabbox ssh --provider ssh --static-host 'my host' static_h` claims it; \
         `crabbox list --static-host 'my host' --provider=firecracker` and `x` do not"
    );
    assert_eq!(
        whole("crabbox doctor"),
        "crabbox doctor --provider ssh --static-host 'my host'"
    );
    assert_eq!(
        whole("`crabbox warmup`"),
        "`crabbox warmup --provider ssh --static-host 'my host' --ttl 1h --desktop=true`"
    );
    for unchanged in ["`crabbox config path`", "the file crabbox.yaml"] {
        assert_eq!(whole(unchanged), unchanged);
    }
    assert_eq!(complete("`crabbox list`", &[]), "`crabbox list`");
}

/// The string literals of a source file, without its tests and comments.
fn literals(source: &str) -> Vec<String> {
    let source = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let mut found = Vec::new();
    let mut rest = source.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '/' if rest.peek() == Some(&'/') => while rest.next_if(|c| *c != '\n').is_some() {},
            // A quote in a character literal does not begin a string.
            '\'' if rest.next_if_eq(&'\\').is_some() || rest.peek() == Some(&'"') => {
                rest.next();
            }
            'r' if matches!(rest.peek(), Some('"' | '#')) => {
                let mut hashes = 0;
                while rest.next_if_eq(&'#').is_some() {
                    hashes += 1;
                }
                if rest.next_if_eq(&'"').is_none() {
                    continue;
                }
                let end = format!("\"{}", "#".repeat(hashes));
                let mut text = String::new();
                while !text.ends_with(&end) {
                    text.push(rest.next().expect("a raw string ends"));
                }
                text.truncate(text.len() - end.len());
                found.push(text);
            }
            '"' => {
                let mut text = String::new();
                loop {
                    match rest.next().expect("a string ends") {
                        '"' => break,
                        '\\' => match rest.next().expect("an escape is whole") {
                            '\n' => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                            'n' => text.push('\n'),
                            other => text.push(other),
                        },
                        other => text.push(other),
                    }
                }
                found.push(text);
            }
            _ => {}
        }
    }
    found
}

/// Every source file of the program, tests aside.
fn sources() -> Vec<PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let apart = [
        "crabbox-testbase",
        "crabbox-testkit",
        "crabbox-lab",
        "crabbox-guest",
    ];
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(crates)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| apart.iter().all(|name| !path.ends_with(name)))
        .map(|path| path.join("src"))
        .collect();
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("tests.rs") {
                files.push(path);
            }
        }
    }
    files
}

/// Texts that look like a command line but are not.
const NO_COMMANDS: [&str; 9] = [
    "crabbox ",
    "crabbox host {id}",
    "crabbox tree 4\n",
    "# Written by `crabbox setup`; yours to change.\nprovider: firecracker\n",
    "provider={provider} does not support `crabbox {command}`",
    // Commands shown in a proof.
    "crabbox run --id proof --no-sync -- sh -c 'uname -s; cat /proc/sys/kernel/random/boot_id'",
    "crabbox run --id proof -- sh -c 'cat greeting untracked; test -e removed || echo gone'",
    "crabbox cp --id proof SANDBOX:/tmp/greeting copy && cmp greeting copy",
    // Run on another host.
    "crabbox {SERVE}",
];

/// The command lines in a text: the parts between backquotes or quotes that begin with the program's name,
/// else the whole text if it does. Also returns the rest of the text.
fn commands(text: &str) -> (Vec<String>, String) {
    let mut found = Vec::new();
    let mut rest = text.to_owned();
    for mark in ['`', '\''] {
        for part in text.split(mark).skip(1).step_by(2) {
            let line = part.strip_prefix("sudo ").unwrap_or(part);
            if line.starts_with(PROGRAM) {
                found.push(line.to_owned());
                rest = rest.replace(part, "");
            }
        }
    }
    let is_only_a_name = text.starts_with("crabbox {") && !text.contains("} ");
    if found.is_empty() && text.starts_with(PROGRAM) && !is_only_a_name {
        return (vec![text.to_owned()], String::new());
    }
    (found, rest)
}

/// What stands in a command line of another program as it is: constants, numbers, names of packages and of
/// settings, and a directory in `/sys` whose name this program chose.
const PLAIN: [&str; 6] = ["package", "packages", "line", "keyword", "value", "cgroup"];

/// The first placeholder in a text's command lines of other programs that may stand for any path. Such a line
/// is made by `quote::line`, and is a placeholder as a whole.
fn unquoted(text: &str) -> Option<&str> {
    let parts = text.split('`').skip(1).step_by(2);
    let mut lines = parts.filter(|part| part.contains(' ') && !part.contains(PROGRAM));
    let is_plain = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_') || PLAIN.contains(&name)
    };
    lines.find(|line| {
        let mut names = line
            .split('{')
            .skip(1)
            .filter_map(|part| Some(part.split_once('}')?.0));
        names.any(|name| !is_plain(name))
    })
}

#[test]
fn a_path_in_a_command_of_another_program_is_told_from_a_plain_word() {
    for plain in [
        "`{}` and `{line}`",
        "in {} there is `rm x`",
        "`userdel {ACCOUNT}`",
        "`crabbox stop {id}`",
    ] {
        assert_eq!(unquoted(plain), None, "{plain}");
    }
    assert_eq!(unquoted("run `x y` and `rm {path}`"), Some("rm {path}"));
    assert_eq!(unquoted("`chown root: {0}`"), Some("chown root: {0}"));
}

/// Why a command line cannot be pasted, if it cannot.
fn problem(line: &str) -> Option<String> {
    let filled = line
        .split('{')
        .enumerate()
        .map(|(index, part)| match part.split_once('}') {
            Some((_, rest)) if index > 0 => format!("x{rest}"),
            _ => part.to_owned(),
        });
    let filled = filled.collect::<String>();
    if let Some(bad) = filled.chars().find(|c| "();&|<>$*?\n".contains(*c)) {
        return Some(format!("a shell reads {bad:?} as its own"));
    }
    let argv: Vec<OsString> = filled.split_whitespace().map(OsString::from).collect();
    match crate::args::parse(&argv) {
        Ok(_) => needs_lease(&argv),
        Err(crate::goflags::Stop::Usage(error)) => Some(error.to_string()),
        Err(crate::goflags::Stop::Refused(refused)) => Some(refused.by("firecracker").to_string()),
        Err(crate::goflags::Stop::Help(_)) => None,
    }
}

/// Commands on one lease that the parser accepts without one.
fn needs_lease(argv: &[OsString]) -> Option<String> {
    let command = argv.get(1)?.to_str()?;
    let on_one = ["ssh", "connect", "status", "stop", "inspect", "heartbeat", "logs"];
    (on_one.contains(&command) && argv.len() < 3).then(|| format!("{command} needs a lease"))
}

#[test]
fn every_command_that_a_text_of_ours_names_can_be_pasted() {
    let (mut seen, mut bad) = (0, Vec::new());
    for file in sources() {
        for text in literals(&std::fs::read_to_string(&file).unwrap()) {
            let is_a_form =
                text.starts_with("usage: ") || text.starts_with(PROGRAM) && text.contains(['<', '[']);
            if is_a_form || NO_COMMANDS.contains(&text.as_str()) {
                continue;
            }
            if let Some(line) = unquoted(&text) {
                bad.push(format!("{}: `{line}`: a path is not quoted", file.display()));
            }
            let (lines, rest) = commands(&text);
            for line in lines {
                seen += 1;
                // The files of `init` use `<lease>` as a placeholder.
                let line = if file.ends_with("init.rs") {
                    line.replace('<', "{").replace('>', "}")
                } else {
                    line
                };
                if let Some(problem) = problem(&line) {
                    bad.push(format!("{}: {line:?}: {problem}", file.display()));
                }
            }
            // A command in the middle of a text without quotes would be taken for prose.
            for name in ["setup firecracker", "image ", "cleanup", "list", "stop", "doctor"] {
                let name = format!(" {PROGRAM}{name}");
                if rest.contains(&name) && !text.starts_with('#') {
                    bad.push(format!(
                        "{}: {text:?}: no backquotes around{name}",
                        file.display()
                    ));
                }
            }
        }
    }
    assert!(seen > 40, "only {seen} command lines were found");
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
