//! `{{name}}` in the presets and variables of a configuration, filled with what the command line gives.
//!
//! A value is data. In a command it is quoted for the place where it stands, so that a shell reads exactly these bytes; where no
//! quoting does that, only a value that no shell reads into is taken. It must never add a word, an operator or an expansion.

use std::collections::{BTreeMap, BTreeSet};

use crabbox_core::fault::{Fault, Kind};

/// Why a placeholder cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A variable for presets without its two halves.
    #[error("--preset-var expects name=value")]
    PresetVar,
    /// A name that no placeholder can have.
    #[error("--preset-var: no placeholder can be called {name:?}")]
    PresetVarName {
        /// The name.
        name: String,
    },
    /// Placeholders that nobody gave a value.
    #[error("{place} has unresolved preset variable(s): {}", missing.join(", "))]
    Unresolved {
        /// Where they stand.
        place: String,
        /// The placeholders, braces included.
        missing: Vec<String>,
    },
    /// A value that a shell would read something into.
    #[error("{place} has {{{{{name}}}}} where its value cannot be quoted")]
    Unquotable {
        /// Where it stands.
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
                vec!["names have letters, digits and _.-, and begin with a letter or _".to_owned()]
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

/// What `--preset-var` and `--scenario` give, by name.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    values: BTreeMap<String, String>,
    /// The names that were put somewhere.
    used: BTreeSet<String>,
}

impl Variables {
    /// Of the flags: `name=value`, several with commas between them; a later one wins, the scenario last.
    pub(super) fn new(given: &[String], scenario: Option<&str>) -> Result<Self, TemplateError> {
        let mut values = BTreeMap::new();
        let parts = given.iter().flat_map(|text| text.split(','));
        for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
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

    /// The value of `name`, which stands somewhere.
    pub(super) fn take(&mut self, name: &str) -> Option<&str> {
        let value = self.values.get(name)?;
        self.used.insert(name.to_owned());
        Some(value)
    }

    /// Those that stand nowhere.
    pub(super) fn unused(&self) -> impl Iterator<Item = &str> {
        let unused = self.values.keys().filter(|name| !self.used.contains(*name));
        unused.map(String::as_str)
    }

    /// `text`, which is what `place` says, with the values in it as they are.
    pub(super) fn fill(&mut self, place: &str, text: &str) -> Result<String, TemplateError> {
        let filled = self.put(place, text, |_, value| Some(value.to_owned()))?;
        Ok(filled.unwrap_or_else(|| text.to_owned()))
    }

    /// The same for a script: each value reads back as itself. None where it has no placeholder.
    pub(super) fn fill_script(&mut self, place: &str, text: &str) -> Result<Option<String>, TemplateError> {
        let mut reader = Reader::default();
        self.put(place, text, |ahead, value| {
            reader.read(ahead);
            reader.quoted(value)
        })
    }

    /// Puts `quoted` in the place of each placeholder; it gets what stands before it, behind the last one, and the value.
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

/// A placeholder as it is written.
fn braced(name: &str) -> String {
    format!("{{{{{name}}}}}")
}

/// Whether a placeholder may have this name.
fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(first)
        && name
            .chars()
            .all(|c| first(c) || c.is_ascii_digit() || ".-".contains(c))
}

/// The placeholders of a text: where each starts, and its name.
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

/// How a shell reads what stands next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Quoting {
    #[default]
    Bare,
    Single,
    Double,
    /// Behind `#`, to the end of the line.
    Comment,
    /// In `${…}`, as long as nothing stands there but a name with what cuts it.
    Expansion,
    /// In what this reader does not follow: substitutions within quotes, arithmetic, conditions, here-documents, `$'…'`.
    Unknown,
}

/// Stands for a character that means nothing to the next one.
const PLAIN: char = 'x';

/// Follows a script as far as quotes go.
#[derive(Debug, Default)]
struct Reader {
    quoting: Quoting,
    /// The last character, [`PLAIN`] for one that was quoted and for a value.
    last: Option<char>,
}

impl Reader {
    /// Reads on.
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
                // The index of an array is arithmetic, which reads expansions out of a value that is quoted.
                (Quoting::Bare, '[', Some(name)) if name.is_alphanumeric() || name == '_' => Quoting::Unknown,
                (Quoting::Bare, '{', Some('$')) => Quoting::Expansion,
                (Quoting::Expansion, '}', _) => Quoting::Bare,
                // The one that follows is taken as it is, and a line's end is taken away with it; at the end of the text that is the
                // value's first.
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

    /// `value` as it has to be written here; `None` where it cannot be.
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

/// Whether a word begins behind it.
fn ends_word(c: char) -> bool {
    c.is_whitespace() || ";&|()<>".contains(c)
}

/// Whether no shell reads anything into the value, wherever it stands.
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

    /// Templates that print the value and a NUL, however it is quoted there.
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
