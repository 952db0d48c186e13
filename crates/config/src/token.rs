//! Text in oslo.config's format, taken apart: sections, and the keys in them with their lines.
//!
//! The rules are those of the parser that OpenStack itself uses, because the same files must mean the
//! same here; the recordings under `tests/oslo/` come from it. What surprises people:
//!
//! - a line that begins with a blank continues the value above it, also when it looks like a comment;
//! - `#` and `;` begin a comment at the start of a line only: there are none behind a value;
//! - `=` or `:`, whichever comes first, separates key and value; one pair of quotes around is removed;
//! - a key may be given again, and which one counts is not decided here.
//!
//! Deviation: that parser stops at the first fault; this one goes on, so that all are told at once.

/// A file's content, in order, with what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Sections and assignments in the order of the file.
    pub items: Vec<Token>,
    /// Lines that cannot be read.
    pub faults: Vec<Remark>,
    /// Lines that can be read, but hardly mean what their author thought.
    pub doubts: Vec<Remark>,
}

/// Something that a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// `[name]`: what follows belongs to it.
    Section {
        /// The name as written; case is not folded.
        name: String,
        /// Line number, from 1.
        line: u32,
    },
    /// `key = value`.
    Assignment {
        /// The section that it is in.
        section: String,
        /// The key as written.
        key: String,
        /// The value without surrounding blanks and quotes; continuation lines follow line feeds.
        value: String,
        /// Number of the line with the key, from 1.
        line: u32,
    },
}

/// A sentence about a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Line number, from 1.
    pub line: u32,
    /// What there is to say.
    pub text: String,
}

/// Takes `text` apart.
pub fn tokenize(text: &str) -> Tokens {
    let mut reader = Reader::default();
    // As Python reads text files: a carriage return ends a line, alone or before a line feed.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    for (number, line) in (1..).zip(text.split('\n')) {
        reader.line(line.trim_end(), number);
    }
    reader.flush();
    reader.tokens
}

#[derive(Default)]
struct Reader {
    tokens: Tokens,
    section: Option<String>,
    /// The assignment that the next line may continue.
    open: Option<Open>,
}

struct Open {
    key: String,
    lines: Vec<String>,
    line: u32,
}

impl Reader {
    fn line(&mut self, line: &str, number: u32) {
        if line.is_empty() {
            return self.flush();
        }
        if line.starts_with([' ', '\t']) {
            return self.continuation(line.trim_start(), number);
        }
        self.flush();
        if line.starts_with('[') {
            self.section(line, number);
        } else if !line.starts_with(['#', ';']) {
            self.assignment(line, number);
        }
    }

    fn continuation(&mut self, line: &str, number: u32) {
        let Some(open) = &mut self.open else {
            return self
                .fault(number, "the line begins with a blank, but there is no value above that it could continue");
        };
        open.lines.push(line.to_owned());
        if line.starts_with(['#', ';']) {
            let text = format!("an indented comment is not one: the line becomes part of the value of '{}'", open.key);
            self.tokens.doubts.push(Remark { line: number, text });
        }
    }

    fn section(&mut self, line: &str, number: u32) {
        let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) else {
            return self.fault(number, "a section must end with ']', and nothing may follow it");
        };
        if name.is_empty() {
            return self.fault(number, "a section needs a name");
        }
        self.section = Some(name.to_owned());
        self.tokens.items.push(Token::Section { name: name.to_owned(), line: number });
    }

    fn assignment(&mut self, line: &str, number: u32) {
        let Some((key, value)) = line.split_once(['=', ':']) else {
            return self.fault(number, "the line is neither 'key = value', nor a section, nor a comment");
        };
        let key = key.trim();
        if key.is_empty() {
            return self.fault(number, "there is no key before the '=' or ':'");
        }
        if self.section.is_none() {
            return self.fault(number, "the first line that is not a comment must be a section, such as [DEFAULT]");
        }
        self.open = Some(Open { key: key.to_owned(), lines: vec![unquote(value.trim()).to_owned()], line: number });
    }

    fn flush(&mut self) {
        let (Some(open), Some(section)) = (self.open.take(), &self.section) else { return };
        self.tokens.items.push(Token::Assignment {
            section: section.clone(),
            key: open.key,
            value: open.lines.join("\n"),
            line: open.line,
        });
    }

    fn fault(&mut self, line: u32, text: &str) {
        self.tokens.faults.push(Remark { line, text: text.to_owned() });
    }
}

/// Removes one pair of quotes. A lone quote is its own pair, as in the original.
fn unquote(value: &str) -> &str {
    match value.as_bytes() {
        [b'"'] | [b'\''] => "",
        [b'"', .., b'"'] | [b'\'', .., b'\''] => &value[1..value.len() - 1],
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignments(text: &str) -> Vec<(String, String, u32)> {
        let take = |token| match token {
            Token::Assignment { key, value, line, .. } => Some((key, value, line)),
            Token::Section { .. } => None,
        };
        tokenize(text).items.into_iter().filter_map(take).collect()
    }

    #[test]
    fn an_assignment_is_reported_where_its_key_stands() {
        let found = assignments("[ml2]\n\n# types\ntype_drivers = flat,\n    vxlan\nmechanism_drivers: openvswitch\n");
        assert_eq!(
            found,
            [
                ("type_drivers".to_owned(), "flat,\nvxlan".to_owned(), 4),
                ("mechanism_drivers".to_owned(), "openvswitch".to_owned(), 6)
            ]
        );
    }

    #[test]
    fn reading_goes_on_after_a_fault() {
        let tokens = tokenize("stray = 1\n[a\n[b]\nnonsense\n= 3\n  more\nx = 1\n");
        let lines: Vec<u32> = tokens.faults.iter().map(|f| f.line).collect();
        assert_eq!(lines, [1, 2, 4, 5, 6]);
        assert_eq!(tokens.items.len(), 2);
    }

    #[test]
    fn an_indented_comment_is_part_of_the_value_and_is_doubted() {
        let tokens = tokenize("[a]\nx = 1\n  # two\n");
        assert_eq!(tokens.doubts.iter().map(|d| d.line).collect::<Vec<_>>(), [3]);
        assert_eq!(assignments("[a]\nx = 1\n  # two\n")[0].1, "1\n# two");
    }

    #[test]
    fn lines_end_as_on_any_system() {
        assert_eq!(assignments("[a]\r\nx = 1\r\ny = 2\rz = 3").len(), 3);
    }
}
