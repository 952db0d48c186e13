//! Policy files: flat YAML (or JSON) mappings of rule names to conditions, read with the line of each.

use std::path::{Path, PathBuf};

use yaml_rust2::Event;
use yaml_rust2::parser::Parser;

use super::check::{Check, of_lists};

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It could not be read.
    #[error("failed to read policy file {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Something in it makes no sense.
    #[error("{path}:{line}: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// One rule of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) check: Check,
}

/// Reads a file's rules in their order.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, PolicyError> {
    let text = std::fs::read_to_string(path).map_err(|source| PolicyError::Io { path: path.to_owned(), source })?;
    parse(&text).map_err(|(line, reason)| PolicyError::Invalid { path: path.to_owned(), line, reason })
}

type Fault = (usize, String);

fn parse(text: &str) -> Result<Vec<Entry>, Fault> {
    let mut events = Events(Parser::new_from_str(text));
    loop {
        match events.next()? {
            // A file of comments only is a policy without overrides.
            (Event::StreamEnd, _) => return Ok(Vec::new()),
            (Event::MappingStart(..), _) => break,
            (Event::Scalar(text, ..), _) if text.is_empty() || text == "~" || text == "null" => return Ok(Vec::new()),
            (Event::Scalar(..) | Event::SequenceStart(..), line) => {
                return Err((line, "a mapping of rule names to conditions is wanted".to_owned()));
            }
            _ => {}
        }
    }
    let mut entries = Vec::new();
    loop {
        match events.next()? {
            (Event::MappingEnd, _) => return Ok(entries),
            (Event::Scalar(name, ..), line) => {
                let text = condition(&mut events, &name)?;
                let check = Check::parse(&text).map_err(|why| (line, format!("rule '{name}': {why}")))?;
                entries.push(Entry { name, line, text, check });
            }
            (_, line) => return Err((line, "the name of a rule is wanted here".to_owned())),
        }
    }
}

/// Reads the value of a rule: a text, or the older list of lists.
fn condition(events: &mut Events<'_>, name: &str) -> Result<String, Fault> {
    match events.next()? {
        (Event::Scalar(text, ..), _) => Ok(text),
        (Event::SequenceStart(..), _) => {
            let mut any_of = Vec::new();
            loop {
                match events.next()? {
                    (Event::SequenceEnd, _) => return Ok(of_lists(&any_of)),
                    (Event::Scalar(text, ..), _) => any_of.push(vec![text]),
                    (Event::SequenceStart(..), _) => any_of.push(events.texts(name)?),
                    (_, line) => return Err((line, format!("rule '{name}': lists of conditions are wanted here"))),
                }
            }
        }
        (_, line) => Err((line, format!("rule '{name}': a text or a list of lists is wanted"))),
    }
}

struct Events<'t>(Parser<std::str::Chars<'t>>);

impl Events<'_> {
    fn next(&mut self) -> Result<(Event, usize), Fault> {
        let (event, marker) = self.0.next_token().map_err(|error| (error.marker().line(), error.info().to_owned()))?;
        Ok((event, marker.line()))
    }

    fn texts(&mut self, name: &str) -> Result<Vec<String>, Fault> {
        let mut texts = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(texts),
                (Event::Scalar(text, ..), _) => texts.push(text),
                (_, line) => return Err((line, format!("rule '{name}': the lists hold texts only"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_with_their_lines_in_yaml_and_json() {
        let yaml = "# ours\n\"create_router:ha\": \"role:admin\"\n\n'get_agent': >-\n  role:auditor or\n  rule:admin_only\nx: [[\"role:a\", \"role:b\"], [\"role:c\"]]\n";
        let read = parse(yaml).unwrap();
        let names: Vec<_> = read.iter().map(|entry| (entry.name.as_str(), entry.line)).collect();
        assert_eq!(names, [("create_router:ha", 2), ("get_agent", 4), ("x", 7)]);
        let json = "{\n  \"get_agent\": \"role:auditor\",\n  \"y\": []\n}\n";
        assert_eq!(parse(json).unwrap().len(), 2);
        assert!(parse("# nothing but comments\n").unwrap().is_empty());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn a_fault_is_told_with_its_line() {
        let fault = |text: &str| parse(text).unwrap_err();
        assert_eq!(fault("a: role:x\nb: \"role:x and\"\n").0, 2);
        assert!(fault("b: \"(role:x\"\n").1.contains("parentheses"));
        assert!(fault("b: \"http://example/check\"\n").1.contains("not supported"));
        assert!(fault("b: \"project:%(x)s\"\n").1.contains("'project'"));
        assert!(fault("b: nonsense\n").1.contains("kind:value"));
        assert!(fault("- a\n- b\n").1.contains("mapping"));
        assert_eq!(fault("a: role:x\nb: {c: d}\n"), (2, "rule 'b': a text or a list of lists is wanted".to_owned()));
        assert!(parse("a: \"unclosed\nb: c").is_err());
    }
}
