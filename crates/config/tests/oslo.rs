//! The tokenizer against recordings of oslo.config's parser (`oslo/record.py` makes them).

use std::collections::BTreeMap;
use std::path::Path;

use evergate_config::token::{Token, tokenize};
use serde_json::Value;

type Sections = BTreeMap<String, BTreeMap<String, Vec<String>>>;

#[test]
fn every_file_is_taken_apart_as_oslo_config_does() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oslo");
    let mut compared = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "conf") {
            continue;
        }
        let tokens = tokenize(&std::fs::read_to_string(&path).unwrap());
        let recorded = std::fs::read_to_string(path.with_extension("json")).unwrap();
        let recorded: Value = serde_json::from_str(&recorded).unwrap();
        match recorded["fault_line"].as_u64() {
            Some(line) => assert_eq!(tokens.faults.first().map(|f| u64::from(f.line)), Some(line), "{path:?}"),
            None => {
                assert_eq!(tokens.faults, [], "{path:?}");
                let expected: Sections = serde_json::from_value(recorded["sections"].clone()).unwrap();
                assert_eq!(sections(tokens.items), expected, "{path:?}");
            }
        }
        compared += 1;
    }
    assert!(compared >= 10, "the recordings are gone");
}

fn sections(items: Vec<Token>) -> Sections {
    let mut sections = Sections::new();
    for item in items {
        match item {
            Token::Section { name, .. } => drop(sections.entry(name).or_default()),
            Token::Assignment { section, key, value, .. } => {
                sections.entry(section).or_default().entry(key).or_default().push(value);
            }
        }
    }
    sections
}
