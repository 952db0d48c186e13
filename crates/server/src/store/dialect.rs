//! What differs between the SQL of the two databases, as functions from text to text.
//!
//! Statements of the server and migration files are written once, for SQLite, and translated here:
//!
//! - parameters are `?1`, `?2`, ... (`$1`, `$2`, ... in PostgreSQL);
//! - in migrations, INTEGER columns become BIGINT, so that a number has one type wherever it is compared,
//!   and TEXT columns get the collation "C", so that both databases sort byte by byte;
//! - lines of a migration between `-- [sqlite]` or `-- [postgresql]` and the next such mark are for that
//!   one database; `-- [both]` ends them.
//!
//! What no translation is made for is not written: no `INSERT OR ...`, `ifnull`, `IS ?1`, `LIKE` that
//! relies on folding case, no number where a truth value belongs, and no column beside an aggregate
//! that is not grouped by.

/// Whose SQL it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// SQLite's.
    Sqlite,
    /// PostgreSQL's.
    Postgres,
}

impl Dialect {
    const fn mark(self) -> &'static str {
        match self {
            Self::Sqlite => "-- [sqlite]",
            Self::Postgres => "-- [postgresql]",
        }
    }
}

/// Translates a statement of the server into PostgreSQL's SQL.
pub(super) fn postgres_statement(sql: &str) -> String {
    let mut translated = String::with_capacity(sql.len());
    for piece in pieces(sql) {
        match piece {
            Piece::Other("?") => translated.push('$'),
            Piece::Other(text) | Piece::Word(text) | Piece::Quoted(text) => translated.push_str(text),
        }
    }
    translated
}

/// Picks and translates what a migration file says to one of the databases.
pub(super) fn migration(file: &str, dialect: Dialect) -> String {
    let mut concerns = true;
    let mut picked = String::with_capacity(file.len());
    for line in file.lines() {
        match line.trim() {
            "-- [both]" => concerns = true,
            mark @ ("-- [sqlite]" | "-- [postgresql]") => concerns = mark == dialect.mark(),
            _ if concerns => {
                picked.push_str(line);
                picked.push('\n');
            }
            _ => {}
        }
    }
    match dialect {
        Dialect::Sqlite => picked,
        Dialect::Postgres => postgres_schema(&picked),
    }
}

fn postgres_schema(sql: &str) -> String {
    let mut translated = String::with_capacity(sql.len() + sql.len() / 4);
    let mut casts = false;
    for piece in pieces(sql) {
        match piece {
            Piece::Word("INTEGER") => translated.push_str("BIGINT"),
            // A collation belongs to a column, not to the type that something is converted to.
            Piece::Word("TEXT") if !casts => translated.push_str("TEXT COLLATE \"C\""),
            Piece::Other(text) | Piece::Word(text) | Piece::Quoted(text) => translated.push_str(text),
        }
        if let Piece::Word(word) = piece {
            casts = word == "AS";
        }
    }
    translated
}

/// A stretch of SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece<'a> {
    /// Letters, digits and underscores.
    Word(&'a str),
    /// A text or name in quotes, or a comment.
    Quoted(&'a str),
    /// One other character.
    Other(&'a str),
}

fn pieces(sql: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_comment = rest.starts_with("--");
        let length = match first {
            // A doubled quote inside ends one stretch and begins the next, which comes to the same.
            '\'' | '"' => rest[1..].find(first).map_or(rest.len(), |end| end + 2),
            '-' if is_comment => rest.find('\n').unwrap_or(rest.len()),
            c if in_word(c) => rest.find(|c| !in_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (text, after) = rest.split_at(length);
        rest = after;
        Some(match first {
            '\'' | '"' => Piece::Quoted(text),
            '-' if is_comment => Piece::Quoted(text),
            c if in_word(c) => Piece::Word(text),
            _ => Piece::Other(text),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_translated_and_texts_are_not() {
        let sql = "SELECT id FROM x WHERE a = ?1 AND b IN (?2, ?10) AND c <> 'why?1' AND d = 'it''s ?'";
        let translated = "SELECT id FROM x WHERE a = $1 AND b IN ($2, $10) AND c <> 'why?1' AND d = 'it''s ?'";
        assert_eq!(postgres_statement(sql), translated);
    }

    #[test]
    fn a_migration_gets_the_types_of_its_database() {
        let file = "-- INTEGER stays in a comment: it's one\nCREATE TABLE t (\n    a TEXT NOT NULL DEFAULT 'TEXT',\n    \
                    n INTEGER\n);\nINSERT INTO t SELECT CAST(1 AS TEXT), n FROM u;\n";
        assert_eq!(migration(file, Dialect::Sqlite), file);
        assert_eq!(
            migration(file, Dialect::Postgres),
            "-- INTEGER stays in a comment: it's one\nCREATE TABLE t (\n    a TEXT COLLATE \"C\" NOT NULL DEFAULT \
             'TEXT',\n    n BIGINT\n);\nINSERT INTO t SELECT CAST(1 AS TEXT), n FROM u;\n"
        );
    }

    #[test]
    fn marked_lines_are_for_one_database() {
        let file = "a;\n-- [sqlite]\nb;\n-- [postgresql]\nc;\n-- [both]\nd;\n";
        assert_eq!(migration(file, Dialect::Sqlite), "a;\nb;\nd;\n");
        assert_eq!(migration(file, Dialect::Postgres), "a;\nc;\nd;\n");
    }
}
