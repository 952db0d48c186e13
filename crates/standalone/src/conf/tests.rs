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
        ("use_ipvlan", "k.conf:7: use_ipvlan is not supported: remove it"),
        ("vmac_xmit_base", "k.conf:7: vmac_xmit_base means nothing without use_vmac"),
        ("use_vmac a-name-that-is-too-long", "k.conf:7: use_vmac takes the name of a device"),
        ("use_vmac x 02:00:00:00:00:01", "k.conf:7: use_vmac takes a name alone"),
        ("use_vmac\nunicast_peer {\n192.0.2.3\n}", "k.conf:7: use_vmac needs vmac_xmit_base with unicast_peer"),
        ("no_accept maybe", "k.conf:7: no_accept takes nothing, on or off"),
        ("track_file {\nnone\n}", "k.conf:1: 'V' tracks the file 'none', which is not defined"),
        ("track_process {\nnone weight 2\n}", "k.conf:1: 'V' tracks the process 'none', which is not defined"),
        ("track_bfd {\nnone\n}", "k.conf:1: 'V' tracks the BFD session 'none', which is not defined"),
        ("track_interface {\neth1 weight 254\n}", "k.conf:8: eth1 has a weight that is not -253 to 253: '254'"),
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
    assert_eq!(good.instances[0].tracked[0].weight, Weight { value: -5, reverse: false });
    let owner = sound(&(script.to_owned() + &instance("priority 255\ntrack_script {\ns\n}")));
    assert_eq!(owner.instances[0].tracked[0].weight.value, 0);
    let own = sound(&(script.to_owned() + &instance("track_script {\ns weight 7 reverse\n}")));
    assert_eq!(own.instances[0].tracked[0].weight, Weight { value: 7, reverse: true });
}

#[test]
fn what_is_tracked_is_read_with_the_defaults_of_keepalived() {
    let text = "track_file f {\nfile /run/f\ninit_file 3 overwrite\n}\n\
                vrrp_track_process p {\nprocess \"/bin/a b\" -c\nquorum 2\ndelay 0.5\n}\n\
                vrrp_track_process q {\nprocess sshd\nquorum_max 0\n}\n\
                bfd_instance b {\nneighbor_ip 192.0.2.3\nmin_rx 33.5\n}\n"
        .to_owned()
        + &instance("track_file {\nf\n}\ntrack_process {\np weight -20\nq\n}\ntrack_bfd {\nb\n}");
    let configuration = sound(&text);
    let file = &configuration.files["f"];
    assert_eq!((file.initial, file.overwrite, file.weight.value), (Some(3), true, 1));
    let process = &configuration.processes["p"];
    assert_eq!(
        (process.command.join("|"), process.matching, process.quorum),
        ("/bin/a b|-c".to_owned(), Matching::Exact, 2)
    );
    assert_eq!((process.fork_delay, process.terminate_delay), (Duration::from_millis(500), Duration::from_millis(500)));
    let none = &configuration.processes["q"];
    assert_eq!((none.matching, none.quorum, none.quorum_max), (Matching::Name, 0, 0));
    let bfd = &configuration.bfd["b"];
    assert_eq!(
        (bfd.min_rx, bfd.min_tx, bfd.multiplier.get()),
        (Duration::from_micros(33_500), Duration::from_millis(10), 5)
    );
    let weights: Vec<_> = configuration.instances[0].tracked.iter().map(|one| (one.what, one.weight.value)).collect();
    assert_eq!(weights, [(What::File, 1), (What::Process, -20), (What::Process, 0), (What::Bfd, 0)]);
    let two = text.replace("bfd_instance b", "bfd_instance a {\nneighbor_ip 192.0.2.3\n}\nbfd_instance b");
    assert!(errors(&two)[0].contains("there is another session with 192.0.2.3"), "{:?}", errors(&two));
    for (from, to, expected) in [
        ("file /run/f", "file f", "track_file 'f' must name its file by the whole path"),
        ("process sshd\n", "", "vrrp_track_process 'q' has no process"),
        ("neighbor_ip 192.0.2.3\n", "", "bfd_instance 'b' has no neighbor_ip"),
        ("min_rx 33.5", "min_rx 5", "min_rx must be 10 ms or more, not '5'"),
        ("neighbor_ip 192.0.2.3", "neighbor_ip 192.0.2.3\nsource_ip 2001:db8::1", "of two address families"),
    ] {
        let found = errors(&text.replace(from, to));
        assert!(found.iter().any(|error| error.contains(expected)), "{to}: {found:?}");
    }
}

#[test]
fn addresses_are_on_the_virtual_router_s_own_device_unless_they_name_another() {
    let text = instance("use_vmac\nvirtual_ipaddress_excluded {\n192.0.2.9/24 dev eth1\n2001:db8::9/64\n}");
    let v = sound(&text).instances.remove(0);
    let devices: Vec<_> = v.addresses.iter().chain(&v.excluded).map(|address| address.dev.as_str()).collect();
    assert_eq!(devices, ["vrrp.51", "eth1", "vrrp.51"]);
    assert_eq!(v.vmac, Some(Vmac { link: "vrrp.51".to_owned(), transmit_from_base: false }));
    let v6 = instance("use_vmac gate\nvmac_xmit_base").replace("192.0.2.1/24", "fe80::1/64");
    let v = sound(&v6).instances.remove(0);
    assert_eq!((v.addresses[0].dev.as_str(), v.vmac.map(|vmac| vmac.transmit_from_base)), ("gate", Some(true)));
    assert_eq!(sound(&v6.replace("gate", "")).instances[0].addresses[0].dev, "vrrp6.51");
    let both = text.clone() + &text.replace(" V ", " W ").replace("interface eth0", "interface eth2");
    assert!(errors(&both)[0].contains("its device vrrp.51 is that of 'V', too"), "{:?}", errors(&both));
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
