//! How the servers beside one PostgreSQL hear of each other's writes.
//!
//! The change log is the truth; this is only the alarm clock. A thread holds a connection of its own that
//! listens. What this server committed it announces (`NOTIFY`), at most every few milliseconds: that is one
//! notification for a burst of writes, and none inside a transaction, where each would hold up every other
//! commit. A look at the newest revision every second is for what was announced to nobody: a server that
//! died after its commit, a connection that was just made.
//!
//! The same connection carries what one server has to say to the others at once or not at all ([`Carrier`]).

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_postgres::AsyncMessage;

use super::postgres::Config;
use super::{Cause, StoreError};

const CHANNEL: &str = "evergate_revision";
const CARRIED: &str = "evergate_carried";
/// What waits to be carried. More is lost.
const MOST_CARRIED: usize = 256;
/// Commits of so long become one announcement.
const GATHER: Duration = Duration::from_millis(2);
/// Pause between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Pause before the next attempt to connect.
const RETRY: Duration = Duration::from_millis(500);
/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes what another server says; must not wait.
pub type Hear = Box<dyn Fn(&str) + Send + Sync>;

/// Carries short texts between the servers beside one database, outside of all transactions. What cannot be carried at
/// once is lost.
#[derive(Clone, Default)]
pub(super) struct Carrier {
    hear: Arc<OnceLock<Hear>>,
    out: Option<mpsc::Sender<String>>,
}

impl Carrier {
    pub(super) fn on_heard(&self, hear: Hear) {
        let _ = self.hear.set(hear);
    }

    pub(super) fn carry(&self, text: String) {
        if let Some(out) = &self.out {
            let _ = out.try_send(text);
        }
    }
}

/// The thread; it ends with the value.
pub(super) struct Follower {
    _stop: oneshot::Sender<()>,
}

impl Follower {
    pub(super) fn start(config: Config, newest: Arc<watch::Sender<u64>>) -> Result<(Self, Carrier), StoreError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (out, mut carried) = mpsc::channel(MOST_CARRIED);
        let carrier = Carrier { hear: Arc::default(), out: Some(out) };
        let hear = Arc::clone(&carrier.hear);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| StoreError::Database(error.into()))?;
        std::thread::Builder::new()
            .name("evergate-follow".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = follow_for_ever(&config, &newest, &hear, &mut carried) => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(|error| StoreError::Database(error.into()))?;
        Ok((Self { _stop: stop }, carrier))
    }
}

async fn follow_for_ever(
    config: &Config,
    newest: &watch::Sender<u64>,
    on_carried: &Arc<OnceLock<Hear>>,
    carried: &mut mpsc::Receiver<String>,
) {
    let mut was_lost = false;
    loop {
        let lost = match follow(config, newest, &mut was_lost, on_carried, carried).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if !was_lost {
            tracing::warn!(error = %lost, "the database's notifications are lost; trying to get them back");
            was_lost = true;
        }
        sleep(RETRY).await;
    }
}

async fn follow(
    config: &Config,
    newest: &watch::Sender<u64>,
    was_lost: &mut bool,
    on_carried: &Arc<OnceLock<Hear>>,
    carried: &mut mpsc::Receiver<String>,
) -> Result<std::convert::Infallible, Cause> {
    let (client, mut connection) = timeout(PATIENCE, config.connect()).await??;
    let (heard, mut hear) = mpsc::unbounded_channel();
    let hear_carried = Arc::clone(on_carried);
    let driven = tokio::spawn(async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                Ok(AsyncMessage::Notification(notification)) if notification.channel() == CARRIED => {
                    if let Some(hear) = hear_carried.get() {
                        hear(notification.payload());
                    }
                }
                Ok(AsyncMessage::Notification(notification)) => {
                    if heard.send(notification.payload().parse::<u64>().ok()).is_err() {
                        return Ok(());
                    }
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    });
    let _abort = AbortOnDrop(driven);
    timeout(PATIENCE, client.batch_execute(&format!("LISTEN {CHANNEL}; LISTEN {CARRIED}"))).await??;
    if std::mem::take(was_lost) {
        tracing::info!("the database's notifications are back");
    }
    // What waited for the connection is of no use any more.
    while carried.try_recv().is_ok() {}
    let mut local = newest.subscribe();
    // What others are known to know.
    let mut announced = 0;
    loop {
        let row = timeout(PATIENCE, client.query_one("SELECT revision FROM revision", &[])).await??;
        let revision = u64::try_from(row.try_get::<_, i64>(0)?)?;
        // The others look by themselves, too: what was not announced in time need not be any more.
        announced = announced.max(raise(newest, revision));
        let look_again = sleep(PERIOD);
        tokio::pin!(look_again);
        loop {
            tokio::select! {
                () = &mut look_again => break,
                revision = hear.recv() => match revision {
                    Some(Some(revision)) => announced = announced.max(raise(newest, revision)),
                    // A payload of somebody else's: look.
                    Some(None) => break,
                    None => return Err("the connection was closed".into()),
                },
                Some(text) = carried.recv() => {
                    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&CARRIED, &text];
                    match timeout(PATIENCE, client.execute("SELECT pg_notify($1, $2)", &params)).await? {
                        // PostgreSQL refuses it (8,000 bytes are too long, or its queue is full): this one is lost, and
                        // not the connection, which brings what matters more.
                        Err(error) if error.as_db_error().is_some() => {
                            tracing::debug!(bytes = text.len(), %error, "what was to be carried is refused, and lost");
                        }
                        carried => {
                            carried?;
                        }
                    }
                }
                _ = local.changed() => {
                    if *local.borrow_and_update() > announced {
                        sleep(GATHER).await;
                        announced = *local.borrow_and_update();
                        let notify = format!("NOTIFY {CHANNEL}, '{announced}'");
                        timeout(PATIENCE, client.batch_execute(&notify)).await??;
                    }
                }
            }
        }
    }
}

/// Makes a revision known within this server, unless a newer one is; answers it.
pub(super) fn raise(newest: &watch::Sender<u64>, revision: u64) -> u64 {
    newest.send_if_modified(|known| {
        let newer = revision > *known;
        *known = revision.max(*known);
        newer
    });
    revision
}

struct AbortOnDrop(tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
