//! How the servers beside one PostgreSQL hear of each other's writes.
//!
//! The change log is the truth; this is only the alarm clock. A thread holds a connection of its own that
//! listens. What this server committed it announces (`NOTIFY`), at most every few milliseconds: that is one
//! notification for a burst of writes, and none inside a transaction, where each would hold up every other
//! commit. A look at the newest revision every second is for what was announced to nobody: a server that
//! died after its commit, a connection that was just made.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Config, NoTls};

use super::{Cause, StoreError};

const CHANNEL: &str = "evergate_revision";
/// Commits of so long become one announcement.
const GATHER: Duration = Duration::from_millis(2);
/// Pause between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Pause before the next attempt to connect.
const RETRY: Duration = Duration::from_millis(500);
/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread; it ends with the value.
pub(super) struct Follower {
    _stop: oneshot::Sender<()>,
}

impl Follower {
    pub(super) fn start(config: Config, newest: Arc<watch::Sender<u64>>) -> Result<Self, StoreError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| StoreError::Database(error.into()))?;
        std::thread::Builder::new()
            .name("evergate-follow".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = follow_for_ever(&config, &newest) => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(|error| StoreError::Database(error.into()))?;
        Ok(Self { _stop: stop })
    }
}

async fn follow_for_ever(config: &Config, newest: &watch::Sender<u64>) {
    let mut was_lost = false;
    loop {
        let lost = match follow(config, newest, &mut was_lost).await {
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
) -> Result<std::convert::Infallible, Cause> {
    let (client, mut connection) = timeout(PATIENCE, config.connect(NoTls)).await??;
    let (heard, mut hear) = mpsc::unbounded_channel();
    let driven = tokio::spawn(async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
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
    timeout(PATIENCE, client.batch_execute(&format!("LISTEN {CHANNEL}"))).await??;
    if std::mem::take(was_lost) {
        tracing::info!("the database's notifications are back");
    }
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
