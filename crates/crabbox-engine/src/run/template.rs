//! Fills `{{name}}` in the presets and variables of a configuration with values from the command line.
//!
//! A value is data. In a command it is quoted for its position, so that a shell reads exactly these bytes. In
//! a position where quoting cannot ensure that, only a value without special characters is accepted. A value
//! must never add a word, an operator or an expansion.

use std::collections::{BTreeMap, BTreeSet};

use crabbox_core::comma_list;
use crabbox_core::fault::{Fault, Kind};

/// Why a placeholder cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A preset variable lacks one of its two parts.
    #[error("--preset-var expects name=value")]
    PresetVar,
    /// The name cannot be the name of a placeholder.
    #[error("--preset-var: no placeholder can be called {name:?}")]
    PresetVarName {
        /// The name.
        name: String,
    },
    /// Some placeholders have no value.
    #[error("{place} has unresolved preset variable(s): {}", missing.join(", "))]
    Unresolved {
        /// The text that contains them.
        place: String,
        /// The placeholders, braces included.
        missing: Vec<String>,
    },
    /// A shell would interpret the value in this position.
    #[error("{place} has {{{{{name}}}}} where its value cannot be quoted")]
    Unquotable {
        /// The text that contains it.
        place: String,
        /// The name of the placeholder.
        name: String,
    },
}

impl Fault for TemplateError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::PresetVar => Vec::new(),
            Self::PresetVarName { .. } => {
                vec!["names consist of letters, digits and _.-, and begin with a letter or _".to_owned()]
            }
            Self::Unresolved { missing, .. } => {
                let names = missing.iter().map(|name| name.trim_matches(['{', '}']));
                let flags: Vec<String> = names.map(|name| format!("--preset-var {name}=VALUE")).collect();
                vec![format!("give it with {}", flags.join(" "))]
            }
            Self::Unquotable { .. } => vec![
                "there it may have letters, digits and _-./:,@%+ only; a placeholder that stands by itself or between plain quotes \
                 takes any value"
                    .to_owned(),
            ],
        }
    }
}

/// The values of `--preset-var` and `--scenario`, by name.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    values: BTreeMap<String, String>,
    /// The names that were used.
    used: BTreeSet<String>,
}

impl Variables {
    /// Parses the flags: `name=value`, or a comma-separated list. Later values take precedence, and the
    /// scenario over all of them.
    pub(super) fn new(given: &[String], scenario: Option<&str>) -> Result<Self, TemplateError> {
        let mut values = BTreeMap::new();
        for part in given.iter().flat_map(|text| comma_list::items(text)) {
            let (name, value) = part.split_once('=').ok_or(TemplateError::PresetVar)?;
            let name = name.trim();
            if name.is_empty() {
                return Err(TemplateError::PresetVar);
            }
            if !is_name(name) {
                return Err(TemplateError::PresetVarName {
                    name: name.to_owned(),
                });
            }
            values.insert(name.to_owned(), value.trim().to_owned());
        }
        if let Some(scenario) = scenario.map(str::trim).filter(|text| !text.is_empty()) {
            values.insert("scenario".to_owned(), scenario.to_owned());
        }
        Ok(Self {
            values,
            used: BTreeSet::new(),
        })
    }

    /// The value of `name`, which is marked as used.
    pub(super) fn take(&mut self, name: &str) -> Option<&str> {
        let value = self.values.get(name)?;
        self.used.insert(name.to_owned());
        Some(value)
    }

    /// The names that were not used.
    pub(super) fn unused(&self) -> impl Iterator<Item = &str> {
        let unused = self.values.keys().filter(|name| !self.used.contains(*name));
        unused.map(String::as_str)
    }

    /// `text` with the values inserted unchanged; `place` names the text in errors.
    pub(super) fn fill(&mut self, place: &str, text: &str) -> Result<String, TemplateError> {
        let filled = self.put(place, text, |_, value| Some(value.to_owned()))?;
        Ok(filled.unwrap_or_else(|| text.to_owned()))
    }

    /// The same for a script, in which each value is quoted. `None` if it has no placeholder.
    pub(super) fn fill_script(&mut self, place: &str, text: &str) -> Result<Option<String>, TemplateError> {
        let mut reader = Reader::default();
        self.put(place, text, |ahead, value| {
            reader.read(ahead);
            reader.quoted(value)
        })
    }

    /// Replaces each placeholder by the result of `quoted`, which gets the text since the previous
    /// placeholder, and the value.
    fn put(
        &mut self,
        place: &str,
        text: &str,
        mut quoted: impl FnMut(&str, &str) -> Option<String>,
    ) -> Result<Option<String>, TemplateError> {
        let placeholders = placeholders(text);
        let missing: BTreeSet<&str> = placeholders
            .iter()
            .map(|(_, name)| *name)
            .filter(|name| !self.values.contains_key(*name))
            .collect();
        if !missing.is_empty() {
            return Err(TemplateError::Unresolved {
                place: place.to_owned(),
                missing: missing.into_iter().map(braced).collect(),
            });
        }
        let (mut filled, mut at) = (String::with_capacity(text.len()), 0);
        for (start, name) in &placeholders {
            let value = self.values.get(*name).map_or("", String::as_str);
            let ahead = &text[at..*start];
            let value = quoted(ahead, value).ok_or_else(|| TemplateError::Unquotable {
                place: place.to_owned(),
                name: (*name).to_owned(),
            })?;
            filled.push_str(ahead);
            filled.push_str(&value);
            at = start + braced(name).len();
            self.used.insert((*name).to_owned());
        }
        filled.push_str(&text[at..]);
        Ok((!placeholders.is_empty()).then_some(filled))
    }
}

/// A placeholder as written in a text.
fn braced(name: &str) -> String {
    format!("{{{{{name}}}}}")
}

/// Whether this is a valid name for a placeholder.
fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(first)
        && name
            .chars()
            .all(|c| first(c) || c.is_ascii_digit() || ".-".contains(c))
}

/// The placeholders of a text: start and name of each.
fn placeholders(text: &str) -> Vec<(usize, &str)> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(start) = text[from..].find("{{").map(|at| from + at) {
        let name = text[start + 2..].split_once("}}").map(|(name, _)| name);
        match name.filter(|name| is_name(name)) {
            Some(name) => {
                found.push((start, name));
                from = start + braced(name).len();
            }
            None => from = start + 1,
        }
    }
    found
}

/// The quoting state of a shell at a position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Quoting {
    #[default]
    Bare,
    Single,
    Double,
    /// After `#`, until the end of the line.
    Comment,
    /// Inside `${…}`, as long as it only has a name and a suffix or prefix to remove.
    Expansion,
    /// Inside constructs that this reader does not follow: substitutions within quotes, arithmetic,
    /// conditions, here-documents, `$'…'`.
    Unknown,
}

/// Stands for a character that does not affect the next one.
const PLAIN: char = 'x';

/// Follows the quoting of a script.
#[derive(Debug, Default)]
struct Reader {
    quoting: Quoting,
    /// The last character; [`PLAIN`] for a quoted character or a value.
    last: Option<char>,
}

impl Reader {
    /// Advances over `text`.
    fn read(&mut self, text: &str) {
        let mut letters = text.chars();
        while let Some(c) = letters.next() {
            let last = self.last.replace(c);
            self.quoting = match (self.quoting, c, last) {
                (Quoting::Unknown, _, _)
                | (Quoting::Bare, '\'', Some('$'))
                | (Quoting::Bare, '<', Some('<'))
                | (Quoting::Bare, '(', Some('('))
                | (Quoting::Bare | Quoting::Double, '`', _)
                | (Quoting::Bare | Quoting::Double, '[', Some('$'))
                | (Quoting::Bare, '[', Some('['))
                | (Quoting::Double, '(' | '{', Some('$'))
                | (Quoting::Expansion, '{' | '$' | '`' | '\'' | '"' | '\\' | '[' | ':', _) => {
                    Quoting::Unknown
                }
                // An array index is an arithmetic context, in which even a quoted value is expanded.
                (Quoting::Bare, '[', Some(name)) if name.is_alphanumeric() || name == '_' => Quoting::Unknown,
                (Quoting::Bare, '{', Some('$')) => Quoting::Expansion,
                (Quoting::Expansion, '}', _) => Quoting::Bare,
                // The next character is taken literally, and an escaped newline is removed. At the end of the
                // text, the next character is the value's first.
                (Quoting::Bare | Quoting::Double, '\\', _) => {
                    self.last = match letters.next() {
                        None => Some('\\'),
                        Some('\n') => last,
                        Some(_) => Some(PLAIN),
                    };
                    self.quoting
                }
                (Quoting::Bare, '\'', _) => Quoting::Single,
                (Quoting::Bare, '"', _) => Quoting::Double,
                (Quoting::Bare, '#', before) if before.is_none_or(ends_word) => Quoting::Comment,
                (Quoting::Comment, '\n', _) | (Quoting::Single, '\'', _) | (Quoting::Double, '"', _) => {
                    Quoting::Bare
                }
                (same, _, _) => same,
            };
        }
    }

    /// `value` as it must be written in this position; `None` if that is impossible.
    fn quoted(&mut self, value: &str) -> Option<String> {
        let joins = matches!(self.last, Some('\\' | '$')) && self.quoting != Quoting::Single;
        self.last = Some(PLAIN);
        match self.quoting {
            Quoting::Bare if !joins => Some(crabbox_workspace::quote::single(value)),
            Quoting::Single => Some(value.replace('\'', r"'\''")),
            Quoting::Double if !joins => {
                let mut written = String::with_capacity(value.len());
                for c in value.chars() {
                    if matches!(c, '"' | '\\' | '$' | '`') {
                        written.push('\\');
                    }
                    written.push(c);
                }
                Some(written)
            }
            _ => is_plain(value).then(|| value.to_owned()),
        }
    }
}

/// Whether a new word begins after this character.
fn ends_word(c: char) -> bool {
    c.is_whitespace() || ";&|()<>".contains(c)
}

/// Whether the value has no special meaning to a shell in any position.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./:,@%+".contains(c))
}

#[cfg(test)]
mod tests {
    use crabbox_host::command::Cmd;
    use proptest::prelude::*;

    use super::*;

    fn variables(value: &str) -> Variables {
        Variables {
            values: BTreeMap::from([("v".to_owned(), value.to_owned())]),
            used: BTreeSet::new(),
        }
    }

    /// Templates that print the value and a NUL, each with the placeholder in another kind of quoting.
    const PLACES: [&str; 11] = [
        ": a \\\n# it's a comment\nprintf '%s\\0' {{v}}",
        r"printf '%s\0' {{v}}",
        r#"printf '%s\0' "{{v}}""#,
        r"printf '%s\0' '{{v}}'",
        r#"printf '%s\0' "a\"b{{v}}" | sed -z 's/^a"b//'"#,
        r"printf '%s\0' a\'{{v}} | sed -z 's/^..//'",
        r": ok # it's a comment
printf '%s\0' {{v}}",
        r#"printf '%s\0' x"y"{{v}} | sed -z 's/^xy//'"#,
        r#"x={{v}}; printf '%s\0' "$x""#,
        r"(printf '%s\0' {{v}}) && :",
        r"echo ${#HOME} >/dev/null; printf '%s\0' {{v}}",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_value_is_read_as_itself(value in "[^\0]{0,24}", odd in r#"[ $`'"\\!*?;&|<>(){}#~=\n-]{0,12}"#) {
            for value in [value, odd] {
                let filled = PLACES.map(|place| variables(&value).fill_script("x", place).unwrap().unwrap());
                let printed = Cmd::new("bash").args(["-c", &filled.join("\n")]).run().unwrap().stdout;
                let want = format!("{value}\0").repeat(PLACES.len());
                prop_assert_eq!(String::from_utf8(printed).unwrap(), want);
            }
        }
    }

    #[test]
    fn where_quotes_do_not_help_only_plain_values_are_taken() {
        for template in [
            r#"echo "$(echo {{v}})""#,
            r#"echo "${x:-{{v}}}""#,
            "echo `echo {{v}}`",
            "echo $((1 + {{v}}))",
            "echo $[{{v}}]",
            "echo ${x:{{v}}}",
            "echo ${x[{{v}}]}",
            "a[{{v}}]=1",
            "[[ {{v}} -eq 0 ]]",
            "echo \"$\\\n(echo {{v}})\"",
            "cat <\\\n<END\n{{v}}\nEND",
            "echo $\\\n'{{v}}'",
            "cat <<END\n{{v}}\nEND",
            "echo $'{{v}}'",
            "echo ${{v}}",
            r"echo \{{v}}",
            r#"echo "\{{v}}""#,
            r#"echo "${{v}}""#,
            ": # {{v}}",
        ] {
            for bad in ["$(touch x)", "a b", "", "x\ny", "'", "a=b"] {
                let refused = variables(bad)
                    .fill_script("preset p command", template)
                    .unwrap_err();
                assert!(
                    refused.to_string().contains("preset p command"),
                    "{template} {bad:?}: {refused}"
                );
            }
            let filled = variables("1.2").fill_script("x", template).unwrap();
            assert_eq!(filled, Some(template.replace("{{v}}", "1.2")));
        }
    }

    #[test]
    fn a_value_is_not_read_for_placeholders_again() {
        let given = ["a={{b}}".to_owned(), "b=x, c = y ,c=z".to_owned()];
        let mut variables = Variables::new(&given, Some(" s ")).unwrap();
        assert_eq!(variables.fill("x", "{{{b}}} {{b}").unwrap(), "{x} {{b}");
        assert_eq!(variables.fill_script("x", "echo {{.d}}").unwrap(), None);
        assert_eq!(
            variables.fill("x", "{{a}}-{{b}}-{{c}}-{{.d}}-{{ e }}").unwrap(),
            "{{b}}-x-z-{{.d}}-{{ e }}"
        );
        assert_eq!(variables.unused().collect::<Vec<_>>(), ["scenario"]);
        let missing = variables.fill("preset p env K", "{{y}} {{x}} {{y}}").unwrap_err();
        assert_eq!(
            missing.to_string(),
            "preset p env K has unresolved preset variable(s): {{x}}, {{y}}"
        );
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        for (given, want) in [
            ("a", "--preset-var expects name=value"),
            ("=x", "--preset-var expects name=value"),
            ("a=1,b", "--preset-var expects name=value"),
            ("1a=x", "--preset-var: no placeholder can be called \"1a\""),
        ] {
            let error = Variables::new(&[given.to_owned()], None).unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }
}
