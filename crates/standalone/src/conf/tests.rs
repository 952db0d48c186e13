//! What is read, what is refused, and where it says so.

use std::collections::BTreeMap;
use std::io;

use super::*;

struct Memory(BTreeMap<&'static str, String>);

impl Files for Memory {
    fn read(&self, path: &Path) -> io::Result<String> {
        let found = path.to_str().and_then(|path| self.0.get(path));
        found.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let inside = self.0.keys().filter_map(|path| Path::new(path).strip_prefix(folder).ok());
        Ok(inside.filter_map(|rest| rest.components().next()?.as_os_str().to_str().map(str::to_owned)).collect())
    }
}

fn parse(text: &str) -> (Option<Configuration>, Problems) {
    super::read(Path::new("k.conf"), &Memory(BTreeMap::from([("k.conf", text.to_owned())])))
}

fn sound(text: &str) -> Configuration {
    let (configuration, problems) = parse(text);
    configuration.unwrap_or_else(|| panic!("{:?}", problems.errors()))
}

fn errors(text: &str) -> Vec<String> {
    let (configuration, problems) = parse(text);
    assert!(configuration.is_none(), "it was not refused: {text}");
    problems.errors()
}

fn instance(lines: &str) -> String {
    format!(
        "vrrp_instance V {{\ninterface eth0\nvirtual_router_id 51\nvirtual_ipaddress {{\n192.0.2.1/24\n}}\n{lines}\n}}\n"
    )
}

#[test]
fn defaults_are_keepalived_s() {
    let configuration = sound(&instance(""));
    let v = &configuration.instances[0];
    assert_eq!((v.priority, v.interval_cs, v.version, v.preempt), (100, 100, Version::V2, true));
    assert_eq!((v.announcements.rounds, v.announcements.again_after), (5, Some(Duration::from_secs(5))));
}

#[test]
fn braces_comments_and_quotes_may_stand_anywhere() {
    let text = "! a comment\nvrrp_instance \"my V\"\n{ interface eth0 # another\nvirtual_router_id 7!third\n\
                virtual_ipaddress { 192.0.2.1/24 dev \"eth1\" } authentication\n{\nauth_type PASS auth_pass\n}\n}\n";
    assert_eq!(errors(text), ["k.conf:7: auth_type takes one value; 'auth_pass' is too much"]);
    let good = sound(&text.replace("auth_type PASS auth_pass\n", "auth_type PASS\nauth_pass \"a#b\"\n"));
    let v = &good.instances[0];
    assert_eq!((v.name.as_str(), v.vrid.get(), v.addresses[0].dev.as_str()), ("my V", 7, "eth1"));
    assert_eq!(v.password, Some(Password(*b"a#b\0\0\0\0\0")));
}

#[test]
fn what_cannot_be_done_is_refused_with_its_line() {
    for (line, expected) in [
        ("use_vmac", "k.conf:7: use_vmac is not supported: remove it"),
        ("no_accept", "k.conf:7: no_accept is not supported"),
        ("authentication {\nauth_type AH\n}", "k.conf:8: auth_type AH is not supported"),
        ("priority 0", "k.conf:7: priority must be 1 to 255, not '0'"),
        ("advert_int 0.5", "k.conf:7: advert_int must be whole seconds in version 2"),
        ("version 3\nadvert_int 41", "k.conf:8: advert_int must be 0.01 to 40.95 seconds"),
        ("advert_int nan", "k.conf:7: advert_int must be seconds, not 'nan'"),
        ("prioritty 5", "k.conf:7: prioritty is not known"),
        ("virtual_ipaddress {\n2001:db8::1\n}", "k.conf:8: 2001:db8::1 is of another address family"),
        ("virtual_ipaddress {\n192.0.2.300\n}", "k.conf:8: 192.0.2.300 '192.0.2.300' is not an address"),
        ("track_script {\nnone\n}", "k.conf:1: 'V' tracks the script 'none', which is not defined"),
        ("notify_master relative.sh", "k.conf:7: notify_master must name a program by its whole path"),
        ("state MASTERFUL", "k.conf:7: state must be MASTER or BACKUP"),
        ("unicast_peer {\n10.0.0.x\n}", "k.conf:8: 10.0.0.x '10.0.0.x' is not an IP address"),
        ("\"unclosed", "k.conf:7: a quote is not closed on its line"),
        ("}\n}", "k.conf:8: '}' closes nothing"),
    ] {
        let found = errors(&instance(line));
        assert!(found.iter().any(|error| error.starts_with(expected)), "{line}: {found:?}");
    }
}

#[test]
fn what_is_left_out_is_told() {
    for (text, expected) in [
        ("virtual_server 10.0.0.1 80 {\nlvs_sched rr\n}\n".to_owned(), "k.conf:1: virtual_server is not part of VRRP"),
        ("global_defs {\nvrrp_strict\n}\n".to_owned(), "k.conf:2: vrrp_strict is noted"),
        ("global_defs {\nsmtp_server 10.0.0.1\nvrrp_ipsets x\n}\n".to_owned(), "k.conf:3: vrrp_ipsets has no effect"),
        (instance("smtp_alert"), "k.conf:7: smtp_alert is ignored"),
    ] {
        let (configuration, problems) = parse(&text);
        assert!(configuration.is_some(), "{:?}", problems.errors());
        assert!(problems.warnings().iter().any(|warning| warning.starts_with(expected)), "{:?}", problems.warnings());
    }
}

#[test]
fn included_files_are_read_in_their_order_and_name_themselves() {
    let files = Memory(BTreeMap::from([
        ("/etc/k.conf", "include conf.d/*.conf\n".to_owned()),
        ("/etc/conf.d/b.conf", instance("bogus").replace(" V ", " B ")),
        ("/etc/conf.d/a.conf", instance("").replace(" V ", " A ")),
        ("/etc/conf.d/c.txt", "nonsense\n".to_owned()),
    ]));
    let (_, problems) = super::read(Path::new("/etc/k.conf"), &files);
    // The same virtual router twice is noticed across files, too.
    assert_eq!(problems.errors()[0], "/etc/conf.d/b.conf:7: bogus is not known");
    let circle = Memory(BTreeMap::from([("k.conf", "include k.conf\n".to_owned())]));
    assert!(super::read(Path::new("k.conf"), &circle).1.errors()[0].contains("too deeply"));
    let missing = Memory(BTreeMap::from([("k.conf", "\ninclude other.conf\n".to_owned())]));
    assert!(super::read(Path::new("k.conf"), &missing).1.errors()[0].starts_with("k.conf:2: cannot read other.conf"));
}

#[test]
fn routes_and_rules_are_read_word_by_word() {
    let text = instance(
        "virtual_routes {\ndefault via 192.0.2.9 dev eth1\n10.0.0.0/8 nexthop via 192.0.2.8 dev eth1 weight 2 nexthop via 192.0.2.9\n\
         unreachable 10.1.0.0/16\n}\nvirtual_rules {\nfrom 10.0.0.0/8 to 2001:db8::/32 table 5\n}",
    );
    assert!(errors(&text)[0].contains("two address families"));
    let good = sound(&text.replace("to 2001:db8::/32", "iif eth1 fwmark 0x10 preference 9"));
    let v = &good.instances[0];
    assert_eq!(v.routes[0].destination, "0.0.0.0/0".parse().unwrap());
    assert_eq!(v.routes[1].hops.iter().map(|hop| hop.weight).collect::<Vec<_>>(), [2, 1]);
    assert_eq!((v.routes[2].kind, v.routes[2].hops.len()), (RouteKind::Unreachable, 0));
    assert_eq!((v.rules[0].fwmark, v.rules[0].priority, v.rules[0].table), (Some(16), Some(9), 5));
}

#[test]
fn commands_are_split_without_a_shell() {
    let good = sound(&instance("notify_master \"/bin/a 'b c' d $HOME\" nobody nogroup"));
    let command = good.instances[0].notify.master.clone().unwrap();
    assert_eq!(command.words, ["/bin/a", "b c", "d", "$HOME"]);
    assert_eq!((command.user.as_deref(), command.group.as_deref()), (Some("nobody"), Some("nogroup")));
}

#[test]
fn weights_fall_back_to_the_script_s_and_an_owner_ignores_them() {
    let script = "vrrp_script s {\nscript /bin/true\nweight -5\n}\n";
    let good = sound(&(script.to_owned() + &instance("track_script {\ns\n}")));
    assert_eq!(good.instances[0].track_scripts[0].weight, -5);
    let owner = sound(&(script.to_owned() + &instance("priority 255\ntrack_script {\ns\n}")));
    assert_eq!(owner.instances[0].track_scripts[0].weight, 0);
}

#[test]
fn ipv6_speaks_version_3_and_wants_a_link_local_address_first() {
    let v6 = instance("").replace("192.0.2.1/24", "fe80::1/64\n2001:db8::1/64");
    assert_eq!(sound(&v6).instances[0].version, Version::V3);
    let text = instance("").replace("192.0.2.1/24", "2001:db8::1/64");
    assert!(errors(&text)[0].contains("must be link-local"), "{:?}", errors(&text));
    let two = v6.replace("interface", "version 2\ninterface");
    assert!(errors(&two)[0].contains("version 2 knows IPv4 alone"), "{:?}", errors(&two));
}

#[test]
fn a_password_is_not_printed_and_is_ignored_in_version_3() {
    let text = instance("authentication {\nauth_type PASS\nauth_pass hush\n}");
    let configuration = sound(&text);
    assert!(!format!("{configuration:?}{configuration}").contains("hush"));
    let (third, problems) = parse(&text.replace("interface", "version 3\ninterface"));
    assert!(third.unwrap().instances[0].password.is_none());
    assert!(problems.warnings()[0].contains("the password is ignored"));
}

#[test]
fn whatever_is_read_nothing_panics() {
    let text = instance(
        "track_interface {\neth1 weight -20\n}\nnotify \"/bin/x 'y\"\nadvert_int 1\nunicast_peer {\n192.0.2.3\n}\n",
    ) + "vrrp_sync_group G {\ngroup {\nV\n}\n}\nglobal_defs { vrrp_version 3 }\n";
    for end in 0..text.len() {
        let _ = parse(&text[..end]);
        let _ = parse(&format!("{}{{{}", &text[..end], &text[end..]));
        let _ = parse(&format!("{}}}{}", &text[..end], &text[end..]));
        let _ = parse(&format!("{}{}", &text[..end], &text[(end + 1).min(text.len())..]));
    }
    let _ = parse(&"a {".repeat(100_000));
}
