//! One condition in oslo.policy's language: text in, a decision about a caller and an object out.
//!
//! The language is `rule:name`, `role:name`, `kind:value` with `%(attribute)s` in the value,
//! `field:networks:shared=True`, `@`, `!`, `and`, `or`, `not` and parentheses; the older form is a list of lists,
//! the outer one meaning "or" and the inner ones "and". A decision has three values: what depends on an
//! object that is not at hand yet is [`None`], so that one evaluation can serve a whole list.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Facts;
use crate::context::Context;

/// A condition, parsed.
#[derive(Clone, Debug)]
pub(super) enum Check {
    Always,
    Never,
    Not(Box<Check>),
    All(Vec<Check>),
    Some(Vec<Check>),
    Rule(String),
    Role(Text),
    Field(Field),
    Credential { kind: Kind, value: Text },
}

/// What the left side of `kind:value` is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Something that the caller is or has, such as `project_id`.
    Of(String),
    /// A value itself, such as `'public'` or `True`.
    Literal(String),
}

/// A text with attributes of the object in it.
#[derive(Clone, Debug)]
pub(super) struct Text(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Plain(String),
    /// `%(name)s`
    Attribute(String),
}

/// `field:resource:name=value`.
#[derive(Clone, Debug)]
pub(super) struct Field {
    of_network: bool,
    name: String,
    value: FieldValue,
}

#[derive(Clone, Debug)]
enum FieldValue {
    Equal(String),
    Matches(regex_lite::Regex),
}

/// What the caller has that a condition may ask for.
const CREDENTIALS: [&str; 14] = [
    "is_admin",
    "user_id",
    "user",
    "user_name",
    "project_id",
    "tenant_id",
    "tenant",
    "project_name",
    "domain_id",
    "user_domain_id",
    "project_domain_id",
    "roles",
    "service_roles",
    "system_scope",
];

impl Check {
    /// Parses a condition; the error is half a sentence.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let tokens = tokens(text)?;
        if tokens.is_empty() {
            return Ok(Self::Always);
        }
        let mut parser = Parser { tokens, at: 0 };
        let check = parser.any_of()?;
        match parser.next() {
            None => Ok(check),
            Some(token) => Err(format!("{token} is not expected where it stands in '{text}'")),
        }
    }

    /// The rules that it refers to.
    pub(super) fn references(&self, into: &mut BTreeSet<String>) {
        match self {
            Self::Rule(name) => {
                into.insert(name.clone());
            }
            Self::Not(inner) => inner.references(into),
            Self::All(inner) | Self::Some(inner) => inner.iter().for_each(|check| check.references(into)),
            Self::Always | Self::Never | Self::Role(_) | Self::Field(_) | Self::Credential { .. } => {}
        }
    }

    /// Decides; `None` where that depends on an object and there is none.
    pub(super) fn decide<'r>(
        &self,
        ctx: &Context,
        facts: Option<&Facts<'_>>,
        rule: &dyn Fn(&str) -> Option<&'r Self>,
    ) -> Option<bool> {
        match self {
            Self::Always => Some(true),
            Self::Never => Some(false),
            Self::Not(inner) => inner.decide(ctx, facts, rule).map(|yes| !yes),
            Self::All(inner) => all(inner.iter().map(|check| check.decide(ctx, facts, rule))),
            // Some of them: not all are not.
            Self::Some(inner) => {
                all(inner.iter().map(|check| check.decide(ctx, facts, rule).map(|yes| !yes))).map(|no| !no)
            }
            // Loading refuses circles, and warns of names that are not there.
            Self::Rule(name) => rule(name).map_or(Some(false), |check| check.decide(ctx, facts, rule)),
            Self::Role(name) => name
                .filled(facts)
                .map(|name| name.is_some_and(|name| ctx.roles.iter().any(|role| role.eq_ignore_ascii_case(&name)))),
            Self::Field(field) => facts.map(|facts| field.holds(facts)),
            Self::Credential { kind, value } => {
                let wanted = value.filled(facts)?;
                Some(wanted.is_some_and(|wanted| match kind {
                    Kind::Of(name) => ctx.credential_is(name, &wanted),
                    Kind::Literal(literal) => *literal == wanted,
                }))
            }
        }
    }
}

/// Says the older form, a list of lists, in the present one.
pub(super) fn of_lists(any_of: &[Vec<String>]) -> String {
    if any_of.is_empty() {
        return "@".to_owned();
    }
    let all_of = any_of.iter().filter(|list| !list.is_empty()).map(|list| format!("({})", list.join(" and ")));
    let text = all_of.collect::<Vec<_>>().join(" or ");
    // As oslo.policy: an empty inner list says nothing, and nothing said lets nobody pass.
    if text.is_empty() { "!".to_owned() } else { text }
}

/// All hold: one that does not decides, whatever others depend on.
fn all(decisions: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut known = Some(true);
    for decision in decisions {
        match decision {
            Some(false) => return Some(false),
            Some(true) => {}
            None => known = None,
        }
    }
    known
}

impl Text {
    fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, from)) = rest.split_once("%(") {
            let (name, after) = from.split_once(")s").ok_or_else(|| format!("'%({from}' is not closed by ')s'"))?;
            if !before.is_empty() {
                pieces.push(Piece::Plain(before.to_owned()));
            }
            pieces.push(Piece::Attribute(name.to_owned()));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Plain(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    /// Fills in the object's attributes: `None` where there is no object, `Some(None)` where it has no such one.
    #[expect(clippy::option_option, reason = "unknown yet and known to be missing are different answers")]
    fn filled(&self, facts: Option<&Facts<'_>>) -> Option<Option<String>> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Plain(text) => filled.push_str(text),
                Piece::Attribute(name) => match facts?.text(name) {
                    Some(text) => filled.push_str(&text),
                    None => return Some(None),
                },
            }
        }
        Some(Some(filled))
    }
}

impl Field {
    fn parse(text: &str) -> Result<Self, String> {
        let shape = || format!("'field:{text}' is not of the form field:resource:attribute=value");
        let (resource, rest) = text.split_once(':').ok_or_else(shape)?;
        let (name, value) = rest.split_once('=').ok_or_else(shape)?;
        let value = match value.strip_prefix('~') {
            // Python's re.match begins at the beginning.
            Some(pattern) => FieldValue::Matches(
                regex_lite::Regex::new(&format!("^(?:{pattern})"))
                    .map_err(|error| format!("'{pattern}' is no regular expression: {error}"))?,
            ),
            None => FieldValue::Equal(value.to_owned()),
        };
        Ok(Self { of_network: matches!(resource, "network" | "networks"), name: name.to_owned(), value })
    }

    fn holds(&self, facts: &Facts<'_>) -> bool {
        let Some(found) = facts.field(&self.name, self.of_network) else { return false };
        match &self.value {
            FieldValue::Matches(pattern) => found.as_str().is_some_and(|text| pattern.is_match(text)),
            FieldValue::Equal(wanted) => match found.as_bool() {
                Some(yes) => is_true(wanted) == yes,
                None => text_of(&found).is_some_and(|text| text == *wanted),
            },
        }
    }
}

fn is_true(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "on" | "t" | "y")
}

/// A value as Python's `str` shows it; what has no one text matches nothing.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A piece of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    Not,
    Check(String),
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Open => "(",
            Self::Close => ")",
            Self::And => "and",
            Self::Or => "or",
            Self::Not => "not",
            Self::Check(text) => text,
        };
        write!(f, "'{text}'")
    }
}

/// Splits at blanks and parentheses; those of `%(name)s` belong to their word.
fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    for word in text.split_whitespace() {
        let inner = word.trim_start_matches('(');
        tokens.extend(std::iter::repeat_n(Token::Open, word.len() - inner.len()));
        let bare = inner.trim_end_matches(')');
        match bare.to_ascii_lowercase().as_str() {
            "" => {}
            "and" => tokens.push(Token::And),
            "or" => tokens.push(Token::Or),
            "not" => tokens.push(Token::Not),
            _ => tokens.push(Token::Check(bare.to_owned())),
        }
        tokens.extend(std::iter::repeat_n(Token::Close, inner.len() - bare.len()));
    }
    let depth = |token: &Token| tokens.iter().filter(|t| *t == token).count();
    if depth(&Token::Open) != depth(&Token::Close) {
        return Err(format!("the parentheses in '{text}' do not match"));
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned()
    }

    fn takes(&mut self, token: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(token);
        self.at += usize::from(found);
        found
    }

    fn any_of(&mut self) -> Result<Check, String> {
        let mut parts = vec![self.all_of()?];
        while self.takes(&Token::Or) {
            parts.push(self.all_of()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Check::Some(parts) })
    }

    fn all_of(&mut self) -> Result<Check, String> {
        let mut parts = vec![self.one()?];
        while self.takes(&Token::And) {
            parts.push(self.one()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Check::All(parts) })
    }

    fn one(&mut self) -> Result<Check, String> {
        match self.next() {
            Some(Token::Not) => Ok(Check::Not(Box::new(self.one()?))),
            Some(Token::Open) => {
                let inner = self.any_of()?;
                if self.takes(&Token::Close) { Ok(inner) } else { Err("a parenthesis is not closed".to_owned()) }
            }
            Some(Token::Check(text)) => single(&text),
            Some(token @ (Token::Close | Token::And | Token::Or)) => {
                Err(format!("there is no condition before {token}"))
            }
            None => Err("a condition is missing at the end".to_owned()),
        }
    }
}

/// Parses one condition without words between.
fn single(text: &str) -> Result<Check, String> {
    match text {
        "@" => return Ok(Check::Always),
        "!" => return Ok(Check::Never),
        _ => {}
    }
    let (kind, value) = literal_kind(text)
        .or_else(|| text.split_once(':').map(|(kind, value)| (kind.to_owned(), value)))
        .ok_or_else(|| format!("'{text}' is no condition: kind:value is wanted"))?;
    match kind.as_str() {
        "rule" => Ok(Check::Rule(value.to_owned())),
        "role" => Ok(Check::Role(Text::parse(value)?)),
        "field" => Ok(Check::Field(Field::parse(value)?)),
        "http" | "https" => Err(format!("'{text}' asks another server, which is not supported")),
        _ => Ok(Check::Credential { kind: credential(&kind)?, value: Text::parse(value)? }),
    }
}

/// `'it may: hold a colon':value`
fn literal_kind(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (literal, rest) = text[1..].split_once(quote)?;
    Some((format!("'{literal}"), rest.strip_prefix(':')?))
}

fn credential(kind: &str) -> Result<Kind, String> {
    if let Some(literal) = kind.strip_prefix('\'') {
        return Ok(Kind::Literal(literal.to_owned()));
    }
    if matches!(kind, "True" | "False" | "None") || kind.parse::<i64>().is_ok() {
        return Ok(Kind::Literal(kind.to_owned()));
    }
    if CREDENTIALS.contains(&kind) {
        return Ok(Kind::Of(kind.to_owned()));
    }
    Err(format!("'{kind}' is nothing that a caller has; known are {}", CREDENTIALS.join(", ")))
}
