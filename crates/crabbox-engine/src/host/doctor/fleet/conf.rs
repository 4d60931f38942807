//! Reads `slurm.conf` and `gres.conf` (slurm.conf(5)): values by case-insensitive key, and the lines of nodes
//! and partitions.
//!
//! Parsing never fails: it ignores what it does not understand, since Slurm itself would refuse that.
//! Included files are not read, but their names are recorded.

use std::collections::{BTreeMap, BTreeSet};

use crabbox_core::comma_list;

/// The maximum number of names that a range expands to.
const MOST: u64 = 10_000;

/// A configuration.
#[derive(Debug, Default)]
pub(super) struct Conf {
    values: BTreeMap<String, String>,
    nodes: Vec<Node>,
    partitions: Vec<Partition>,
    includes: Vec<String>,
}

/// A line `PartitionName=`.
#[derive(Debug)]
pub(super) struct Partition {
    /// The name.
    pub(super) name: String,
    /// The other values of the line, by lower-case key, including the defaults from earlier
    /// `PartitionName=DEFAULT` lines.
    pub(super) values: BTreeMap<String, String>,
}

impl Partition {
    /// Whether the host `name` belongs to it.
    pub(super) fn has(&self, name: &str) -> bool {
        let nodes = self.values.get("nodes").map(String::as_str).unwrap_or_default();
        nodes.eq_ignore_ascii_case("ALL") || expand(nodes).iter().any(|node| node == name)
    }
}

/// A line `NodeName=`.
#[derive(Debug)]
pub(super) struct Node {
    /// The name, which may be a range.
    pub(super) name: String,
    /// The other values of the line, by lower-case key, including the defaults from earlier
    /// `NodeName=DEFAULT` lines.
    pub(super) values: BTreeMap<String, String>,
}

impl Node {
    /// All of its names, with ranges expanded.
    pub(super) fn names(&self) -> Vec<String> {
        expand(&self.name)
    }

    /// Whether it describes the host `name`, as node name or as `NodeHostname`.
    pub(super) fn is(&self, name: &str) -> bool {
        let called = self.values.get("nodehostname").map(|called| expand(called));
        self.names()
            .iter()
            .chain(called.iter().flatten())
            .any(|one| one == name)
    }
}

impl Conf {
    pub(super) fn read(text: &str) -> Self {
        let mut conf = Self::default();
        let (mut default, mut of_all) = (BTreeMap::new(), BTreeMap::new());
        for line in lines(text) {
            let mut said = line.split_whitespace();
            if said.next().is_some_and(|key| key.eq_ignore_ascii_case("include")) {
                conf.includes.extend(said.next().map(str::to_owned));
                continue;
            }
            let words = words(&line);
            match words.first().map(|(key, value)| (key.as_str(), value.as_str())) {
                Some(("nodename", "DEFAULT")) => default.extend(words.into_iter().skip(1)),
                Some(("nodename", name)) => {
                    let name = name.to_owned();
                    let mut values: BTreeMap<_, _> = default.clone();
                    values.extend(words.into_iter().skip(1));
                    conf.nodes.push(Node { name, values });
                }
                Some(("partitionname", "DEFAULT")) => of_all.extend(words.into_iter().skip(1)),
                Some(("partitionname", name)) => {
                    let name = name.to_owned();
                    let mut values: BTreeMap<_, _> = of_all.clone();
                    values.extend(words.into_iter().skip(1));
                    conf.partitions.push(Partition { name, values });
                }
                // The last of several assignments wins.
                _ => conf.values.extend(words),
            }
        }
        conf
    }

    /// The value of `key`.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.values.get(&key.to_ascii_lowercase())?;
        Some(found.as_str()).filter(|text| !text.is_empty() && *text != "(null)")
    }

    /// The same, or Slurm's default.
    pub(super) fn text<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.get(key).unwrap_or(default)
    }

    /// The items of a comma-separated list.
    pub(super) fn list(&self, key: &str) -> BTreeSet<&str> {
        comma_list::items(self.text(key, "")).collect()
    }

    /// A number of seconds, or Slurm's default; `None` if the value is not a number.
    pub(super) fn seconds(&self, key: &str, default: u64) -> Option<u64> {
        self.get(key).map_or(Some(default), |text| text.parse().ok())
    }

    pub(super) fn nodes(&self) -> Vec<&Node> {
        self.nodes.iter().collect()
    }

    /// The included files.
    pub(super) fn includes(&self) -> &[String] {
        &self.includes
    }

    pub(super) fn partitions(&self) -> &[Partition] {
        &self.partitions
    }
}

/// The lines of `text` that begin with `key`, each as a map by lower-case key.
pub(super) fn sections(text: &str, key: &str) -> Vec<BTreeMap<String, String>> {
    let key = key.to_ascii_lowercase();
    lines(text)
        .map(|line| words(&line))
        .filter(|words| words.first().is_some_and(|(first, _)| *first == key))
        .map(|words| words.into_iter().collect())
        .collect()
}

/// Lines without comments; a backslash at the end of a line continues it.
fn lines(text: &str) -> impl Iterator<Item = String> {
    text.replace("\\\n", " ")
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .into_iter()
}

fn words(line: &str) -> Vec<(String, String)> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(key, value)| (key.to_ascii_lowercase(), value.trim_matches('"').to_owned()))
        .collect()
}

/// The names in `kvm[1-3,7]` or `kvm1,kvm2`; leading zeroes are kept.
fn expand(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let open = rest.find('[');
        match (open, rest.find(',')) {
            (Some(open), comma) if comma.is_none_or(|comma| open < comma) => {
                let Some((inside, behind)) = rest[open + 1..].split_once(']') else {
                    return names;
                };
                let (before, (after, next)) = (&rest[..open], behind.split_once(',').unwrap_or((behind, "")));
                names.extend(
                    inside
                        .split(',')
                        .flat_map(range)
                        .map(|number| format!("{before}{number}{after}")),
                );
                rest = next;
            }
            (_, Some(comma)) => {
                names.push(rest[..comma].to_owned());
                rest = &rest[comma + 1..];
            }
            (_, None) => {
                names.push(rest.to_owned());
                rest = "";
            }
        }
    }
    names
}

fn range(text: &str) -> Vec<String> {
    let Some((first, last)) = text.split_once('-') else {
        return vec![text.to_owned()];
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(from), Ok(to)) if to >= from && to - from < MOST => (from..=to)
            .map(|number| format!("{number:0width$}", width = first.len()))
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_slurm_writes_them() {
        for (text, expected) in [
            ("kvm1", vec!["kvm1"]),
            ("kvm1,kvm2", vec!["kvm1", "kvm2"]),
            ("kvm[1-3,7]", vec!["kvm1", "kvm2", "kvm3", "kvm7"]),
            (
                "a,kvm[08-10].x,b",
                vec!["a", "kvm08.x", "kvm09.x", "kvm10.x", "b"],
            ),
            ("kvm[1-", vec![]),
            ("kvm[3-1]", vec![]),
            ("kvm[1-99999999]", vec![]),
        ] {
            assert_eq!(expand(text), expected, "{text}");
        }
    }

    #[test]
    fn keys_have_no_case_comments_are_passed_over_and_the_last_value_counts() {
        let conf = Conf::read(
            "killwait=5 # short\n#KillWait=6\nKillWait = 9\nEpilog=\\\n/x\nNodeName=DEFAULT RealMemory=7\nnodename=h[1-2] CPUs=2\nPartitionName=p Nodes=ALL",
        );
        assert_eq!(
            (conf.seconds("KillWait", 30), conf.get("epilog")),
            (Some(5), None)
        );
        assert_eq!(conf.nodes()[0].values["realmemory"], "7");
        assert!(conf.nodes()[0].is("h2") && !conf.nodes()[0].is("h3"));
        let partitions = Conf::read(
            "PartitionName=DEFAULT AllowGroups=root\nPartitionName=p Nodes=ALL\nPartitionName=q Nodes=h[1-2] AllowGroups=x",
        );
        let [p, q] = partitions.partitions() else {
            panic!("{partitions:?}")
        };
        assert_eq!((p.name.as_str(), p.values["allowgroups"].as_str()), ("p", "root"));
        assert_eq!((q.name.as_str(), q.values["allowgroups"].as_str()), ("q", "x"));
        assert!(p.has("h9") && q.has("h2") && !q.has("h9"));
        assert_eq!(
            Conf::read("KillWait=5\nKILLWAIT=7").seconds("KillWait", 30),
            Some(7)
        );
        assert_eq!(Conf::read("KillWait=x").seconds("KillWait", 30), None);
    }
}
