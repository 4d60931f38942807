//! Tests of schemas that are accepted and refused, and of files validated against them.

use std::fmt::Write as _;

use super::*;

fn schema(text: &str) -> Result<Required, String> {
    let (validator, size) = compile(text.as_bytes().to_vec())?;
    Ok(Required {
        remote: "r.json".to_owned(),
        schema: "s.json".into(),
        validator: Arc::new(validator),
        size,
    })
}

fn violations(text: &str, file: &str) -> Vec<String> {
    schema(text).unwrap().violations(file.as_bytes().to_vec())
}

#[test]
fn each_place_that_does_not_satisfy_is_told_once_without_its_value() {
    let text = r##"{"type":"object","required":["a","b"],"additionalProperties":false,
        "properties":{"a":{"$ref":"#/$defs/n"},"c":{"anyOf":[{"type":"string"},{"minimum":5}]},"d~/":{"pattern":"^x"}},
        "$defs":{"n":{"type":"integer"}}}"##;
    assert!(violations(text, r#"{"a":1,"b":2}"#).len() == 1);
    assert!(violations(r#"{"required":["a"]}"#, r#"{"a":1}"#).is_empty());
    let mut told = violations(text, r#"{"a":"secret","c":3,"d~/":"y","e":1}"#);
    told.sort();
    let of = |at: &str, keyword: &str| format!("{at}: does not satisfy JSON Schema constraint {keyword}");
    assert_eq!(
        told,
        [
            of("(root)", "/additionalProperties"),
            of("(root)", "/required"),
            of("/a", "/$defs/n/type"),
            of("/c", "/properties/c/anyOf/0/type"),
            of("/c", "/properties/c/anyOf/1/minimum"),
            of("/d~0~1", "/properties/d~0~1/pattern"),
        ]
    );
    let many = violations(
        r#"{"items":{"type":"null"}}"#,
        &format!("[{}0]", "0,".repeat(500)),
    );
    assert_eq!((many.len(), count(&many).as_str()), (101, "at least 101 checks"));
    assert_eq!(count(&told), "6 check(s)");
}

#[test]
fn a_file_that_can_be_read_in_two_ways_or_not_at_all_satisfies_nothing() {
    for (file, why) in [
        ("", "(root): artifact is not valid JSON"),
        ("{} {}", "(root): artifact is not valid JSON"),
        (r#"{"a":1,"a":2}"#, "(root): artifact is not taken: duplicate key"),
        (
            &"[".repeat(100),
            "(root): artifact is not taken: it is nested deeper than 64 levels",
        ),
    ] {
        assert_eq!(violations("true", file), [why], "{file}");
    }
}

#[test]
fn a_schema_that_leads_away_or_back_to_itself_is_refused() {
    for (text, why) in [
        (r##"{"$ref":"#"}"##, "leads back"),
        (r##"{"properties":{"enum":{"$ref":"#"}}}"##, "leads back"),
        (
            r##"{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"not":{"$ref":"#/$defs/b"}},"b":{"$ref":"#/$defs/a"}}}"##,
            "leads back",
        ),
        (r##"{"$ref":"#/$defs/a"}"##, "leads nowhere"),
        (r#"{"$ref":"https://example.invalid/s.json"}"#, "is not supported"),
        (r#"{"$ref":"file:///etc/passwd"}"#, "is not supported"),
        (
            r##"{"$ref":"#anchor","$defs":{"a":{"$anchor":"anchor"}}}"##,
            "is not supported",
        ),
        (r##"{"$dynamicRef":"#a"}"##, "$dynamicRef is not supported"),
        (r#"{"$defs":{"a":{"$id":"b"}}}"#, "$id of its own"),
        (r#"{"type":"nothing"}"#, ""),
        (r#"{"pattern":"("}"#, ""),
        (r#"{"a":1,"a":2}"#, "duplicate key"),
        ("nothing", ""),
    ] {
        let error = schema(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    // Two references to the same part are not circular, and a property may be named like a keyword.
    let text = r##"{"properties":{"a":{"$ref":"#/$defs/n"},"b":{"$ref":"#/$defs/n"},"$id":{"type":"string"},"$ref":{"type":"string"}},
        "$defs":{"n":{"type":"integer"}}}"##;
    assert!(violations(text, r#"{"a":1,"b":1,"$id":"x","$ref":"y"}"#).is_empty());
}

#[test]
fn a_long_way_through_a_schema_ends_and_a_pattern_is_matched_in_one_pass() {
    let parts: Vec<String> = (0..1500)
        .map(|at| format!(r##""d{at}":{{"$ref":"#/$defs/d{}"}}"##, at + 1))
        .collect();
    let text = format!(
        r##"{{"$ref":"#/$defs/d0","$defs":{{{},"d1500":{{"type":"null"}}}}}}"##,
        parts.join(",")
    );
    assert!(violations(&text, "null").is_empty());
    assert_eq!(count(&violations(&text, "1")), "at least 1 check(s)");
    let file = format!("\"{}!\"", "a".repeat(100_000));
    assert_eq!(violations(r#"{"pattern":"^(a+)+$"}"#, &file).len(), 1);
}

#[test]
fn a_flag_names_one_file_below_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.json");
    std::fs::write(&path, "{}").unwrap();
    let path = path.to_str().unwrap();
    let specs = |remotes: &[&str]| -> Vec<String> {
        remotes.iter().map(|remote| format!("{remote}={path}")).collect()
    };
    let loaded = load(&specs(&["./out//r.json", "b", "b"])).unwrap();
    let remotes: Vec<&str> = loaded.iter().map(|one| one.remote.as_str()).collect();
    assert_eq!(remotes, ["out/r.json", "b"]);
    for bad in [
        "/etc/passwd",
        "../x",
        "a/../b",
        "-x",
        "*.json",
        "a?",
        ".",
        "a b",
        "a:b",
    ] {
        assert!(
            matches!(load(&specs(&[bad])), Err(SchemaError::Remote { .. })),
            "{bad}"
        );
    }
    assert!(matches!(
        load(&specs(&["a", "./a"])),
        Err(SchemaError::Twice { .. })
    ));
    for bad in ["a", "a=", "=a"] {
        assert!(matches!(load(&[bad.to_owned()]), Err(SchemaError::Spec)), "{bad}");
    }
    assert!(matches!(
        load(&["a=/nowhere".to_owned()]),
        Err(SchemaError::Read { .. })
    ));
}

#[test]
fn where_all_violations_could_fill_the_memory_only_the_first_is_looked_for() {
    // Each definition refers to the next one twice.
    let mut text = r##"{"$ref":"#/$defs/0","$defs":{"##.to_owned();
    for level in 0..40 {
        let next = level + 1;
        let twice = format!(r##"{{"$ref":"#/$defs/{next}"}},{{"$ref":"#/$defs/{next}"}}"##);
        write!(text, r#""{level}":{{"allOf":[{twice}]}},"#).unwrap();
    }
    text += r#""40":{"type":"string"}}}"#;
    let found = violations(&text, "1");
    assert!(found.len() == 2 && found[1] == ONLY_FIRST, "{found:?}");
    assert_eq!(count(&found), "at least 1 check(s)");
    let many = format!("[{}1]", "1,".repeat(50_000));
    let wide = format!(
        r#"{{"items":{{"allOf":[{}{{"type":"string"}}]}}}}"#,
        r#"{"type":"string"},"#.repeat(500)
    );
    assert_eq!(count(&violations(&wide, &many)), "at least 1 check(s)");
}
