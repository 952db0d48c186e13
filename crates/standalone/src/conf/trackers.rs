//! What instances can track: scripts, files, processes and neighbours.

use std::num::NonZeroU8;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use evergate_vrrp::bfd::session::SHORTEST_INTERVAL;

use super::objects::command;
use super::syntax::{Problems, Statement};
use super::{BfdInstance, Command, Matching, Reader, Script, TrackFile, TrackProcess, Tracked, Weight, What};

/// The most that a script, an interface or a session can weigh.
const MOST_WEIGHT: i64 = 253;

/// The most that a process can weigh, and a file's number be multiplied by: 254 makes a fault of -1.
const MOST_FILE_WEIGHT: i64 = 254;

/// keepalived's `bfd_instance`: intervals of 10 ms, five of which may be missing.
const BFD_INTERVAL: Duration = Duration::from_millis(10);
const BFD_MULTIPLIER: NonZeroU8 = NonZeroU8::new(5).expect("5 is not 0");

/// The longest interval that makes sense in a control packet: 2^32 microseconds.
const LONGEST_INTERVAL_MS: f64 = 4_294_967.0;

impl What {
    /// The kind of the things in a block of this name.
    pub(super) fn of_block(keyword: &str) -> Option<Self> {
        Some(match keyword {
            "track_interface" => Self::Interface,
            "track_script" => Self::Script,
            "track_file" => Self::File,
            "track_process" => Self::Process,
            "track_bfd" => Self::Bfd,
            _ => return None,
        })
    }

    fn most_weight(self) -> i64 {
        match self {
            Self::Interface | Self::Script | Self::Bfd => MOST_WEIGHT,
            Self::File | Self::Process => MOST_FILE_WEIGHT,
        }
    }
}

/// A block of `track_interface`, `track_script` and so on.
pub(super) fn tracked(block: &Statement, what: What, problems: &mut Problems) -> Vec<Tracked> {
    let mut found = Vec::new();
    for line in block.body(problems) {
        let weight = match line.arguments() {
            [] if what == What::Interface => Some(Weight::default()),
            [] => Some(Weight::UNSAID),
            [word, weight @ ..] if word == "weight" => read_weight(line, weight, what.most_weight(), problems),
            [..] => {
                problems.error(line, "takes nothing but a weight");
                None
            }
        };
        found.extend(weight.map(|weight| Tracked { what, name: line.keyword().to_owned(), weight }));
    }
    found
}

/// A line `weight N [reverse]`.
fn own_weight(statement: &Statement, most: i64, problems: &mut Problems) -> Option<Weight> {
    read_weight(statement, statement.arguments(), most, problems)
}

fn read_weight(line: &Statement, words: &[String], most: i64, problems: &mut Problems) -> Option<Weight> {
    let (number, reverse) = match words {
        [number] => (number, false),
        [number, word] if word == "reverse" => (number, true),
        [number, word] if word == "noreverse" => (number, false),
        _ => {
            problems.error(line, "needs a number as its weight, and perhaps reverse");
            return None;
        }
    };
    let value = number.parse::<i64>().ok().filter(|value| (-most..=most).contains(value));
    if value.is_none() {
        problems.error(line, format!("has a weight that is not -{most} to {most}: '{number}'"));
    }
    value.map(|value| Weight { value: value as i32, reverse })
}

/// Milliseconds, with or without a fraction.
fn interval_ms(statement: &Statement, problems: &mut Problems) -> Option<Duration> {
    let text = statement.one(problems)?;
    let shortest = SHORTEST_INTERVAL.as_millis() as f64;
    match text.parse::<f64>() {
        Ok(ms) if (shortest..=LONGEST_INTERVAL_MS).contains(&ms) => Some(Duration::from_secs_f64(ms / 1000.0)),
        Ok(_) | Err(_) => {
            problems.error(statement, format!("must be {shortest} ms or more, not '{text}'"));
            None
        }
    }
}

impl Reader {
    /// `vrrp_script`.
    pub(super) fn script(&mut self, block: &Statement, problems: &mut Problems) {
        let Some(name) = block.one_name(problems) else { return };
        let mut what = None;
        let mut user = self.defaults.script_user.clone();
        let mut timeout = None;
        let mut script = Script {
            command: Command { words: Vec::new(), user: None, group: None },
            interval: Duration::from_secs(1),
            timeout: Duration::ZERO,
            weight: Weight::default(),
            fall: 1,
            rise: 1,
            init_fail: false,
        };
        for statement in block.body(problems) {
            match statement.keyword() {
                "script" => what = Some(statement),
                "interval" => {
                    script.interval = statement.seconds(86_400.0, problems).unwrap_or(script.interval);
                    if script.interval < Duration::from_millis(100) {
                        problems.error(statement, "must be at least 0.1 seconds");
                    }
                }
                "timeout" => timeout = statement.seconds(86_400.0, problems),
                "weight" => script.weight = own_weight(statement, MOST_WEIGHT, problems).unwrap_or_default(),
                "fall" => script.fall = statement.number(1..=1_000_000, problems).unwrap_or(1) as u32,
                "rise" => script.rise = statement.number(1..=1_000_000, problems).unwrap_or(1) as u32,
                "init_fail" => script.init_fail = statement.switch(problems).unwrap_or(true),
                "user" => match statement.arguments() {
                    [name] => user = Some((name.clone(), None)),
                    [name, group] => user = Some((name.clone(), Some(group.clone()))),
                    _ => problems.error(statement, "takes a user and perhaps a group"),
                },
                _ => problems.error(statement, "is not known"),
            }
        }
        script.timeout = timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(script.interval);
        let Some(what) = what else {
            return problems.error(block, format!("'{name}' has no script"));
        };
        // Unquoted, all words belong to the command: its user has a line of its own.
        let joined = Statement { words: vec!["script".to_owned(), what.arguments().join(" ")], ..what.clone() };
        let Some(command) = command(&joined, user.as_ref(), problems) else { return };
        script.command = command;
        if self.configuration.scripts.insert(name.clone(), script).is_some() {
            problems.error(block, format!("'{name}' is there twice"));
        }
    }

    /// `track_file`.
    pub(super) fn file(&mut self, block: &Statement, problems: &mut Problems) {
        let Some(name) = block.one_name(problems) else { return };
        let mut path = None;
        let mut file = TrackFile {
            path: PathBuf::new(),
            weight: Weight { value: 1, reverse: false },
            initial: None,
            overwrite: false,
        };
        for statement in block.body(problems) {
            match statement.keyword() {
                "file" => path = statement.one_name(problems).map(PathBuf::from),
                "weight" => file.weight = own_weight(statement, MOST_FILE_WEIGHT, problems).unwrap_or_default(),
                "init_file" => initial(&mut file, statement, problems),
                _ => problems.error(statement, "is not known"),
            }
        }
        match path {
            Some(path) if path.is_absolute() => file.path = path,
            Some(_) => return problems.error(block, format!("'{name}' must name its file by the whole path")),
            None => return problems.error(block, format!("'{name}' has no file")),
        }
        if self.configuration.files.insert(name.clone(), file).is_some() {
            problems.error(block, format!("'{name}' is there twice"));
        }
    }

    /// `vrrp_track_process`.
    pub(super) fn process(&mut self, block: &Statement, problems: &mut Problems) {
        let Some(name) = block.one_name(problems) else { return };
        let mut process = TrackProcess {
            command: Vec::new(),
            matching: Matching::Name,
            weight: Weight::default(),
            quorum: 1,
            quorum_max: u32::MAX,
            fork_delay: Duration::ZERO,
            terminate_delay: Duration::ZERO,
        };
        let mut whole = false;
        let mut matching = None;
        let number = |statement: &Statement, range: RangeInclusive<i64>, problems: &mut Problems| {
            statement.number(range, problems).map(|number| number as u32)
        };
        for statement in block.body(problems) {
            let delay = |problems: &mut Problems| statement.seconds(3600.0, problems).unwrap_or_default();
            match statement.keyword() {
                "process" => process.command = statement.arguments().to_vec(),
                "param_match" => {
                    matching = match statement.one(problems) {
                        Some("initial") => Some(Matching::Initial),
                        Some("partial") => Some(Matching::Partial),
                        Some(_) => {
                            problems.error(statement, "must be initial or partial");
                            None
                        }
                        None => None,
                    };
                }
                "weight" => process.weight = own_weight(statement, MOST_FILE_WEIGHT, problems).unwrap_or_default(),
                "quorum" => process.quorum = number(statement, 1..=65_535, problems).unwrap_or(1),
                "quorum_max" => process.quorum_max = number(statement, 0..=65_535, problems).unwrap_or(u32::MAX),
                "fork_delay" => process.fork_delay = delay(problems),
                "terminate_delay" => process.terminate_delay = delay(problems),
                "delay" => {
                    process.fork_delay = delay(problems);
                    process.terminate_delay = process.fork_delay;
                }
                "full_command" => whole = statement.switch(problems).unwrap_or(true),
                _ => problems.error(statement, "is not known"),
            }
        }
        if process.command.is_empty() {
            return problems.error(block, format!("'{name}' has no process"));
        }
        if process.quorum_max < process.quorum && process.quorum_max != 0 {
            problems.error(block, format!("'{name}': quorum_max is less than quorum"));
        }
        if process.quorum_max == 0 {
            // That it runs at all is the failure.
            process.quorum = 0;
        }
        process.matching = match matching {
            // Without parameters, any way of comparing them means that there are none.
            Some(_) if process.command.len() == 1 => Matching::Exact,
            Some(matching) => matching,
            None if whole || process.command.len() > 1 => Matching::Exact,
            None => Matching::Name,
        };
        if self.configuration.processes.insert(name.clone(), process).is_some() {
            problems.error(block, format!("'{name}' is there twice"));
        }
    }

    /// `bfd_instance`.
    pub(super) fn bfd(&mut self, block: &Statement, problems: &mut Problems) {
        let Some(name) = block.one_name(problems) else { return };
        let (mut neighbour, mut source) = (None, None);
        let (mut min_rx, mut min_tx, mut multiplier) = (BFD_INTERVAL, BFD_INTERVAL, BFD_MULTIPLIER);
        let (mut ttl, mut max_hops, mut multihop, mut weight) = (u8::MAX, 0, false, Weight::default());
        for statement in block.body(problems) {
            let ip = |problems: &mut Problems| super::instance::address(statement, statement.one(problems), problems);
            let number = |range, problems: &mut Problems| statement.number(range, problems).map(|number| number as u8);
            match statement.keyword() {
                "neighbor_ip" | "neighbour_ip" => neighbour = ip(problems),
                "source_ip" => source = ip(problems),
                "min_rx" => min_rx = interval_ms(statement, problems).unwrap_or(min_rx),
                "min_tx" => min_tx = interval_ms(statement, problems).unwrap_or(min_tx),
                "idle_tx" => problems.warn(statement, "has no effect: a session that is not up sends once a second"),
                "multiplier" => {
                    multiplier = number(1..=255, problems).and_then(NonZeroU8::new).unwrap_or(multiplier);
                }
                "passive" => problems.warn(statement, "has no effect: a neighbour is called as well as answered"),
                // The TTL of what the neighbour sends; ours is always 255 (RFC 5881 §5).
                "ttl" | "hoplimit" => ttl = number(1..=255, problems).unwrap_or(ttl),
                "max_hops" => max_hops = number(0..=255, problems).unwrap_or(max_hops),
                "multihop" => multihop = statement.switch(problems).unwrap_or(true),
                "weight" => weight = own_weight(statement, MOST_WEIGHT, problems).unwrap_or_default(),
                // Whom keepalived's own process for it tells.
                "vrrp" | "checker" => {}
                _ => problems.error(statement, "is not known"),
            }
        }
        let Some(neighbour) = neighbour else {
            return problems.error(block, format!("'{name}' has no neighbor_ip"));
        };
        if source.is_some_and(|source| source.is_ipv4() != neighbour.is_ipv4()) {
            problems.error(block, format!("'{name}': neighbor_ip and source_ip are of two address families"));
        }
        if matches!(neighbour, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            problems.error(block, format!("'{name}': a link-local neighbour is not supported"));
        }
        if self.configuration.bfd.values().any(|other| other.neighbour == neighbour) {
            problems.error(block, format!("'{name}': there is another session with {neighbour}"));
        }
        let instance = BfdInstance { neighbour, source, min_rx, min_tx, multiplier, ttl, max_hops, multihop, weight };
        if self.configuration.bfd.insert(name.clone(), instance).is_some() {
            problems.error(block, format!("'{name}' is there twice"));
        }
    }
}

/// `init_file [VALUE] [overwrite]`.
fn initial(file: &mut TrackFile, statement: &Statement, problems: &mut Problems) {
    file.initial = Some(0);
    for word in statement.arguments() {
        match word.parse() {
            Ok(value) => file.initial = Some(value),
            Err(_) if word == "overwrite" => file.overwrite = true,
            Err(_) => problems.error(statement, format!("takes a number and overwrite, not '{word}'")),
        }
    }
}
