//! Everything that is PostgreSQL's own: connecting, sessions, types, error codes.
//!
//! A connection is driven by the thread that uses it, on a small runtime of its own: a statement costs one
//! exchange with the database and no change of threads. Between uses nothing drives it, so whatever
//! happened meanwhile (a restart of the database) is noticed at the next use.
//!
//! Writers wait for each other, so what counts is how long one of them takes, and that is how often it waits for the
//! database ([`Connection::exchange`]). So a statement is sent when somebody asks what came of it, together with all
//! those before it that nobody has asked about: the beginning of the transaction with its first question, what it
//! writes with the next question or the COMMIT. The database works on them in their order, and what is wrong with
//! one is told to whoever asks next; nobody is told of success before the COMMIT's.
//!
//! Writers take turns over all servers: a write transaction begins by locking the one row of `revision`.
//! Reasons: rules that are checked before a write hold until its commit without a constraint for each (as
//! with SQLite, whose writers take turns too, and with which the same code runs); revisions become visible
//! in their order, so that a follower never misses one; and nothing has to be repeated because of another's
//! write. Constraints remain the last word, should anybody else write. READ COMMITTED suffices below that
//! lock: every statement sees what was committed before the turn began. Readers take no lock and see one
//! state throughout (REPEATABLE READ).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::str::FromStr as _;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Socket, Statement};

use super::dialect::postgres_statement;
use super::postgres_tls::{Connector, Stream, Wishes};
use super::value::{Row, Value};
use super::{Cause, Outage, StoreError};

/// How long reaching the database may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long the database may take for one statement, the turn to write included.
const STATEMENT_PATIENCE: Duration = Duration::from_secs(10);
/// Statements that a connection keeps prepared; with more it begins anew.
const STATEMENT_CACHE: usize = 512;
/// What of the database's words about a lost connection goes on longest: the network to it vanished.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Limits of every session. The database gives up a little before we do, and says why; and a server that
/// froze in the middle of a write does not keep the others from writing for longer than the last.
const SESSION: &str = "SET statement_timeout = '9s'; SET lock_timeout = '8s'; \
                       SET idle_in_transaction_session_timeout = '15s'; SET client_min_messages = warning";

/// How the database is reached.
#[derive(Clone)]
pub(super) struct Config {
    driver: tokio_postgres::Config,
    tls: Connector,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

impl Config {
    /// Reaches it.
    pub(super) async fn connect(
        &self,
    ) -> Result<(Client, tokio_postgres::Connection<Socket, Stream>), tokio_postgres::Error> {
        self.driver.connect(self.tls.clone()).await
    }
}

/// Reads `postgresql://user:password@host/database` and its relatives.
///
/// # Errors
///
/// What is wrong with the URL, without its words.
pub(super) fn parse_url(url: &str) -> Result<Config, StoreError> {
    let unsuitable = |why: String| StoreError::Unsuitable(format!("the database's URL cannot be used: {why}"));
    // SQLAlchemy names its driver behind the scheme.
    let rest = url.split_once("://").map(|(_, rest)| rest).unwrap_or_default();
    let (rest, wishes) = Wishes::take(rest);
    let mut driver = tokio_postgres::Config::from_str(&format!("postgresql://{rest}"))
        .map_err(|error| unsuitable(error.source().map_or_else(|| "it is no URL".to_owned(), ToString::to_string)))?;
    if driver.get_hosts().is_empty() {
        return Err(unsuitable("it names no host".to_owned()));
    }
    let (mode, tls) = wishes.prepare().map_err(unsuitable)?;
    driver.ssl_mode(mode);
    if driver.get_connect_timeout().is_none() {
        driver.connect_timeout(CONNECT_PATIENCE);
    }
    driver.tcp_user_timeout(STATEMENT_PATIENCE).keepalives_idle(KEEPALIVE).keepalives_interval(KEEPALIVE);
    driver.keepalives_retries(2).application_name("evergate-server");
    Ok(Config { driver, tls })
}

/// Statements that wait for a question, at most.
const UNSENT: usize = 64;
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
const TAKE_TURN: &str = "SELECT revision FROM revision FOR UPDATE";

type Answer = Result<Vec<tokio_postgres::Row>, tokio_postgres::Error>;

/// A statement that is sent with a later one.
struct Unsent {
    question: Option<Question>,
    state: Progress,
}

enum Progress {
    /// It is sent when it is polled first.
    Asked(Pin<Box<dyn Future<Output = Answer> + Send>>),
    Answered(Answer),
}

/// What was asked and not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question(u64);

/// A connection.
pub(super) struct Connection {
    client: Arc<Client>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    statements: RefCell<HashMap<String, Statement>>,
    unsent: RefCell<Vec<Unsent>>,
    /// Answers to questions that were not read yet.
    answers: RefCell<BTreeMap<Question, Vec<tokio_postgres::Row>>>,
    questions: Cell<u64>,
    /// How often the transaction waited for the database.
    exchanges: Cell<usize>,
    /// Asks for the revision before this turn.
    turn: Cell<Option<Question>>,
    in_transaction: Cell<bool>,
    /// A statement of the transaction failed. The database would answer a COMMIT with success, and roll back.
    failed: Cell<bool>,
    broken: Cell<bool>,
}

impl Connection {
    pub(super) fn open(config: &Config) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| StoreError::Database(error.into()))?;
        let client = runtime.block_on(async {
            let connected = tokio::time::timeout(STATEMENT_PATIENCE, config.connect()).await;
            let (client, connection) = connected.map_err(|late| StoreError::unavailable(Outage::Slow, late))??;
            tokio::spawn(connection);
            Ok::<_, StoreError>(client)
        })?;
        let connection = Self {
            client: Arc::new(client),
            runtime: Some(runtime),
            statements: RefCell::default(),
            unsent: RefCell::default(),
            answers: RefCell::default(),
            questions: Cell::new(0),
            exchanges: Cell::new(0),
            turn: Cell::new(None),
            in_transaction: Cell::new(false),
            failed: Cell::new(false),
            broken: Cell::new(false),
        };
        connection.execute_batch(SESSION)?;
        Ok(connection)
    }

    /// Tells whether it may be used again.
    pub(super) fn is_usable(&self) -> bool {
        !(self.broken.get() || self.in_transaction.get() || self.client.is_closed())
    }

    /// Starts a transaction that waits for the turn to write before anything else.
    pub(super) fn begin_write(&self) -> Result<(), StoreError> {
        self.begin();
        self.put_off(None, BEGIN, &[])?;
        self.turn.set(Some(self.ask(TAKE_TURN, &[])?));
        Ok(())
    }

    /// Starts a transaction that sees one state throughout.
    pub(super) fn begin_read(&self) -> Result<(), StoreError> {
        self.begin();
        self.execute_batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    }

    fn begin(&self) {
        self.in_transaction.set(true);
        self.failed.set(false);
        self.exchanges.set(0);
    }

    /// The newest revision, which is nobody else's to change during the turn.
    pub(super) fn revision_of_turn(&self) -> Result<i64, StoreError> {
        let turn = self.turn.take().ok_or_else(|| StoreError::Database("there is no turn to write".into()))?;
        let mut revision = None;
        self.answer(turn, &mut |row| {
            revision = Some(row.int(0)?);
            Ok(false)
        })?;
        revision.ok_or_else(|| StoreError::Unsuitable("it has no revision".to_owned()))
    }

    /// How often the transaction waited for the database so far.
    pub(super) fn exchanges(&self) -> usize {
        self.exchanges.get()
    }

    pub(super) fn commit(&self) -> Result<(), StoreError> {
        if self.failed.get() {
            return Err(StoreError::Database("a statement of the transaction had failed".into()));
        }
        // With the COMMIT goes what has begun for sure: of a connection that was lost before, no doubt remains.
        if self.exchanges.get() == 0 {
            self.exchange(async { Ok(()) })?;
        }
        if let Err(error) = self.execute_batch("COMMIT") {
            // Whatever the database said itself it said instead of committing.
            let is_unknown = self.broken.get() && error.outage().is_some();
            return Err(if is_unknown { StoreError::unavailable(Outage::Uncertain, error) } else { error });
        }
        self.end();
        Ok(())
    }

    /// Ends a transaction that was not committed.
    pub(super) fn roll_back(&self) -> Result<(), StoreError> {
        self.unsent.borrow_mut().clear();
        if self.in_transaction.get() && !self.broken.get() {
            if self.exchanges.get() > 0 {
                self.execute_batch("ROLLBACK")?;
            }
            self.end();
        }
        Ok(())
    }

    fn end(&self) {
        self.in_transaction.set(false);
        self.answers.borrow_mut().clear();
        self.turn.set(None);
    }

    pub(super) fn execute_batch(&self, sql: &str) -> Result<(), StoreError> {
        self.exchange(self.client.batch_execute(sql))
    }

    pub(super) fn execute(&self, sql: &str, params: &[Value]) -> Result<usize, StoreError> {
        let params = references(params)?;
        let changed = self.exchange(async { self.client.execute(&self.statement(sql).await?, &params).await })?;
        Ok(usize::try_from(changed).unwrap_or(usize::MAX))
    }

    /// As [`Connection::execute`], where nobody wants to know how many rows it changed: it is sent with the next
    /// statement.
    pub(super) fn run(&self, sql: &str, params: &[Value]) -> Result<(), StoreError> {
        self.put_off(None, sql, params)
    }

    pub(super) fn query(
        &self,
        sql: &str,
        params: &[Value],
        read: &mut dyn FnMut(&Row<'_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let params = references(params)?;
        let rows = self.exchange(async { self.client.query(&self.statement(sql).await?, &params).await })?;
        read_rows(&rows, read)
    }

    /// Asks what is read by [`Connection::answer`]: it is sent with the next statement.
    pub(super) fn ask(&self, sql: &str, params: &[Value]) -> Result<Question, StoreError> {
        let question = Question(self.questions.get());
        self.questions.set(question.0 + 1);
        self.put_off(Some(question), sql, params)?;
        Ok(question)
    }

    /// Reads what was asked.
    pub(super) fn answer(
        &self,
        question: Question,
        read: &mut dyn FnMut(&Row<'_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        if !self.answers.borrow().contains_key(&question) {
            self.exchange(async { Ok(()) })?;
        }
        let rows = self.answers.borrow_mut().remove(&question);
        read_rows(&rows.ok_or_else(|| StoreError::Database("nobody asked that".into()))?, read)
    }

    fn put_off(&self, question: Option<Question>, sql: &str, params: &[Value]) -> Result<(), StoreError> {
        references(params)?;
        let known = self.statements.borrow().get(sql).cloned();
        let statement = match known {
            Some(statement) => statement,
            None => self.block_on(self.statement(sql))?,
        };
        if self.unsent.borrow().len() >= UNSENT {
            self.exchange(async { Ok(()) })?;
        }
        let (client, params) = (Arc::clone(&self.client), params.to_vec());
        let work = Box::pin(async move {
            let params: Vec<_> = params.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
            client.query(&statement, &params).await
        });
        self.unsent.borrow_mut().push(Unsent { question, state: Progress::Asked(work) });
        Ok(())
    }

    async fn statement(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.borrow().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&postgres_statement(sql)).await?;
        let mut statements = self.statements.borrow_mut();
        if statements.len() >= STATEMENT_CACHE {
            statements.clear();
        }
        statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Sends all that was put off, and then this; waits for what comes of it.
    fn exchange<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, StoreError> {
        self.exchanges.set(self.exchanges.get() + 1);
        let (value, answers) = self.block_on(all(self.unsent.take(), work))?;
        self.answers.borrow_mut().extend(answers);
        Ok(value)
    }

    fn block_on<T>(&self, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, StoreError> {
        let runtime = self.runtime.as_ref().expect("the runtime is taken out by drop alone");
        let result = runtime.block_on(async { tokio::time::timeout(STATEMENT_PATIENCE, work).await });
        let error = match result {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => StoreError::from(error),
            Err(late) => {
                self.broken.set(true);
                StoreError::unavailable(Outage::Slow, late)
            }
        };
        self.failed.set(true);
        if self.client.is_closed() || error.outage() == Some(Outage::Gone) {
            self.broken.set(true);
        }
        Err(error)
    }
}

/// Sends statements one behind the other without waiting in between; of those that fail, the first tells why.
async fn all<T>(
    mut before: Vec<Unsent>,
    last: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<(T, Vec<(Question, Vec<tokio_postgres::Row>)>), tokio_postgres::Error> {
    let mut last = pin!(last);
    let mut early = None;
    // The driver sends what is polled, when it is polled first.
    poll_fn(|cx| {
        for Unsent { state, .. } in &mut before {
            if let Progress::Asked(work) = state
                && let Poll::Ready(answer) = work.as_mut().poll(cx)
            {
                *state = Progress::Answered(answer);
            }
        }
        if let Poll::Ready(value) = last.as_mut().poll(cx) {
            early = Some(value);
        }
        Poll::Ready(())
    })
    .await;
    let mut answers = Vec::new();
    for Unsent { question, state } in before {
        let rows = match state {
            Progress::Asked(work) => work.await?,
            Progress::Answered(answer) => answer?,
        };
        answers.extend(question.map(|question| (question, rows)));
    }
    let value = match early {
        Some(value) => value?,
        None => last.await?,
    };
    Ok((value, answers))
}

fn read_rows(
    rows: &[tokio_postgres::Row],
    read: &mut dyn FnMut(&Row<'_>) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    for row in rows {
        if !read(&Row::Postgres(row))? {
            break;
        }
    }
    Ok(())
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Not by its own drop, which must not happen on a thread that serves connections.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn references(params: &[Value]) -> Result<Vec<&(dyn ToSql + Sync)>, StoreError> {
    // PostgreSQL's texts have no such character.
    let is_unstorable = |value: &Value| matches!(value, Value::Text(text) if text.contains('\0'));
    if params.iter().any(is_unstorable) {
        return Err(StoreError::Unstorable);
    }
    Ok(params.iter().map(|value| value as &(dyn ToSql + Sync)).collect())
}

impl From<tokio_postgres::Error> for StoreError {
    /// Tells apart what callers act on: broken constraints, lost races, and a database that cannot be used.
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(said) = error.as_db_error() else {
            // An error of the driver's own: the connection failed, unless a value did not fit.
            let of_connection = error.is_closed() || is_io(&error);
            return if is_untrusted(&error) {
                Self::unavailable(Outage::Untrusted, chain(&error))
            } else if of_connection {
                Self::unavailable(Outage::Gone, chain(&error))
            } else {
                Self::Database(chain(&error))
            };
        };
        let code = said.code();
        if code.code().starts_with("23") {
            return Self::Constraint { rule: said.message().to_owned() };
        }
        if [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code) {
            return Self::Contended(chain(&error));
        }
        let outage = match (code.code(), &code.code()[..2]) {
            ("53300", _) => Outage::Crowded,
            ("53100", _) => Outage::Full,
            (_, "53") => Outage::Exhausted,
            ("25006", _) => Outage::ReadOnly,
            // Out of time: for a lock, a statement, or for us to go on.
            ("55P03" | "57014" | "25P03", _) => Outage::Slow,
            (_, "57" | "08") => Outage::Gone,
            (_, "28" | "3D") | ("42501", _) => Outage::Refused,
            (_, "58") => Outage::BrokenDisk,
            ("XX001" | "XX002", _) => Outage::Damaged,
            _ => return Self::Database(chain(&error)),
        };
        Self::unavailable(outage, chain(&error))
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    causes(error).any(|cause| cause.is::<std::io::Error>())
}

/// The database's certificate is not one that the URL asks for.
fn is_untrusted(error: &tokio_postgres::Error) -> bool {
    let of_tls = |cause: &(dyn std::error::Error + 'static)| {
        let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(matches!(inner, rustls::Error::InvalidCertificate(_)))
    };
    causes(error).any(|cause| of_tls(cause) == Some(true))
}

fn causes(error: &tokio_postgres::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let mut next = Some(error as &(dyn std::error::Error + 'static));
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The whole chain in one sentence, for logs: the driver's own words say little.
fn chain(error: &tokio_postgres::Error) -> Cause {
    Cause::from(causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

impl ToSql for Value {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Cause> {
        match self {
            Self::Null => return Ok(IsNull::Yes),
            Self::Int(n) if *ty == Type::INT8 => out.put_i64(*n),
            Self::Int(n) if *ty == Type::INT4 => out.put_i32(i32::try_from(*n)?),
            Self::Int(n) if *ty == Type::BOOL => out.put_u8(u8::from(*n != 0)),
            Self::Text(text) if is_text(ty) => out.put_slice(text.as_bytes()),
            Self::Int(_) | Self::Text(_) => return Err(format!("a value does not fit into type {ty}").into()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn is_text(ty: &Type) -> bool {
    [Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME, Type::UNKNOWN].contains(ty)
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Cause> {
        Ok(match *ty {
            Type::INT8 => Self::Int(i64::from_be_bytes(raw.try_into()?)),
            Type::INT4 => Self::Int(i32::from_be_bytes(raw.try_into()?).into()),
            Type::INT2 => Self::Int(i16::from_be_bytes(raw.try_into()?).into()),
            Type::BOOL => Self::Int(i64::from(raw != [0])),
            // What the sum of whole numbers is.
            Type::NUMERIC => Self::Int(whole_number(raw).ok_or("a number is not whole, or too large")?),
            _ => Self::Text(std::str::from_utf8(raw)?.to_owned()),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, Cause> {
        Ok(Self::Null)
    }

    fn accepts(ty: &Type) -> bool {
        is_text(ty) || [Type::INT8, Type::INT4, Type::INT2, Type::BOOL, Type::NUMERIC, Type::JSON].contains(ty)
    }
}

/// Reads PostgreSQL's binary NUMERIC: counts of digits, weight, sign and scale, then digits of base 10,000.
fn whole_number(raw: &[u8]) -> Option<i64> {
    let field = |n: usize| Some(i16::from_be_bytes(raw.get(2 * n..2 * n + 2)?.try_into().ok()?));
    let (digits, weight, sign) = (field(0)?, field(1)?, field(2)?);
    let mut number: i64 = 0;
    for position in 0..=weight {
        let digit = if position < digits { field(4 + usize::try_from(position).ok()?)? } else { 0 };
        number = number.checked_mul(10_000)?.checked_add(digit.into())?;
    }
    let fraction = digits > weight.saturating_add(1);
    match sign {
        _ if fraction => None,
        0 => Some(number),
        0x4000 => number.checked_neg(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_sqlalchemy_writes_them_and_never_repeated() {
        let config = parse_url("postgresql+psycopg2://neutron:s3cret@db.example:5433/neutron").unwrap().driver;
        assert_eq!((config.get_user(), config.get_dbname()), (Some("neutron"), Some("neutron")));
        assert_eq!(config.get_ports(), [5433]);
        for bad in [
            "postgresql://neutron:s3cret@db:port/x",
            "postgresql:///x?password=s3cret",
            "postgresql://u:s3cret@h/x?sslmode=verify-full",
            "postgresql://u:s3cret@h/x?sslmode=s0metimes",
            "postgresql://u:s3cret@h/x?s3cret=1",
        ] {
            let error = parse_url(bad).unwrap_err().to_string();
            assert!(error.starts_with("the database's URL cannot be used: "), "{error}");
            assert!(bad.ends_with("s3cret=1") || !error.contains("s3cret"), "{error}");
        }
        assert!(parse_url("postgresql://u:p@%2Frun%2Fpostgresql/x").is_ok(), "a directory of a socket");
    }

    #[test]
    fn sums_are_read() {
        // As `SELECT 123456789::numeric`, -10000, 0 and 1.5 are sent.
        assert_eq!(whole_number(&[0, 3, 0, 2, 0, 0, 0, 0, 0, 1, 9, 0x29, 0x1a, 0x85]), Some(1_2345_6789));
        assert_eq!(whole_number(&[0, 1, 0, 1, 0x40, 0, 0, 0, 0, 1]), Some(-10_000));
        assert_eq!(whole_number(&[0, 0, 0, 0, 0, 0, 0, 0]), Some(0));
        assert_eq!(whole_number(&[0, 2, 0, 0, 0, 0, 0, 1, 0, 1, 0x13, 0x88]), None);
    }
}
