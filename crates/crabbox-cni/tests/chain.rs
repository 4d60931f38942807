//! Chains of plugins that are shell scripts of the test and record how they were called.

#![cfg(test)]

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_cni::{AddError, Attachment, PluginError, add, del, load};
use crabbox_host::command::Cmd;
use crabbox_host::netns;
use serde_json::{Value, json};

/// A directory with configurations, plugins, a namespace and a log of calls.
struct Fixture {
    dir: tempfile::TempDir,
}

/// The result of a working plugin.
const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"veth0","sandbox":"/ns"}],"ips":[{"interface":0,"address":"10.1.2.3/24"}]}"#;

impl Fixture {
    fn new() -> Self {
        let fixture = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for dir in ["conf", "bin"] {
            std::fs::create_dir(fixture.path(dir)).unwrap();
        }
        netns::create(&fixture.path("netns")).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A plugin that logs its call and input, then runs `script`.
    fn plugin(&self, name: &str, script: &str) {
        let log = self.path("log");
        let head = format!(
            "#!/bin/sh\ninput=$(cat)\n\
             printf '%s %s netns=%s id=%s if=%s args=%s\\n' {name} $CNI_COMMAND \"$CNI_NETNS\" \"$CNI_CONTAINERID\" \"$CNI_IFNAME\" \"$CNI_ARGS\" >>{log}\n\
             printf '%s\\n' \"$input\" >>{inputs}/{name}-$CNI_COMMAND\n",
            log = log.display(),
            inputs = self.dir.path().display(),
        );
        let file = self.path("bin").join(name);
        // The file is written by a child process: if we wrote it, a fork by another test's thread could hold
        // the writable descriptor when the script is run ("text file busy").
        Cmd::new("install")
            .args(["-m", "755", "/dev/stdin"])
            .arg(file)
            .stdin(format!("{head}{script}\n"))
            .run()
            .unwrap();
    }

    /// A plugin that succeeds.
    fn good(&self, name: &str) {
        self.plugin(name, &format!("test $CNI_COMMAND = ADD && echo '{RESULT}'; true"));
    }

    fn attachment(&self, conf: &Value) -> Attachment {
        std::fs::write(self.path("conf/10-net.conflist"), conf.to_string()).unwrap();
        let conf = load(&self.path("conf"), "net").unwrap();
        let mut attachment = Attachment::new(
            conf,
            vec![self.path("bin")],
            "cbx-1",
            &self.path("netns"),
            "veth0",
            &self.path("cache"),
        );
        attachment.limit_ms = 10_000;
        serde_json::from_str(&serde_json::to_string(&attachment).unwrap()).unwrap()
    }

    fn chain(&self, plugins: &[&str]) -> Attachment {
        let plugins: Vec<_> = plugins.iter().map(|plugin| json!({ "type": plugin })).collect();
        self.attachment(&json!({ "cniVersion": "1.0.0", "name": "net", "plugins": plugins }))
    }

    /// "plugin VERB" for each call so far; the log is emptied.
    fn calls(&self) -> Vec<String> {
        let log = self.log();
        std::fs::remove_file(self.path("log")).ok();
        log.lines()
            .map(|line| line.split(" netns=").next().unwrap().to_owned())
            .collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The configuration that a plugin received for a command.
    fn input(&self, plugin: &str, verb: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path(&format!("{plugin}-{verb}"))).unwrap())
            .unwrap()
    }

    fn cache(&self) -> PathBuf {
        self.path("cache/results/net-cbx-1-veth0")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        netns::remove(&self.path("netns")).unwrap();
    }
}

fn failure(error: AddError) -> PluginError {
    match error {
        AddError::Plugin { source, .. } => *source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn add_goes_forth_with_each_result_handed_on_and_del_comes_back() {
    let fixture = Fixture::new();
    fixture.good("one");
    fixture.plugin(
        "two",
        &format!(
            "test $CNI_COMMAND = ADD && echo '{}'; true",
            RESULT.replace("10.1.2.3", "10.1.2.4")
        ),
    );
    let mut attachment = fixture.chain(&["one", "two"]);
    attachment.args = vec![
        ("IgnoreUnknown".to_owned(), "1".to_owned()),
        ("K8S".to_owned(), "x".to_owned()),
    ];
    let result = add(&attachment).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.1.2.4/24");
    let expected = format!(
        "one ADD netns={} id=cbx-1 if=veth0 args=IgnoreUnknown=1;K8S=x\n",
        attachment.netns.display()
    );
    assert!(fixture.log().starts_with(&expected), "{}", fixture.log());
    assert_eq!(fixture.calls(), ["one ADD", "two ADD"]);
    let first: Value = serde_json::from_str(RESULT).unwrap();
    assert_eq!(
        fixture.input("one", "ADD"),
        json!({ "type": "one", "name": "net", "cniVersion": "1.0.0" })
    );
    assert_eq!(fixture.input("two", "ADD")["prevResult"], first);

    del(&attachment).unwrap();
    assert_eq!(fixture.calls(), ["two DEL", "one DEL"]);
    for plugin in ["one", "two"] {
        let previous = &fixture.input(plugin, "DEL")["prevResult"];
        assert_eq!(
            previous["ips"][0]["address"], "10.1.2.4/24",
            "the last result, from the cache"
        );
    }
    assert!(!fixture.cache().exists());
    del(&attachment).unwrap();
}

#[test]
fn the_cache_is_libcni_s() {
    let fixture = Fixture::new();
    fixture.good("one");
    add(&fixture.chain(&["one"])).unwrap();
    let mut entry: Value = serde_json::from_slice(&std::fs::read(fixture.cache()).unwrap()).unwrap();
    assert!(
        entry["config"]
            .take()
            .as_str()
            .unwrap()
            .starts_with("eyJjbmlWZXJzaW9u"),
        "base64 of a list"
    );
    let expected = json!({
        "kind": "cniCacheV1",
        "containerId": "cbx-1",
        "config": null,
        "ifName": "veth0",
        "networkName": "net",
        "netns": fixture.path("netns"),
        "result": serde_json::from_str::<Value>(RESULT).unwrap(),
    });
    assert_eq!(entry, expected);
}

#[test]
fn a_plugin_that_reports_an_error_is_undone_with_those_before_it() {
    let fixture = Fixture::new();
    fixture.good("one");
    let report = r#"{"cniVersion":"1.0.0","code":11,"msg":"try again","details":"no address"}"#;
    fixture.plugin(
        "two",
        &format!("test $CNI_COMMAND = ADD || exit 0; echo deep trouble >&2; echo '{report}'; exit 1"),
    );
    fixture.good("three");
    let error = add(&fixture.chain(&["one", "two", "three"])).unwrap_err();
    assert_eq!(error.to_string(), "cannot attach cbx-1 to the CNI network net");
    assert_eq!(
        error.source().unwrap().to_string(),
        "the CNI plugin two failed on ADD with code 11: try again (no address); it printed: deep trouble"
    );
    assert_eq!(fixture.calls(), ["one ADD", "two ADD", "two DEL", "one DEL"]);
    assert!(!fixture.cache().exists());
}

#[test]
fn what_could_not_be_undone_is_said() {
    let fixture = Fixture::new();
    fixture.plugin(
        "one",
        &format!("test $CNI_COMMAND = ADD && echo '{RESULT}' && exit; exit 3"),
    );
    let error = add(&fixture.chain(&["one", "gone"])).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("undoing it failed as well: the CNI plugin one failed on DEL"),
        "{text}"
    );
    let missing = failure(error);
    let text = format!("the CNI plugin gone is not in {}", fixture.path("bin").display());
    assert_eq!(missing.to_string(), text);
}

#[test]
fn a_failure_without_a_report_carries_what_was_printed() {
    let fixture = Fixture::new();
    fixture.plugin(
        "one",
        "test $CNI_COMMAND = ADD || exit 0; echo so sorry; echo oops >&2; exit 7",
    );
    let error = failure(add(&fixture.chain(&["one"])).unwrap_err());
    let text = error.to_string();
    assert!(
        text.contains("exit status: 7") && text.contains("so sorry") && text.contains("oops"),
        "{text}"
    );
}

#[test]
fn an_answer_that_is_no_result_is_undone() {
    for (answer, start) in [
        (
            "nonsense",
            "the CNI plugin one returned an invalid result for ADD: \"nonsense\"",
        ),
        ("", "the CNI plugin one returned an invalid result for ADD: \"\""),
        (
            r#"{"cniVersion":"0.4.0"}"#,
            "the CNI plugin one answered ADD in version \"0.4.0\"; it was asked in 1.0.0",
        ),
    ] {
        let fixture = Fixture::new();
        fixture.plugin("one", &format!("echo '{answer}'; echo hint >&2"));
        let error = failure(add(&fixture.chain(&["one"])).unwrap_err());
        assert!(error.to_string().starts_with(start), "{error}");
        assert_eq!(fixture.calls(), ["one ADD", "one DEL"]);
    }
    let fixture = Fixture::new();
    fixture.plugin(
        "one",
        r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"not one"}]}'"#,
    );
    assert!(matches!(
        add(&fixture.chain(&["one"])).unwrap_err(),
        AddError::Result { .. }
    ));
    assert_eq!(fixture.calls(), ["one ADD", "one DEL"]);
}

#[test]
fn a_hung_plugin_is_killed_with_its_children() {
    let fixture = Fixture::new();
    let pid = fixture.path("pid");
    let hang = format!(
        "test $CNI_COMMAND = ADD || exit 0; echo stuck >&2; sleep 300 & echo $! >{}; wait",
        pid.display()
    );
    fixture.plugin("one", &hang);
    let mut attachment = fixture.chain(&["one"]);
    attachment.limit_ms = 300;
    let started = Instant::now();
    let error = failure(add(&attachment).unwrap_err());
    assert!(started.elapsed() < Duration::from_mins(1));
    assert_eq!(error.to_string(), "the CNI plugin one did not finish ADD");
    let source = error.source().unwrap().to_string();
    assert!(
        source.contains("did not end within 300ms") && source.contains("stuck"),
        "{source}"
    );
    let child = std::fs::read_to_string(pid).unwrap();
    let stat = Path::new("/proc").join(child.trim()).join("stat");
    let gone = crabbox_host::clock::poll_until(Duration::from_secs(10), || {
        // A killed child whose parent is also gone may stay a zombie until init reaps it.
        std::fs::read_to_string(&stat).map_or(Some(()), |stat| stat.contains(") Z ").then_some(()))
    });
    assert!(gone.is_some(), "the child of the plugin lives on");
}

#[test]
fn del_goes_on_after_a_failure_and_keeps_the_cache() {
    let fixture = Fixture::new();
    fixture.good("one");
    fixture.plugin(
        "two",
        &format!("test $CNI_COMMAND = ADD && echo '{RESULT}' && exit; exit 3"),
    );
    fixture.good("three");
    let attachment = fixture.chain(&["one", "two", "three"]);
    add(&attachment).unwrap();
    fixture.calls();
    std::fs::remove_file(fixture.path("bin/three")).unwrap();
    let error = del(&attachment).unwrap_err();
    assert_eq!(error.failures.len(), 2);
    let text = error.to_string();
    assert!(
        text.contains("plugin three is not in") && text.contains("plugin two failed on DEL"),
        "{text}"
    );
    assert_eq!(fixture.calls(), ["two DEL", "one DEL"]);
    assert!(fixture.cache().exists());
    fixture.good("two");
    fixture.good("three");
    del(&attachment).unwrap();
    assert!(!fixture.cache().exists());
}

#[test]
fn del_of_a_namespace_that_is_gone_names_none() {
    let fixture = Fixture::new();
    fixture.good("one");
    let attachment = fixture.chain(&["one"]);
    add(&attachment).unwrap();
    netns::remove(&attachment.netns).unwrap();
    fixture.calls();
    del(&attachment).unwrap();
    std::fs::write(&attachment.netns, "").unwrap();
    del(&attachment).unwrap();
    let log = fixture.log();
    assert_eq!(log.lines().count(), 2);
    assert!(
        log.lines()
            .all(|line| line.starts_with("one DEL netns= id=cbx-1")),
        "{log}"
    );
}

#[test]
fn capabilities_become_runtime_configuration() {
    let fixture = Fixture::new();
    fixture.good("one");
    let plugin = json!({ "type": "one", "capabilities": { "portMappings": true, "bandwidth": false }, "cni.dev/private": 1 });
    let mut attachment =
        fixture.attachment(&json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [plugin] }));
    for key in ["portMappings", "bandwidth", "mac"] {
        attachment.capability_args.insert(key.to_owned(), json!([1]));
    }
    add(&attachment).unwrap();
    let expected = json!({ "type": "one", "name": "net", "cniVersion": "1.0.0", "runtimeConfig": { "portMappings": [1] } });
    assert_eq!(fixture.input("one", "ADD"), expected);
}

#[test]
fn versions_before_0_4_0_get_no_previous_result_on_del() {
    let fixture = Fixture::new();
    fixture.plugin(
        "one",
        &format!(
            "test $CNI_COMMAND = ADD && echo '{}'; true",
            RESULT.replace("1.0.0", "0.3.1")
        ),
    );
    let attachment = fixture.attachment(&json!({ "cniVersion": "0.3.1", "name": "net", "type": "one" }));
    add(&attachment).unwrap();
    del(&attachment).unwrap();
    assert_eq!(fixture.input("one", "DEL").get("prevResult"), None);
}
