//! Keeps the picture of what all connected hosts need ([`Picture`]), and tells each whose view is another now.
//!
//! One task for all streams: a write is looked at once, however many hosts there are, and hosts that it does not
//! concern do not even wake. Hosts that connect stand in line here, some at a time, so that a thousand of them at
//! once keep neither a write from the others nor the processors from the API.
//!
//! A stream watches its host's newest view and compares it with the one that it sent last. So one that is slow
//! skips what was in between, and needs no queue.
//!
//! While the database cannot be used, views stay as they are, and streams go on. Should something in it not make
//! sense, all streams end rather than tell only a part: hosts go on with what they have, and come back one by one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::error::ApiError;
use crate::hostview::{HostView, Name, Picture};
use crate::options::Options;
use crate::store::{Outage, Store, StoreError, TxError as _};

/// Pause between looks at a database that cannot be used.
const OUTAGE_PAUSE: Duration = Duration::from_millis(500);
/// Hosts that connect are read for so many at a time: writes are looked at in between.
const AT_ONCE: usize = 32;
/// How often what no stream needs any more is forgotten. Hosts that come back before then cost no reading.
const FORGETTING: Duration = Duration::from_secs(60);

/// A host's views, from now on.
#[derive(Debug)]
pub(super) struct Followed {
    /// The first.
    pub(super) view: Arc<HostView>,
    /// The revision up to which it holds.
    pub(super) revision: u64,
    /// The next ones. They end when the store does not make sense any more.
    pub(super) views: watch::Receiver<Arc<HostView>>,
}

/// Why there is nothing to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The database cannot be used for now.
    Outage(Outage),
    /// The log says why.
    Otherwise,
}

/// Where streams ask for their host's views.
#[derive(Debug)]
pub(super) struct Publisher {
    asking: mpsc::UnboundedSender<Asked>,
}

#[derive(Debug)]
struct Asked {
    host: Name,
    answer: oneshot::Sender<Result<Followed, Failed>>,
}

impl Publisher {
    /// Starts the task; it ends with the value.
    pub(super) fn start(store: Arc<Store>, options: Arc<Options>, gather: Duration) -> Self {
        let (asking, asked) = mpsc::unbounded_channel();
        tokio::spawn(run(Published::new(store, options), asked, gather));
        Self { asking }
    }

    /// Follows what a host must know.
    pub(super) async fn follow(&self, host: &str) -> Result<Followed, Failed> {
        let (answer, answered) = oneshot::channel();
        self.asking.send(Asked { host: host.into(), answer }).map_err(|_| Failed::Otherwise)?;
        answered.await.map_err(|_| Failed::Otherwise)?
    }
}

async fn run(mut published: Published, mut asked: mpsc::UnboundedReceiver<Asked>, gather: Duration) {
    let mut revisions = published.store.subscribe();
    let mut forgetting = interval_at(Instant::now() + FORGETTING, FORGETTING);
    forgetting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting = Vec::new();
    loop {
        let mut forget = false;
        tokio::select! {
            count = asked.recv_many(&mut waiting, AT_ONCE) => if count == 0 { return },
            changed = revisions.changed() => match changed {
                // Nobody is to be told: for whoever connects next all is read anew.
                Ok(()) if published.picture.is_empty() => continue,
                // A burst becomes one look.
                Ok(()) => sleep(gather).await,
                Err(_) => return,
            },
            _ = forgetting.tick() => forget = true,
        }
        revisions.mark_unchanged();
        let outage;
        (published, outage) = in_background(published, std::mem::take(&mut waiting), forget).await;
        if outage.is_some() {
            tracing::debug!(outage = outage.map(tracing::field::display), "what hosts must know cannot be read");
            sleep(OUTAGE_PAUSE).await;
            revisions.mark_changed();
        }
    }
}

/// Does a round on a thread that may wait for the database.
async fn in_background(published: Published, waiting: Vec<Asked>, forget: bool) -> (Published, Option<Outage>) {
    let (store, options) = (Arc::clone(&published.store), Arc::clone(&published.options));
    let round = move || {
        let mut published = published;
        if forget {
            published.forget();
        }
        let outage = published.round(waiting);
        (published, outage)
    };
    tokio::task::spawn_blocking(round).await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "failed to read what hosts must know; all streams end");
        (Published::new(store, options), None)
    })
}

/// What was told so far.
struct Published {
    store: Arc<Store>,
    options: Arc<Options>,
    picture: Picture,
    views: HashMap<Name, watch::Sender<Arc<HostView>>>,
}

impl Published {
    fn new(store: Arc<Store>, options: Arc<Options>) -> Self {
        Self { store, options, picture: Picture::default(), views: HashMap::new() }
    }

    /// Looks at what is new, and takes in those who wait. Answers why it could not.
    fn round(&mut self, waiting: Vec<Asked>) -> Option<Outage> {
        let joining: Vec<Name> = waiting.iter().map(|asked| Arc::clone(&asked.host)).collect();
        let error = match self.advance(&joining) {
            Ok(()) => {
                waiting.into_iter().for_each(|asked| self.answer(asked));
                return None;
            }
            Err(error) => error,
        };
        if let Some(outage) = outage(&error) {
            waiting.into_iter().for_each(|asked| drop(asked.answer.send(Err(Failed::Outage(outage)))));
            return Some(outage);
        }
        report(&error);
        if joining.is_empty() || self.advance(&[]).is_err() {
            self.views.clear();
            self.picture = Picture::default();
        }
        // One of them may be the reason.
        for asked in waiting {
            match self.advance(std::slice::from_ref(&asked.host)) {
                Ok(()) => self.answer(asked),
                Err(error) => {
                    report(&error);
                    let failed = outage(&error).map_or(Failed::Otherwise, Failed::Outage);
                    drop(asked.answer.send(Err(failed)));
                }
            }
        }
        None
    }

    fn advance(&mut self, joining: &[Name]) -> Result<(), ApiError> {
        let news = self.store.read(|tx| self.picture.look(tx, &self.options, joining))?;
        for view in self.picture.take(news) {
            match self.views.get(view.host()) {
                Some(views) => drop(views.send_replace(view)),
                None => drop(self.views.insert(Arc::clone(view.host()), watch::channel(view).0)),
            }
        }
        Ok(())
    }

    fn answer(&self, asked: Asked) {
        let followed = self.picture.view(&asked.host).zip(self.views.get(&asked.host)).map(|(view, views)| Followed {
            view: Arc::clone(view),
            revision: self.picture.revision(),
            views: views.subscribe(),
        });
        drop(asked.answer.send(followed.ok_or(Failed::Otherwise)));
    }

    fn forget(&mut self) {
        self.views.retain(|_, views| views.receiver_count() > 0);
        self.picture.retain(|host| self.views.contains_key(host));
    }
}

fn outage(error: &ApiError) -> Option<Outage> {
    error.store_error().and_then(StoreError::outage)
}

fn report(error: &ApiError) {
    let error = error as &dyn std::error::Error;
    tracing::error!(error, "failed to read what hosts must know");
}
