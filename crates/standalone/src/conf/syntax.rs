//! Files to statements: words, comments, quotes, blocks and included files.
//!
//! A statement is a line's words, and the block that follows it, if one does. Braces may stand on any line.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How deep files may include each other: more is a circle.
const MAX_INCLUDE_DEPTH: usize = 16;

/// How deep blocks may nest; keepalived's own need four.
const MAX_BLOCK_DEPTH: usize = 32;

/// Where files come from.
pub trait Files {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The names in a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
}

/// The machine's files.
#[derive(Clone, Copy, Debug)]
pub struct RealFiles;

impl Files for RealFiles {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

/// File and line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: Arc<str>,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, Default)]
pub struct Problems(Vec<Problem>);

#[derive(Clone, Debug)]
struct Problem {
    is_error: bool,
    place: Option<Place>,
    text: String,
}

impl Problems {
    /// What is so wrong that the configuration is refused.
    pub fn errors(&self) -> Vec<String> {
        self.select(true)
    }

    /// What is left out.
    pub fn warnings(&self) -> Vec<String> {
        self.select(false)
    }

    fn select(&self, errors: bool) -> Vec<String> {
        self.0.iter().filter(|problem| problem.is_error == errors).map(ToString::to_string).collect()
    }

    pub(super) fn any_error(&self) -> bool {
        self.0.iter().any(|problem| problem.is_error)
    }

    /// `<keyword> <what>`.
    pub(super) fn error(&mut self, at: &Statement, what: impl fmt::Display) {
        self.error_at(&at.place, format!("{} {what}", at.keyword()));
    }

    pub(super) fn warn(&mut self, at: &Statement, what: impl fmt::Display) {
        self.warn_at(&at.place, format!("{} {what}", at.keyword()));
    }

    pub(super) fn error_at(&mut self, place: &Place, text: String) {
        self.0.push(Problem { is_error: true, place: Some(place.clone()), text });
    }

    pub(super) fn warn_at(&mut self, place: &Place, text: String) {
        self.0.push(Problem { is_error: false, place: Some(place.clone()), text });
    }

    pub(super) fn warn_text(&mut self, text: &str) {
        self.0.push(Problem { is_error: false, place: None, text: text.to_owned() });
    }

    fn file_error(&mut self, place: Option<&Place>, text: String) {
        self.0.push(Problem { is_error: true, place: place.cloned(), text });
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.text)
    }
}

/// A line's words, with the block that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Where it begins.
    pub place: Place,
    /// Its words, quotes removed; never empty.
    pub words: Vec<String>,
    /// What is between the braces after it.
    pub block: Option<Vec<Statement>>,
}

impl Statement {
    /// Its first word.
    pub fn keyword(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Its other words.
    pub(super) fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    /// Its one argument.
    pub(super) fn one(&self, problems: &mut Problems) -> Option<&str> {
        match self.arguments() {
            [one] => Some(one),
            [] => {
                problems.error(self, "needs a value");
                None
            }
            [_, more @ ..] => {
                problems.error(self, format!("takes one value; '{}' is too much", more.join(" ")));
                None
            }
        }
    }

    pub(super) fn one_name(&self, problems: &mut Problems) -> Option<String> {
        self.one(problems).map(str::to_owned)
    }

    /// Its one argument, a number from a range.
    pub(super) fn number(&self, range: std::ops::RangeInclusive<i64>, problems: &mut Problems) -> Option<i64> {
        let text = self.one(problems)?;
        match text.parse() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                problems.error(self, format!("must be {} to {}, not '{text}'", range.start(), range.end()));
                None
            }
        }
    }

    /// Its one argument, seconds with or without a fraction.
    pub(super) fn seconds(&self, most: f64, problems: &mut Problems) -> Option<std::time::Duration> {
        let text = self.one(problems)?;
        match text.parse::<f64>() {
            Ok(seconds) if (0.0..=most).contains(&seconds) => Some(std::time::Duration::from_secs_f64(seconds)),
            _ => {
                problems.error(self, format!("must be 0 to {most} seconds, not '{text}'"));
                None
            }
        }
    }

    /// A switch: nothing after it, or one of keepalived's words for yes and no.
    pub(super) fn switch(&self, problems: &mut Problems) -> Option<bool> {
        match self.arguments().iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] | ["on" | "true" | "yes"] => Some(true),
            ["off" | "false" | "no"] => Some(false),
            _ => {
                problems.error(self, "takes nothing, on or off");
                None
            }
        }
    }

    /// Its block; an error if there is none.
    pub(super) fn body(&self, problems: &mut Problems) -> &[Self] {
        match &self.block {
            Some(block) => block,
            None => {
                problems.error(self, "needs a block in braces");
                &[]
            }
        }
    }
}

/// Reads a file and all that it includes.
pub(super) fn read(path: &Path, files: &dyn Files, problems: &mut Problems) -> Vec<Statement> {
    let mut tokens = Vec::new();
    load(path, files, None, 0, &mut tokens, problems);
    Builder { tokens: tokens.into_iter().peekable(), problems }.statements(0)
}

/// A word, a brace or the end of a line.
#[derive(Debug)]
struct Token {
    place: Place,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Word(String),
    Open,
    Close,
    End,
}

fn load(
    path: &Path,
    files: &dyn Files,
    from: Option<&Place>,
    depth: usize,
    tokens: &mut Vec<Token>,
    problems: &mut Problems,
) {
    let text = match files.read(path) {
        Ok(text) => text,
        Err(error) => return problems.file_error(from, format!("cannot read {}: {error}", path.display())),
    };
    let file: Arc<str> = path.display().to_string().into();
    for (number, line) in text.lines().enumerate() {
        let place = Place { file: Arc::clone(&file), line: number + 1 };
        let kinds = match split(line) {
            Ok(kinds) => kinds,
            Err(what) => {
                problems.error_at(&place, what.to_owned());
                continue;
            }
        };
        match kinds.as_slice() {
            [Kind::Word(first), Kind::Word(pattern)] if first == "include" => {
                include(path, pattern, files, &place, depth, tokens, problems);
                continue;
            }
            [Kind::Word(first), ..] if first.starts_with("include") => {
                problems.error_at(&place, format!("{first} is not supported; use include with one pattern"));
                continue;
            }
            [Kind::Word(first), ..] if first.starts_with('$') || first.starts_with('@') || first.starts_with('~') => {
                problems.error_at(&place, format!("'{first}': definitions and conditions are not supported"));
                continue;
            }
            _ => {}
        }
        tokens.extend(kinds.into_iter().chain([Kind::End]).map(|kind| Token { place: place.clone(), kind }));
    }
}

/// Reads every file that a pattern means, in the order of their names. None is not an error, as with keepalived,
/// unless the pattern is a plain name.
fn include(
    path: &Path,
    pattern: &str,
    files: &dyn Files,
    place: &Place,
    depth: usize,
    tokens: &mut Vec<Token>,
    problems: &mut Problems,
) {
    if depth >= MAX_INCLUDE_DEPTH {
        return problems.error_at(place, "files include each other too deeply".to_owned());
    }
    let base = path.parent().unwrap_or(Path::new(""));
    let found = if pattern.contains(['*', '?', '[']) {
        let found = glob(&base.join(pattern), files);
        if found.is_empty() {
            problems.warn_at(place, format!("include {pattern}: no file has such a name"));
        }
        found
    } else {
        vec![base.join(pattern)]
    };
    for file in found {
        load(&file, files, Some(place), depth + 1, tokens, problems);
    }
}

/// The files that a pattern means, component by component.
fn glob(pattern: &Path, files: &dyn Files) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let text = component.as_os_str().to_string_lossy();
        if !text.contains(['*', '?', '[']) {
            found.iter_mut().for_each(|path| path.push(component));
            continue;
        }
        let mut next = Vec::new();
        for folder in found {
            let mut names = files.list(&folder).unwrap_or_default();
            names.retain(|name| {
                // A hidden file is meant by a pattern that says so only.
                (text.starts_with('.') || !name.starts_with('.')) && matches(text.as_bytes(), name.as_bytes())
            });
            names.sort();
            next.extend(names.into_iter().map(|name| folder.join(name)));
        }
        found = next;
    }
    found
}

/// `*`, `?` and `[a-z]`, as the shell has them.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        ([b'?', rest @ ..], [_, name @ ..]) => matches(rest, name),
        ([b'[', rest @ ..], [first, name @ ..]) => match rest.iter().position(|&byte| byte == b']') {
            Some(end) if end > 0 => {
                let negated = matches!(rest[0], b'!' | b'^');
                in_class(&rest[usize::from(negated)..end], *first) != negated && matches(&rest[end + 1..], name)
            }
            Some(_) | None => *first == b'[' && matches(rest, name),
        },
        ([literal, rest @ ..], [first, name @ ..]) => literal == first && matches(rest, name),
        ([], [_, ..]) | ([_, ..], []) => false,
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    match class {
        [from, b'-', to, rest @ ..] => (*from..=*to).contains(&byte) || in_class(rest, byte),
        [one, rest @ ..] => *one == byte || in_class(rest, byte),
        [] => false,
    }
}

/// Splits a line. `!` and `#` begin a comment wherever they stand outside quotes.
fn split(line: &str) -> Result<Vec<Kind>, &'static str> {
    let mut kinds = Vec::new();
    let mut characters = line.chars().peekable();
    while let Some(&next) = characters.peek() {
        match next {
            '!' | '#' => break,
            '{' | '}' => {
                kinds.push(if next == '{' { Kind::Open } else { Kind::Close });
                characters.next();
            }
            '"' | '\'' => {
                characters.next();
                kinds.push(Kind::Word(quoted(&mut characters, next)?));
            }
            _ if next.is_whitespace() => drop(characters.next()),
            _ => {
                let mut word = String::new();
                while let Some(c) = characters.next_if(|c| !c.is_whitespace() && !"!#{}\"".contains(*c)) {
                    word.push(c);
                }
                kinds.push(Kind::Word(word));
            }
        }
    }
    Ok(kinds)
}

fn quoted(characters: &mut std::iter::Peekable<std::str::Chars<'_>>, quote: char) -> Result<String, &'static str> {
    let mut word = String::new();
    while let Some(c) = characters.next() {
        match c {
            c if c == quote => return Ok(word),
            '\\' => match characters.next() {
                Some(c) if c == quote || c == '\\' => word.push(c),
                // What else is escaped is for whoever splits the command.
                Some(c) => word.extend(['\\', c]),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err("a quote is not closed on its line")
}

struct Builder<'a, I: Iterator<Item = Token>> {
    tokens: std::iter::Peekable<I>,
    problems: &'a mut Problems,
}

impl<I: Iterator<Item = Token>> Builder<'_, I> {
    /// Statements up to the brace that closes the block, or the end.
    fn statements(&mut self, depth: usize) -> Vec<Statement> {
        let mut statements: Vec<Statement> = Vec::new();
        while let Some(token) = self.tokens.next() {
            match token.kind {
                Kind::End => {}
                Kind::Close if depth > 0 => return statements,
                Kind::Close => self.problems.error_at(&token.place, "'}' closes nothing".to_owned()),
                Kind::Open => self.open(&token.place, &mut statements, depth),
                Kind::Word(word) => {
                    let mut words = vec![word];
                    while let Some(next) = self.tokens.next_if(|next| matches!(next.kind, Kind::Word(_))) {
                        if let Kind::Word(word) = next.kind {
                            words.push(word);
                        }
                    }
                    statements.push(Statement { place: token.place, words, block: None });
                }
            }
        }
        if depth > 0 {
            self.problems.file_error(None, "a block is not closed at the end of the file".to_owned());
        }
        statements
    }

    fn open(&mut self, place: &Place, statements: &mut [Statement], depth: usize) {
        if depth >= MAX_BLOCK_DEPTH {
            // Everything up to the end is refused with it.
            self.problems.error_at(place, "blocks are nested too deeply".to_owned());
            self.tokens.by_ref().for_each(drop);
            return;
        }
        let block = self.statements(depth + 1);
        match statements.last_mut() {
            Some(statement) if statement.block.is_none() => statement.block = Some(block),
            Some(_) | None => self.problems.error_at(place, "'{' follows nothing that takes a block".to_owned()),
        }
    }
}
