//! Profiles and presets of the configuration.

use super::*;

#[test]
fn a_profile_brings_variables_presets_and_what_is_let_through() {
    let text = "env: {allow: [BASE]}\npresets:\n  test: {command: make test}\n  lint: {command: make lint, shell: yes, env: {B: 2}, \
                preflight: true, artifactGlobs: '*.log'}\nprofiles:\n  ci:\n    env: {A: 1, EMPTY: , allow: [X_*]}\n    envAllow: [Y]\n    \
                artifactGlobs: [out/*]\n    presets: {test: {command: cargo test}}\n    doctor: {enabled: true}\n";
    let plain = world().user(text).settings();
    assert_eq!(plain.env_allow.value, ["BASE"]);
    assert_eq!(
        (plain.env.len(), plain.presets["test"].command.as_str()),
        (0, "make test")
    );
    let lint = &plain.presets["lint"];
    assert!(lint.shell && lint.preflight && lint.env["B"] == "2" && lint.artifact_globs == ["*.log"]);
    let ci = world().user(text).flag(Name::Profile, &["ci"]);
    let settings = ci.settings();
    assert_eq!(settings.env_allow.value, ["X_*", "Y"]);
    assert_eq!(
        (settings.env["A"].as_str(), settings.env["EMPTY"].as_str()),
        ("1", "")
    );
    assert_eq!(settings.presets["test"].command, "cargo test");
    assert_eq!(settings.artifact_globs, ["out/*"]);
    assert_eq!(
        ci.resolve().unwrap().explain(Name::EnvAllow).origin.to_string(),
        "/h/.config/crabbox/config.yaml:7:33"
    );
    let variable = ci.env("CRABBOX_ENV_ALLOW", "Z").settings();
    assert_eq!(variable.env_allow.value, ["Z"]);
    assert_eq!(
        world().user(text).warnings(),
        ["/h/.config/crabbox/config.yaml: not supported by this program and ignored: profiles.ci.doctor"]
    );
}

#[test]
fn proof_templates_are_the_profile_s_before_the_others() {
    let text = "presets: {p: {command: x, proofTemplate: pr}}\nproofTemplates:\n  pr: {behaviorAddressed: 'B {{slug}}', notTested: }\n  \
                other: {exactSteps: 1}\nprofiles:\n  ci:\n    proofTemplates: {pr: {observedResult: O}}\n";
    let plain = world().repo(text).settings();
    assert_eq!(plain.presets["p"].proof_template, "pr");
    let template = &plain.proof_templates["pr"];
    assert_eq!(
        (template.behavior_addressed.as_str(), template.not_tested.as_str()),
        ("B {{slug}}", "")
    );
    let settings = world().repo(text).flag(Name::Profile, &["ci"]).settings();
    let template = &settings.proof_templates["pr"];
    assert_eq!(
        (
            template.behavior_addressed.as_str(),
            template.observed_result.as_str()
        ),
        ("", "O")
    );
    assert_eq!(settings.proof_templates["other"].exact_steps, "1");
    assert!(world().repo(text).warnings().is_empty());
    for (text, key) in [
        ("proofTemplates: [a]\n", "proofTemplates"),
        (
            "proofTemplates: {a: {exactSteps: [b]}}\n",
            "proofTemplates.a.exactSteps",
        ),
        (
            "presets: {a: {command: x, proofTemplate: [b]}}\n",
            "presets.a.proofTemplate",
        ),
    ] {
        let error = world().repo(text).resolve().unwrap_err();
        assert!(
            matches!(&error, ConfigError::WrongType { key: at, .. } if at == key),
            "{error:?}"
        );
    }
    let told = world().repo("proofTemplates: {a: {steps: b}}\n").warnings();
    assert_eq!(
        told,
        ["/w/repo/crabbox.yaml:1:29: unknown key proofTemplates.a.steps is ignored"]
    );
}

#[test]
fn what_a_repository_s_profile_lets_through_is_not_trusted() {
    let settings = world()
        .user("profiles: {default: {envAllow: [MY_TOKEN]}}\n")
        .settings();
    let verdict = |settings: &Settings, name: &str| allow::Allow::new(&settings.env_allow).judge(name);
    assert_eq!(verdict(&settings, "MY_TOKEN"), allow::Verdict::Passes);
    let settings = world()
        .user("profiles: {default: {envAllow: [MY_TOKEN]}}\n")
        .repo("profiles: {default: {envAllow: [MY_TOKEN, MY_NAME]}}\n")
        .settings();
    assert_eq!(verdict(&settings, "MY_TOKEN"), allow::Verdict::Withheld);
    assert_eq!(verdict(&settings, "MY_NAME"), allow::Verdict::Passes);
}

#[test]
fn profiles_and_presets_that_make_no_sense_are_refused_at_their_place() {
    for (text, want) in [
        ("profiles: [a]\n", "profiles"),
        ("profiles: {a: b}\n", "profiles.a"),
        ("profiles: {a: {env: {A: [x]}}}\n", "profiles.a.env.A"),
        ("profiles: {a: {env: {A-B: x}}}\n", "profiles.a.env.A-B"),
        ("profiles: {a: {envAllow: {x: y}}}\n", "profiles.a.envAllow"),
        ("presets: {a: {shell: yes}}\n", "presets.a.command"),
        ("presets: {a: {command: x, shell: maybe}}\n", "presets.a.shell"),
    ] {
        let error = world().repo(text).resolve().unwrap_err();
        assert!(
            matches!(&error, ConfigError::WrongType { key, .. } if key == want),
            "{error:?}"
        );
    }
    let told = world()
        .repo("presets: {a: {command: x, colour: red}}\n")
        .warnings();
    assert_eq!(
        told,
        ["/w/repo/crabbox.yaml:1:35: unknown key presets.a.colour is ignored"]
    );
}
