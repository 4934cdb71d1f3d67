//! Addresses of network interfaces, by ioctls (netdevice(7)): they are in every kernel, and need no netlink library.
//!
//! A new MAC address takes the interface down for a moment, so that IPv6 makes its link-local address from the new
//! one. The kernel then forgets its IPv6 addresses and routes; those that a request does not name are given back:
//! global addresses, and default routes over IPv4. What a router or a DHCP client has set comes again from there.

use super::{invalid, refused, unsupported};
use crate::sys::system::{DefaultRoute, Interface, MAX_INTERFACE_NAME_LEN};
use guestline_protocol::{ErrorKind, NicIdentity, RemoteError};
use nix::errno::Errno;
use nix::libc::ARPHRD_ETHER;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

const INTERFACES: &str = "/proc/net/dev";
const ROUTES: &str = "/proc/net/route";
const ADDRESSES_V6: &str = "/proc/net/if_inet6";

/// Finds what no interface can be given.
///
/// # Errors
/// Invalid, naming the value.
pub(super) fn check(nic: &NicIdentity) -> Result<(), RemoteError> {
    let name = nic.name.as_str();
    let fits = (1..=MAX_INTERFACE_NAME_LEN).contains(&name.len());
    if !fits || name.contains(|char: char| matches!(char, '/' | '\0') || char.is_whitespace()) {
        return Err(invalid(format!("{name:?} is no name of a network interface")));
    }
    if let Some(mac) = nic.mac {
        let [first, ..] = mac;
        if mac == [0; 6] || first & 1 != 0 {
            let mac = Mac(mac);
            return Err(invalid(format!("`{name}` cannot have {mac}, which is no station's MAC")));
        }
    }
    if let Some((address, prefix)) = nic.ipv4 {
        let address = Ipv4Addr::from(address);
        if prefix > 32 || address.is_unspecified() || address.is_multicast() {
            return Err(invalid(format!("`{name}` cannot have the address {address}/{prefix}")));
        }
    }
    if let Some((address, prefix)) = nic.ipv6 {
        let address = Ipv6Addr::from(address);
        if prefix > 128 || address.is_unspecified() || address.is_multicast() {
            return Err(invalid(format!("`{name}` cannot have the address {address}/{prefix}")));
        }
    }
    match nic.router.map(Ipv4Addr::from) {
        Some(router) if router.is_unspecified() || router.is_multicast() => {
            Err(invalid(format!("`{name}` cannot have the router {router}")))
        }
        _ => Ok(()),
    }
}

/// Gives an interface what is asked; what is absent stays.
///
/// # Errors
/// Not found when there is none of that name, with those that there are; unsupported for a MAC address on what is no
/// Ethernet, and for IPv6 in a kernel without; else what the kernel says.
pub(super) fn apply(nic: &NicIdentity) -> Result<(), RemoteError> {
    let name = nic.name.as_str();
    let missing = |errno| match errno {
        Errno::ENODEV => not_found(name),
        errno => refused(&format!("network interface `{name}`"), errno),
    };
    let interface = Interface::named(name).map_err(missing)?;
    let was_up = interface.is_up().map_err(missing)?;
    let routes = default_routes(&read(ROUTES), name);
    if let Some(mac) = nic.mac {
        set_mac(&interface, name, mac, was_up)?;
    }
    if nic.up {
        let object = format!("bringing up `{name}`");
        interface.set_up(true).map_err(|errno| refused(&object, errno))?;
    }
    if let Some((address, prefix)) = nic.ipv4 {
        let object = format!("address {}/{prefix} for `{name}`", Ipv4Addr::from(address));
        interface.set_ipv4(address, prefix).map_err(|errno| refused(&object, errno))?;
    }
    if let Some((address, prefix)) = nic.ipv6 {
        let object = format!("address {}/{prefix} for `{name}`", Ipv6Addr::from(address));
        match interface.add_ipv6(address, prefix) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(Errno::EAFNOSUPPORT) => {
                let message = format!("{object}: this kernel has no IPv6");
                return Err(unsupported(message, Errno::EAFNOSUPPORT));
            }
            Err(errno) => return Err(refused(&object, errno)),
        }
    }
    match nic.router {
        Some(router) => set_router(&interface, name, router),
        None => {
            // Only those that are gone: the kernel takes a second one for another if a DHCP client set the first.
            let there = default_routes(&read(ROUTES), name);
            for route in routes.into_iter().filter(|route| !there.contains(route)) {
                // A router that the new address cannot reach is gone with the old one.
                let _ = interface.add_default(route);
            }
            Ok(())
        }
    }
}

fn set_mac(
    interface: &Interface,
    name: &str,
    mac: [u8; 6],
    was_up: bool,
) -> Result<(), RemoteError> {
    let object = format!("MAC address {} for `{name}`", Mac(mac));
    let failed = |errno| refused(&object, errno);
    let (kind, before) = interface.mac().map_err(failed)?;
    if kind != ARPHRD_ETHER {
        let message = format!("{object}: it is no Ethernet interface");
        return Err(unsupported(message, Errno::EOPNOTSUPP));
    }
    if before == mac {
        return Ok(());
    }
    if !was_up {
        return interface.set_mac(mac).map_err(failed);
    }
    let addresses = global_addresses(&read(ADDRESSES_V6), name);
    interface.set_up(false).map_err(failed)?;
    let set = interface.set_mac(mac);
    // Up again in either case, and the first trouble is the one to tell.
    let up = interface.set_up(true);
    for (address, prefix) in addresses {
        let _ = interface.add_ipv6(address, prefix);
    }
    set.and(up).map_err(failed)
}

/// Makes `router` the only default route through the interface.
fn set_router(interface: &Interface, name: &str, router: [u8; 4]) -> Result<(), RemoteError> {
    let routes = default_routes(&read(ROUTES), name);
    for route in routes.iter().filter(|route| route.gateway != router) {
        let _ = interface.delete_default(*route);
    }
    if routes.iter().any(|route| route.gateway == router) {
        return Ok(());
    }
    match interface.add_default(DefaultRoute { gateway: router, metric: 0 }) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => {
            let router = Ipv4Addr::from(router);
            Err(refused(&format!("router {router} for `{name}`"), errno))
        }
    }
}

fn not_found(name: &str) -> RemoteError {
    let table = read(INTERFACES);
    // Two lines of headings, then `name: counters`.
    let names = table.lines().skip(2).filter_map(|line| line.split_once(':'));
    let names: Vec<_> = names.map(|(name, _)| name.trim()).collect();
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let message = format!("no network interface `{name}`; there are: {there}");
    RemoteError { kind: ErrorKind::NotFound, errno: Some(Errno::ENODEV as i32), message }
}

/// A table of the kernel's; one that is missing is empty.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The default routes through an interface, in the table's order. Its addresses are the network's bytes, printed as
/// if they were a number of this machine.
fn default_routes(table: &str, name: &str) -> Vec<DefaultRoute> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (interface, target, gateway) = (words.next()?, words.next()?, words.next()?);
        let (_flags, _references, _use) = (words.next()?, words.next()?, words.next()?);
        let (metric, mask) = (words.next()?.parse().ok()?, words.next()?);
        let hex = |word| u32::from_str_radix(word, 16).ok();
        let is_default = interface == name && hex(target)? == 0 && hex(mask)? == 0;
        is_default.then_some(DefaultRoute { gateway: hex(gateway)?.to_ne_bytes(), metric })
    };
    table.lines().skip(1).filter_map(parse).collect()
}

/// The global IPv6 addresses that somebody has set on an interface.
fn global_addresses(table: &str, name: &str) -> Vec<([u8; 16], u8)> {
    const PERMANENT: u8 = 0x80;
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, _index, prefix) = (words.next()?, words.next()?, words.next()?);
        let (scope, flags, interface) = (words.next()?, words.next()?, words.next()?);
        let hex = |word| u8::from_str_radix(word, 16).ok();
        let mine = interface == name && hex(scope)? == 0 && hex(flags)? & PERMANENT != 0;
        let address = u128::from_str_radix(address, 16).ok()?;
        mine.then_some((address.to_be_bytes(), hex(prefix)?))
    };
    table.lines().filter_map(parse).collect()
}

/// Shows a MAC address.
struct Mac([u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::in_namespaces;
    use std::process::Command;

    fn nic(name: &str) -> NicIdentity {
        let name = name.to_owned();
        NicIdentity { name, mac: None, ipv4: None, ipv6: None, router: None, up: false }
    }

    #[test]
    fn nonsense_is_refused() {
        let v6 = Ipv6Addr::LOCALHOST.octets();
        let wrong = [
            nic(""),
            nic("a-name-too-long-"),
            nic("a/b"),
            nic("a b"),
            nic("a\0"),
            NicIdentity { mac: Some([0; 6]), ..nic("a") },
            NicIdentity { mac: Some([1, 0, 0, 0, 0, 1]), ..nic("a") },
            NicIdentity { ipv4: Some(([10, 0, 0, 1], 33)), ..nic("a") },
            NicIdentity { ipv4: Some(([0; 4], 0)), ..nic("a") },
            NicIdentity { ipv6: Some((v6, 129)), ..nic("a") },
            NicIdentity { ipv6: Some(([0; 16], 64)), ..nic("a") },
            NicIdentity { router: Some([0; 4]), ..nic("a") },
        ];
        for nic in wrong {
            assert_eq!(check(&nic).unwrap_err().kind, ErrorKind::Invalid, "{nic:?}");
        }
        check(&NicIdentity {
            mac: Some([2, 0, 0, 0, 0, 1]),
            ipv4: Some(([10, 0, 0, 1], 32)),
            ipv6: Some((v6, 128)),
            router: Some([10, 0, 0, 2]),
            ..nic("a-name-that-fit")
        })
        .unwrap();
    }

    #[test]
    fn a_missing_interface_is_not_found_among_those_that_are() {
        let error = apply(&nic("no-such-nic")).unwrap_err();
        assert_eq!((error.kind, error.errno), (ErrorKind::NotFound, Some(19)));
        let there = error.message.strip_prefix("no network interface `no-such-nic`; there are: ");
        assert!(there.unwrap().split(", ").any(|name| name == "lo"), "{}", error.message);
    }

    #[test]
    fn tables_are_read() {
        let gateway = u32::from_ne_bytes([10, 0, 2, 2]);
        let on_link = u32::from_ne_bytes([10, 0, 2, 0]);
        let table = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth0\t00000000\t{gateway:08X}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth1\t00000000\t{gateway:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             eth0\t{on_link:08X}\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\ntorn"
        );
        let expected = [DefaultRoute { gateway: [10, 0, 2, 2], metric: 100 }];
        assert_eq!(default_routes(&table, "eth0"), expected);
        assert_eq!(default_routes("", "eth0"), []);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fec00000000000000000000000000001 02 40 00 80     eth0\n\
                     fec00000000000000000000000000002 02 40 00 00     eth0\n\
                     fe80000000000000505400fffe123456 02 40 20 80     eth0\n";
        let expected = "fec0::1".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(global_addresses(table, "eth0"), [(expected, 64)]);
    }

    fn ip(args: &str) -> String {
        let output = Command::new("ip").args(args.split(' ')).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
        stdout
    }

    #[test]
    fn loopback_is_no_ethernet_but_comes_up() {
        if !in_namespaces(module_path!(), "loopback_is_no_ethernet_but_comes_up") {
            return;
        }
        let lo = Interface::named("lo").unwrap();
        assert!(!lo.is_up().unwrap());
        let error = apply(&NicIdentity { mac: Some([2; 6]), ..nic("lo") }).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        let expected = "MAC address 02:02:02:02:02:02 for `lo`: it is no Ethernet interface";
        assert_eq!(error.message, expected);
        apply(&NicIdentity { up: true, ..nic("lo") }).unwrap();
        assert!(lo.is_up().unwrap());
        // Nothing to reach it by.
        let error = apply(&NicIdentity { router: Some([10, 0, 0, 9]), ..nic("lo") }).unwrap_err();
        assert_eq!(error.message, "router 10.0.0.9 for `lo`: Network is unreachable");
    }

    #[test]
    fn an_ethernet_interface_takes_all_and_keeps_the_rest() {
        if !in_namespaces(module_path!(), "an_ethernet_interface_takes_all_and_keeps_the_rest") {
            return;
        }
        let pair = "link add v0 type veth peer name v1";
        let made = Command::new("ip").args(pair.split(' ')).output();
        if !made.is_ok_and(|output| output.status.success()) {
            return eprintln!("left out: this kernel has no veth, or this machine no ip(8)");
        }
        ip("link set v1 up");
        let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let all = NicIdentity {
            mac: Some([2, 0, 0, 0, 0, 1]),
            ipv4: Some(([10, 0, 2, 15], 20)),
            ipv6: Some((v6("fd00::15"), 64)),
            router: Some([10, 0, 2, 2]),
            up: true,
            ..nic("v0")
        };
        // Twice the same is fine.
        for _ in 0..2 {
            apply(&all).unwrap();
            let shown = ip("addr show v0");
            assert!(shown.contains("link/ether 02:00:00:00:00:01"), "{shown}");
            assert!(shown.contains("inet 10.0.2.15/20 brd 10.0.15.255"), "{shown}");
            assert!(shown.contains("inet6 fd00::15/64"), "{shown}");
            assert_eq!(ip("route show default").trim(), "default via 10.0.2.2 dev v0");
        }
        // Only the MAC: the rest survives its moment of being down, but for the link-local address.
        apply(&NicIdentity { mac: Some([2, 0, 0, 0, 0, 2]), ..nic("v0") }).unwrap();
        let shown = ip("addr show v0");
        assert!(shown.contains("link/ether 02:00:00:00:00:02"), "{shown}");
        assert!(shown.contains("inet 10.0.2.15/20"), "{shown}");
        assert!(shown.contains("inet6 fd00::15/64"), "{shown}");
        assert!(!shown.contains("ff:fe00:1/64"), "{shown}");
        assert_eq!(ip("route show default").trim(), "default via 10.0.2.2 dev v0");
        // Another router takes the place of all that there are, another address that of the first.
        ip("route add default via 10.0.2.9 dev v0 metric 50");
        ip("route add default dev v0 metric 60");
        apply(&NicIdentity { router: Some([10, 0, 2, 3]), ..nic("v0") }).unwrap();
        assert_eq!(ip("route show default").trim(), "default via 10.0.2.3 dev v0");
        apply(&NicIdentity { ipv4: Some(([10, 0, 2, 16], 24)), ..nic("v0") }).unwrap();
        let shown = ip("-4 addr show v0");
        assert!(shown.contains("inet 10.0.2.16/24 brd 10.0.2.255"), "{shown}");
        assert!(!shown.contains("10.0.2.15"), "{shown}");
        assert_eq!(ip("route show default").trim(), "default via 10.0.2.3 dev v0");
        // A route that a DHCP client has set is there, and does not come a second time.
        let dhcp = "default via 10.0.2.3 dev v0 proto dhcp src 10.0.2.16";
        ip(&format!("route replace {dhcp}"));
        apply(&NicIdentity { up: true, ..nic("v0") }).unwrap();
        assert_eq!(ip("route show default").trim(), dhcp);
        // An interface that is down stays down.
        ip("link set v0 down");
        apply(&NicIdentity { mac: Some([2, 0, 0, 0, 0, 3]), ..nic("v0") }).unwrap();
        assert!(!Interface::named("v0").unwrap().is_up().unwrap());
        assert!(ip("link show v0").contains("02:00:00:00:00:03"));
    }
}
