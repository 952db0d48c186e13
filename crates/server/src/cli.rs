//! `evergate server`: from files and flags to a server that answers, and to a clean end.
//!
//! The order of starting is the order in which things can fail with the least left behind: settings,
//! state directory, lock, socket, database, secrets; only then does anything announce itself.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::middleware::{from_fn, from_fn_with_state};
use evergate_config::{Config, Database, Role, ServerSettings, Sources};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::api::{ApiState, api_router};
use crate::base_url::tell_scheme;
use crate::dvr;
use crate::hosts::{self, Hosts};
use crate::identity::{self, Identity};
use crate::keystone::{self, Keystone};
use crate::listener::{Limits as Listening, Patient, Peer};
use crate::membership::{self, Members};
use crate::openapi;
use crate::options::{Limits, Options};
use crate::policy::{self, Watched};
use crate::private_file;
use crate::store::{self, Outage, Store, StoreError};
use crate::tls::{self, Tls};

/// How long requests that are under way may take after the signal to stop.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Pause before the next look at a database that cannot be used.
const DATABASE_RETRY: Duration = Duration::from_secs(1);

/// Serve the Neutron API, identity, placement and the hosts' streams.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// File to read options from, as neutron.conf or ml2_conf.ini; may be repeated, and later files win.
    #[arg(long, value_name = "FILE")]
    pub config_file: Vec<PathBuf>,
    /// Directory whose *.conf files are read after the files, in the order of their names; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub config_dir: Vec<PathBuf>,
    /// Print the whole effective configuration, and where each value comes from, then stop.
    #[arg(long)]
    pub check_config: bool,
    /// Print every rule of the policy that is in force, as a policy file, then stop.
    #[arg(long)]
    pub print_policy: bool,
    /// Copy everything from this SQLite database (sqlite:///path) into the configured PostgreSQL, which must be
    /// empty, then stop. No server may run on either. The target is not an argument because its URL may hold a
    /// password, and arguments are seen by everybody on the machine.
    #[arg(long, value_name = "URL")]
    pub migrate_store: Option<String>,
    /// Write the address that is listened on to this file, as 192.0.2.1:9696, once requests are served.
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
}

/// Where commands beside a server find its options.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConfigFiles {
    /// File to read options from, as the server does; may be repeated.
    #[arg(long, value_name = "FILE", global = true)]
    config_file: Vec<PathBuf>,
    /// Directory whose *.conf files are read after the files; may be repeated.
    #[arg(long, value_name = "DIR", global = true)]
    config_dir: Vec<PathBuf>,
}

impl ConfigFiles {
    /// Reads them.
    pub(crate) fn settings(self) -> anyhow::Result<ServerSettings> {
        let sources = Sources { files: self.config_file, dirs: self.config_dir };
        Ok(ServerSettings::from_config(&Config::load(&sources, Role::Server)?))
    }
}

/// Runs the server until it is told to stop (SIGTERM, SIGINT).
///
/// # Errors
///
/// When the settings are impossible or something that the server needs cannot be had.
pub fn run(args: Args) -> anyhow::Result<()> {
    let sources = Sources { files: args.config_file, dirs: args.config_dir };
    let config = Config::load(&sources, Role::Server)?;
    config.log();
    if args.check_config {
        return print(&config.effective());
    }
    let settings = ServerSettings::from_config(&config);
    if let Some(from) = &args.migrate_store {
        return migrate_store(from, &settings.database);
    }
    let policy = policy::find(&settings.policy_file, &sources).and_then(Watched::open)?;
    if args.print_policy {
        return print(&policy.current().print());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the threads that serve requests")?;
    runtime.block_on(serve(&settings, policy, args.address_file.as_deref()))
}

/// Takes the deployment from a SQLite file to PostgreSQL.
fn migrate_store(from: &str, to: &Database) -> anyhow::Result<()> {
    let Some(Database::Sqlite(path)) = Database::from_url(from) else {
        bail!("a store is migrated from SQLite: give sqlite:/// and the path of its file");
    };
    if let Database::Sqlite(_) = to {
        bail!("a store is migrated to PostgreSQL: give its URL as connection in section [database]");
    }
    // Opening would make it.
    anyhow::ensure!(path.exists(), "there is no database {}", path.display());
    let _lock = lock(&path)?;
    let from = Database::Sqlite(path);
    let rows =
        store::copy(&from, to).with_context(|| format!("failed to migrate {from} to {to}; nothing was copied"))?;
    print(&format!("{rows} rows were copied from {from} to {to}\n"))
}

/// Not print!: a reader that had enough, such as head, is no reason to panic.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

async fn serve(settings: &ServerSettings, policy: Watched, address_file: Option<&Path>) -> anyhow::Result<()> {
    let mut signals = Signals::watch()?;
    make_state_directory(&settings.state_path)?;
    let _lock = match &settings.database {
        Database::Sqlite(path) => Some(lock(path)?),
        // Servers share it.
        Database::Postgres(_) => None,
    };
    // Not before there is a database: nobody shall be let in who would only wait.
    let (store, members, authority) = tokio::select! {
        opened = open_state(settings) => opened?,
        () = signals.told_to_stop() => return Ok(()),
    };
    let listener = listen(&settings.bind_host, settings.bind_port).await?;
    let tls = Arc::new(Tls::new(Arc::clone(&members), &settings.tls, names(settings))?);
    let address = listener.local_addr().context("failed to ask for the address that is listened on")?;

    let (stop, stopping) = watch::channel(false);
    let options = Arc::new(options(settings));
    tokio::spawn(membership::keep_fresh(Arc::clone(&members), stopping.clone()));
    tokio::spawn(tls::keep_fresh(Arc::clone(&tls), stopping.clone()));
    tell_authority(settings, &members)?;
    let hosts =
        Hosts::new(Arc::clone(&store), Arc::clone(&options), members, settings.router_auto_schedule, stopping.clone());
    let policy = Arc::new(policy);
    tokio::spawn(policy::keep_fresh(Arc::clone(&policy), stopping.clone()));
    let api = api_router(ApiState::new(Arc::clone(&store), Arc::clone(&options)).under(policy));
    let app = authority.guarded(api).merge(hosts::routes(Arc::new(hosts))).merge(openapi::routes());
    let app = app.layer(from_fn(tell_scheme)).into_make_service_with_connect_info::<Peer>();

    if let Authority::Embedded(identity) = &authority {
        tokio::spawn(identity::keep_fresh(Arc::clone(identity), stopping.clone()));
    }
    let open_files = open_files();
    announce(settings, address, open_files);
    authority.announce(settings, address)?;
    if let Some(path) = address_file {
        write_address(path, address)?;
    }
    let mut stopped = stopping;
    let limits = Listening::for_open_files(open_files);
    let patient = Patient::new(listener, tls, settings.tls.only, limits).context("failed to listen")?;
    let server = axum::serve(patient, app).with_graceful_shutdown(async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    });
    let mut server = tokio::spawn(async move { server.await });
    tokio::select! {
        () = signals.told_to_stop() => {}
        ended = &mut server => return ended.context("failed to serve")?.context("failed to serve"),
    }
    tracing::info!("server stops");
    stop.send_replace(true);
    // Whoever is not done by then is cut off: clients try again, and hosts come back.
    match tokio::time::timeout(LAST_REQUESTS, server).await {
        Ok(Ok(result)) => result.context("failed to serve"),
        Ok(Err(panic)) => Err(panic).context("failed to serve"),
        Err(_) => {
            tracing::warn!(seconds = LAST_REQUESTS.as_secs(), "some requests were cut off");
            Ok(())
        }
    }
}

/// Who says who callers are.
enum Authority {
    Embedded(Arc<Identity>),
    Keystone(Arc<Keystone>),
}

impl Authority {
    fn of(settings: &ServerSettings, store: &Arc<Store>) -> anyhow::Result<Self> {
        Ok(match &settings.keystone {
            Some(keystone) => Self::Keystone(Arc::new(Keystone::new(keystone.clone())?)),
            None => Self::Embedded(Arc::new(Identity::open(settings, Arc::clone(store))?)),
        })
    }

    /// Puts it before the API, and what it serves itself beside it.
    fn guarded(&self, api: axum::Router) -> axum::Router {
        match self {
            Self::Embedded(identity) => api
                .layer(from_fn_with_state(Arc::clone(identity), identity::guard))
                .merge(identity::routes(Arc::clone(identity))),
            Self::Keystone(keystone) => api.layer(from_fn_with_state(Arc::clone(keystone), keystone::guard)),
        }
    }

    fn announce(&self, settings: &ServerSettings, address: SocketAddr) -> anyhow::Result<()> {
        let file = settings.clouds_file();
        match (self, &settings.keystone) {
            (Self::Embedded(identity), _)
                if identity.announce(&local_url(settings, address), authority_of_clients(settings).as_deref())? =>
            {
                tracing::info!(
                    "the stock client finds it with OS_CLIENT_CONFIG_FILE={} and OS_CLOUD=evergate-admin or evergate-demo",
                    file.display()
                )
            }
            (Self::Embedded(_), _) => {
                tracing::info!(file = %file.display(), "there is no such file: clients must have their own passwords");
            }
            (Self::Keystone(_), keystone) => {
                let url = keystone.as_ref().map(|keystone| keystone.auth_url.as_str());
                tracing::info!(url, "callers are asked of Keystone, and the embedded identity is not served");
            }
        }
        Ok(())
    }
}

/// The signals that mean stop, watched from the beginning so that none kills us halfway.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("failed to watch for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("failed to watch for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    async fn told_to_stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn make_state_directory(path: &Path) -> anyhow::Result<()> {
    let hint = "state_path in section [DEFAULT] chooses another";
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .with_context(|| format!("failed to make state directory {} ({hint})", path.display()))?;
    // Asking about permissions would not tell of a read-only file system: try.
    let probe = path.join(format!(".write-test.{}", std::process::id()));
    File::create(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .with_context(|| format!("state directory {} is not writable ({hint})", path.display()))
}

/// Makes sure that no other server uses the database, for as long as the file lives.
fn lock(database: &Path) -> anyhow::Result<File> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("failed to open lock file {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let owner = owner.trim();
            let owner = if owner.is_empty() { String::new() } else { format!(" (process {owner})") };
            bail!(
                "another evergate server{owner} uses database {}: stop it, or set state_path or connection in \
                 section [database] to another place",
                database.display()
            );
        }
        Err(std::fs::TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("failed to lock {}", path.display()));
        }
    }
    // For the message above; the lock itself does not depend on it.
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id())).ok();
    Ok(file)
}

/// What outlives a restart: the store, and the secrets beside it.
type State = (Arc<Store>, Arc<Members>, Authority);

/// Opens the state; waits for a database that is away or takes no writes, as long as that may last.
async fn open_state(settings: &ServerSettings) -> anyhow::Result<State> {
    let mut told = None;
    loop {
        let own = settings.clone();
        // The store blocks.
        let opened = tokio::task::spawn_blocking(move || try_open_state(&own)).await;
        let error = match opened.context("failed to open the store")? {
            Ok(state) => return Ok(state),
            Err(error) => error,
        };
        let found = error.chain().find_map(|cause| cause.downcast_ref::<StoreError>()?.outage());
        // What an operator must set right is no outage, though it looks like one later.
        let Some(outage) =
            found.filter(|outage| !matches!(outage, Outage::Refused | Outage::Untrusted | Outage::Damaged))
        else {
            return Err(error);
        };
        if told.replace(outage) != Some(outage) {
            tracing::error!(database = %settings.database, reason = %outage, cause = format!("{error:#}"), "waiting for the database");
        }
        tokio::time::sleep(DATABASE_RETRY).await;
    }
}

fn try_open_state(settings: &ServerSettings) -> anyhow::Result<State> {
    let store = Arc::new(open_store(&settings.database)?);
    let members = Arc::new(Members::open(Arc::clone(&store))?);
    let authority = Authority::of(settings, &store)?;
    let options = options(settings);
    let settled = store.write(|tx| dvr::settle_all(tx, &options));
    settled.context("failed to bring distributed routers up to date")?;
    Ok((store, members, authority))
}

pub(crate) fn open_store(database: &Database) -> anyhow::Result<Store> {
    if let Database::Sqlite(path) = database {
        // It holds secrets. SQLite gives its other files the mode of this one.
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("failed to open database {database}"))?;
    }
    Store::connect(database).with_context(|| format!("failed to use database {database}"))
}

async fn listen(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    // Neutron's files may have it empty for every address.
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    match TcpListener::bind((host.trim_matches(['[', ']']), port)).await {
        Ok(listener) => Ok(listener),
        Err(error) => {
            let hints = [
                (io::ErrorKind::AddrInUse, ": something else listens there; bind_port chooses another port"),
                (io::ErrorKind::AddrNotAvailable, ": this machine has no such address; see bind_host"),
                (io::ErrorKind::PermissionDenied, ": ports below 1024 need privileges; bind_port chooses another"),
            ];
            let hint = hints.into_iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, hint)| hint);
            Err(error).with_context(|| format!("failed to listen on {host} port {port}{hint}"))
        }
    }
}

/// Names that certificates of our own are good for.
fn names(settings: &ServerSettings) -> Vec<String> {
    let public = settings.public_url.as_deref().and_then(|url| url.parse::<ureq::http::Uri>().ok());
    let public = public.as_ref().and_then(ureq::http::Uri::host);
    let given = [Some(settings.host.as_str()), Some("localhost"), Some(settings.bind_host.as_str()), public];
    let all = given.into_iter().flatten().chain(settings.tls.names.iter().map(String::as_str));
    let is_any = |name: &str| name.is_empty() || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    all.map(|name| name.trim_matches(['[', ']']).to_owned()).filter(|name| !is_any(name)).collect()
}

/// The file by which clients know this server, where it is not one of the operator's own.
fn authority_of_clients(settings: &ServerSettings) -> Option<PathBuf> {
    let is_ours = settings.tls.only && settings.tls.cert_file.is_none();
    is_ours.then(|| settings.authority_file())
}

/// Writes the authority's certificate to where clients find it. It is no secret.
fn tell_authority(settings: &ServerSettings, members: &Members) -> anyhow::Result<()> {
    let (path, pem) = (settings.authority_file(), members.authority().pem());
    tracing::info!(fingerprint = members.authority().fingerprint(), file = %path.display(), "the cluster's authority");
    if std::fs::read_to_string(&path).is_ok_and(|old| old == pem) {
        return Ok(());
    }
    private_file::publish(&path, pem).with_context(|| format!("failed to write {}", path.display()))
}

/// The URL that a client on this machine reaches the server at.
fn local_url(settings: &ServerSettings, address: SocketAddr) -> String {
    let scheme = if settings.tls.only { "https" } else { "http" };
    let ip = match address.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        std::net::IpAddr::V4(ip) => ip.to_string(),
    };
    format!("{scheme}://{ip}:{}", address.port())
}

fn announce(settings: &ServerSettings, address: SocketAddr, open_files: u64) {
    let url = settings.public_url.clone().unwrap_or_else(|| local_url(settings, address));
    tracing::info!(%address, url, database = %settings.database, open_files, "server listens");
}

/// Tells how many files this process may open, connections included.
fn open_files() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    match soft {
        Some("unlimited") => u64::MAX,
        // Where it is not told: the usual limit.
        soft => soft.and_then(|soft| soft.parse().ok()).unwrap_or(1024),
    }
}

/// Writes the file whole, so that whoever waits for it never reads half of it.
fn write_address(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&beside, format!("{address}\n"))
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("failed to write address file {}", path.display()))
}

/// The API's settings, out of the daemon's.
fn options(settings: &ServerSettings) -> Options {
    let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    Options {
        public_url: settings.public_url.clone(),
        api_rate_limit: settings.api_rate_limit,
        ha_vrrp_priority: settings.ha_vrrp_priority,
        l3_ha: settings.l3_ha,
        enable_dvr: settings.enable_dvr,
        router_distributed: settings.router_distributed,
        external_address_per_host: settings.external_address_per_host,
        max_l3_agents_per_router: settings.max_l3_agents_per_router,
        l3_ha_net_cidr: settings.l3_ha_net_cidr,
        l3_ha_network_type: settings.l3_ha_network_type.clone().unwrap_or_default(),
        l3_ha_network_physical_name: settings.l3_ha_network_physical_name.clone().unwrap_or_default(),
        agent_down_time: u32::try_from(settings.agent_down_time.as_secs()).unwrap_or(u32::MAX),
        global_physnet_mtu: settings.global_physnet_mtu,
        path_mtu: settings.path_mtu,
        physical_network_mtus: settings.physical_network_mtus.clone(),
        type_drivers: settings.type_drivers.clone(),
        tenant_network_types: settings.project_network_types.clone(),
        flat_networks: match &settings.flat_networks {
            evergate_config::settings::FlatNetworks::Any => vec!["*".to_owned()],
            evergate_config::settings::FlatNetworks::Named(names) => names.clone(),
        },
        vni_ranges: settings.vni_ranges.iter().map(|range| (*range.start(), *range.end())).collect(),
        enable_snat_by_default: settings.enable_snat_by_default,
        base_mac: settings.base_mac,
        max_allowed_address_pair: count(settings.max_allowed_address_pair),
        max_dns_nameservers: count(settings.max_dns_nameservers),
        max_subnet_host_routes: count(settings.max_subnet_host_routes),
        max_fixed_ips_per_port: count(settings.max_fixed_ips_per_port),
        pagination_max_limit: settings.pagination_max_limit.map(count),
        default_availability_zones: settings.default_availability_zones.clone(),
        enable_new_agents: settings.enable_new_agents,
        limits: Limits {
            network: settings.quotas.network,
            subnet: settings.quotas.subnet,
            subnetpool: settings.quotas.subnetpool,
            port: settings.quotas.port,
            router: settings.quotas.router,
            floatingip: settings.quotas.floatingip,
            security_group: settings.quotas.security_group,
            security_group_rule: settings.quotas.security_group_rule,
            rbac_policy: settings.quotas.rbac_policy,
            router_route: settings.quotas.router_route,
        },
    }
}

#[cfg(test)]
mod tests {
    use evergate_config::{Config, Database, Role, ServerSettings};

    use serde_json::json;

    use super::*;
    use crate::private_file::tests::TempDir;
    use crate::testing::Client;

    /// A signal is for the whole process, so for every server that a test runs at the time.
    static SIGNALS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    fn settings(dir: &TempDir, more: &str) -> ServerSettings {
        let text =
            format!("[DEFAULT]\nstate_path = {}\nbind_port = 0\nbind_host = 127.0.0.1\n{more}", dir.path().display());
        ServerSettings::from_config(&Config::from_texts(&[("x".into(), text)], "ctl", Role::Server, vec![]).unwrap())
    }

    #[test]
    fn without_files_the_api_has_its_own_defaults() {
        let config = Config::from_texts(&[], "ctl", Role::Server, vec![]).unwrap();
        let mut made = options(&ServerSettings::from_config(&config));
        made.type_drivers.sort();
        let mut defaults = Options { vni_ranges: made.vni_ranges.clone(), ..Options::default() };
        defaults.type_drivers.sort();
        assert_eq!(made, defaults);
    }

    #[test]
    fn what_files_say_of_ha_networks_reaches_the_api() {
        let more = "l3_ha_net_cidr = 169.254.128.0/20\nl3_ha_network_type = flat\nl3_ha_network_physical_name = ha\n";
        let made = options(&settings(&TempDir::new(), more));
        assert_eq!(made.l3_ha_net_cidr.to_string(), "169.254.128.0/20");
        assert_eq!((made.l3_ha_network_type.as_str(), made.l3_ha_network_physical_name.as_str()), ("flat", "ha"));
    }

    #[tokio::test]
    async fn whatever_cannot_be_had_is_named_with_a_way_out() {
        let _unsignalled = SIGNALS.lock().await;
        let dir = TempDir::new();
        let refused = |result: anyhow::Result<()>| format!("{:#}", result.unwrap_err());

        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let why = refused(serve(&settings(&dir, &format!("bind_port = {port}\n")), Watched::default(), None).await);
        assert!(why.contains(&format!("127.0.0.1 port {port}")) && why.contains("bind_port"), "{why}");

        let Database::Sqlite(database) = settings(&dir, "").database else { panic!("SQLite is the default") };
        let lock = lock(&database).unwrap();
        let why = refused(serve(&settings(&dir, ""), Watched::default(), None).await);
        assert!(why.contains(&format!("(process {})", std::process::id())), "{why}");
        drop(lock);

        std::fs::write(dir.path().join("file"), "").unwrap();
        let why = refused(
            serve(
                &settings(&dir, &format!("state_path = {}/file/x\n", dir.path().display())),
                Watched::default(),
                None,
            )
            .await,
        );
        assert!(why.contains("state_path"), "{why}");

        std::fs::write(dir.path().join("no.sqlite"), "this is no database").unwrap();
        let foreign = format!("[database]\nconnection = sqlite:///{}/no.sqlite\n", dir.path().display());
        let why = refused(serve(&settings(&dir, &foreign), Watched::default(), None).await);
        assert!(why.contains("failed to use database") && why.contains("no.sqlite"), "{why}");
    }

    #[test]
    fn a_server_answers_clients_and_hosts_and_stops_when_told() {
        let _alone = SIGNALS.blocking_lock();
        let dir = TempDir::new();
        let settings = settings(&dir, "");
        let address_file = dir.path().join("address");
        let serving = std::thread::spawn({
            let (settings, address_file) = (settings.clone(), address_file.clone());
            move || {
                tokio::runtime::Runtime::new().unwrap().block_on(serve(
                    &settings,
                    Watched::default(),
                    Some(&address_file),
                ))
            }
        });
        let address = wait_for("the address", || std::fs::read_to_string(&address_file).ok()?.trim().parse().ok());
        let client = Client::new(address);

        let versions = client.call("GET", "/", &[], None);
        assert_eq!((versions.status, &versions.body["versions"][0]["id"]), (200, &json!("v2.0")));
        assert_eq!(client.call("GET", "/v2.0/networks", &[], None).status, 401);
        let token = client.log_in(&settings.clouds_file(), "admin");
        let networks = client.call("GET", "/v2.0/networks", &[("x-auth-token", &token)], None);
        assert_eq!((networks.status, networks.body), (200, json!({"networks": []})));

        let described = client.call("GET", "/evergate/v1/openapi.json", &[], None);
        assert_eq!((described.status, &described.body["openapi"]), (200, &json!("3.1.0")));

        let (status, authority) = client.text("GET", "/evergate/v1/ca", &[]);
        assert_eq!((status, &authority), (200, &std::fs::read_to_string(settings.authority_file()).unwrap()));
        let (status, told) = client.text("POST", "/evergate/v1/hosts/h1/report", &[]);
        assert!(status == 426 && told.contains("over TLS alone"), "{status} {told}");
        let secure = client.over_tls(&authority);
        let versions = secure.call("GET", "/", &[], None);
        let link = versions.body["versions"][0]["links"][0]["href"].as_str().unwrap_or_default();
        assert!(link.starts_with("https://127.0.0.1:"), "{link}");

        let kill = format!("kill -TERM {}", std::process::id());
        assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        wait_for("the end", || serving.is_finished().then_some(()));
        serving.join().unwrap().unwrap();
    }

    #[tokio::test]
    async fn files_of_tls_that_cannot_be_used_are_named() {
        let _unsignalled = SIGNALS.lock().await;
        let dir = TempDir::new();
        let refused = async |more: &str| {
            format!("{:#}", serve(&settings(&dir, more), Watched::default(), None).await.unwrap_err())
        };
        let why = refused("[ssl]\ncert_file = /nonexistent\n").await;
        assert!(why.contains("cert_file /nonexistent"), "{why}");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let key = |key: &rcgen::KeyPair| key.serialize_pem();
        let (ours, theirs) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let certificate = rcgen::CertificateParams::default().self_signed(&ours).unwrap().pem();
        let (certificate, empty) = (file("cert", &certificate), file("empty", ""));
        let why = refused(&format!("[ssl]\ncert_file = {empty}\n")).await;
        assert!(why.contains("there is no certificate in it"), "{why}");
        let why = refused(&format!("[ssl]\ncert_file = {certificate}\n")).await;
        assert!(why.contains("key_file"), "{why}");
        let foreign = file("key", &key(&theirs));
        let why = refused(&format!("[ssl]\ncert_file = {certificate}\nkey_file = {foreign}\n")).await;
        assert!(why.contains("cannot be used together"), "{why}");
    }

    fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(std::time::Instant::now() < deadline, "{what} did not come in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
