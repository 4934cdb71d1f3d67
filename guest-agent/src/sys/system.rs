//! The calls of [`crate::control`] that have no safe wrapper: ioctls of interfaces, file systems and the random device,
//! and kexec_file_load(2).
//!
//! The kernel's structures are given their layout here, as plain bytes with no part left uninitialised, so that nothing
//! but the call itself is unsafe.
#![expect(unsafe_code, reason = "these ioctls and one system call have no safe wrapper")]

use nix::errno::Errno;
use nix::libc;
use nix::sys::ioctl::ioctl_num_type;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The longest seed of [`add_entropy`], in bytes.
pub(crate) const MAX_SEED_LEN: usize = 512;

/// The longest name of an interface, in bytes (netdevice(7): `IFNAMSIZ` with its zero).
pub(crate) const MAX_INTERFACE_NAME_LEN: usize = 15;

/// `struct rand_pool_info` (random(4)) with room for the longest seed.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    len: libc::c_int,
    bytes: [u8; MAX_SEED_LEN],
}

/// `struct ifreq` (netdevice(7)), its union as bytes and aligned as its pointers are.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct InterfaceRequest {
    name: [u8; 16],
    value: [u8; 24],
}

/// `struct sockaddr` of an IPv4 address and no port.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ipv4Socket {
    family: u16,
    port: u16,
    address: [u8; 4],
    zero: [u8; 8],
}

/// `struct in6_ifreq` (linux/ipv6.h).
#[repr(C, align(4))]
struct Ipv6Request {
    address: [u8; 16],
    prefix: u32,
    index: libc::c_int,
}

/// `struct rtentry` (linux/route.h).
#[repr(C)]
struct RouteRequest {
    pad1: libc::c_ulong,
    target: Ipv4Socket,
    gateway: Ipv4Socket,
    mask: Ipv4Socket,
    flags: libc::c_ushort,
    pad2: libc::c_short,
    pad3: libc::c_ulong,
    pad4: libc::c_ulong,
    metric: libc::c_short,
    device: *const u8,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    round_trip: libc::c_ushort,
}

// random(4): the direction and the size are those of `int entropy[2]`, whatever the structure is.
nix::ioctl_write_ptr_bad!(
    rnd_add_entropy,
    nix::request_code_write!(b'R', 0x03, size_of::<[libc::c_int; 2]>()),
    PoolInfo
);
nix::ioctl_none_bad!(rnd_reseed, nix::request_code_none!(b'R', 0x07));
// ioctl_fsfreeze(2): both are declared to move an int and move nothing.
nix::ioctl_write_int_bad!(
    fs_freeze,
    nix::request_code_readwrite!(b'X', 119, size_of::<libc::c_int>())
);
nix::ioctl_write_int_bad!(
    fs_thaw,
    nix::request_code_readwrite!(b'X', 120, size_of::<libc::c_int>())
);
nix::ioctl_write_ptr_bad!(set_address_v6, libc::SIOCSIFADDR, Ipv6Request);
nix::ioctl_write_ptr_bad!(add_route, libc::SIOCADDRT, RouteRequest);
nix::ioctl_write_ptr_bad!(delete_route, libc::SIOCDELRT, RouteRequest);

/// Stirs bytes into the random pool, eight bits of entropy each (random(4), `RNDADDENTROPY`).
///
/// # Errors
/// `EINVAL` for a seed over [`MAX_SEED_LEN`]; else what the kernel says.
pub(crate) fn add_entropy(device: BorrowedFd<'_>, seed: &[u8]) -> nix::Result<()> {
    let mut info = PoolInfo { entropy_bits: 0, len: 0, bytes: [0; MAX_SEED_LEN] };
    info.bytes.get_mut(..seed.len()).ok_or(Errno::EINVAL)?.copy_from_slice(seed);
    info.len = libc::c_int::try_from(seed.len()).map_err(|_| Errno::EINVAL)?;
    info.entropy_bits = info.len.saturating_mul(8);
    // SAFETY: the structure lives through the call, and its length, checked by the copy above, is within its bytes.
    unsafe { rnd_add_entropy(device.as_raw_fd(), &raw const info) }.map(drop)
}

/// Makes the random generator draw a new key from its pool now (random(4), `RNDRESEEDCRNG`).
///
/// # Errors
/// `EINVAL` or `ENOTTY` from kernels that do not know it, before 4.17.
pub(crate) fn reseed(device: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: it takes no argument.
    unsafe { rnd_reseed(device.as_raw_fd()) }.map(drop)
}

/// Freezes the file system that `fd` is on (ioctl_fsfreeze(2)).
///
/// # Errors
/// What the kernel says.
pub(crate) fn freeze(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the kernel ignores the argument.
    unsafe { fs_freeze(fd.as_raw_fd(), 0) }.map(drop)
}

/// Thaws the file system that `fd` is on.
///
/// # Errors
/// What the kernel says; `EINVAL` when it is not frozen.
pub(crate) fn thaw(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the kernel ignores the argument.
    unsafe { fs_thaw(fd.as_raw_fd(), 0) }.map(drop)
}

/// Number of kexec_file_load(2), which libc does not name on every target.
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: libc::c_long = 320;
/// Number of kexec_file_load(2); the generic table's, which all newer architectures share.
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: libc::c_long = 294;

/// `KEXEC_FILE_NO_INITRAMFS` (linux/kexec.h).
const NO_INITRAMFS: libc::c_ulong = 4;

/// Loads a kernel to go on with (kexec_file_load(2)).
///
/// # Errors
/// What the kernel says.
pub(crate) fn kexec_load(
    kernel: BorrowedFd<'_>,
    initrd: Option<BorrowedFd<'_>>,
    cmdline: &CStr,
) -> nix::Result<()> {
    let flags = if initrd.is_none() { NO_INITRAMFS } else { 0 };
    let initrd = initrd.map_or(-1, |initrd| initrd.as_raw_fd());
    // SAFETY: both descriptors are borrowed for the call, and the length is that of the command line with its zero, as
    // the call wants it. It only reads.
    let result = unsafe {
        libc::syscall(
            KEXEC_FILE_LOAD,
            libc::c_long::from(kernel.as_raw_fd()),
            libc::c_long::from(initrd),
            cmdline.count_bytes().saturating_add(1),
            cmdline.as_ptr(),
            flags,
        )
    };
    Errno::result(result).map(drop)
}

/// A default route over IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DefaultRoute {
    /// The router, or zeros when all addresses are on the link.
    pub(crate) gateway: [u8; 4],
    pub(crate) metric: u32,
}

/// A network interface of this network namespace, by name (netdevice(7)).
#[derive(Debug)]
pub(crate) struct Interface {
    socket: OwnedFd,
    name: [u8; 16],
}

/// `IFF_UP`, as wide as the flags are.
const UP: u16 = 1;
/// `RTF_UP`.
const ROUTE_UP: libc::c_ushort = 1;
/// `RTF_GATEWAY`.
const ROUTE_GATEWAY: libc::c_ushort = 2;
/// `AF_INET`, as wide as in an address.
const INET: u16 = 2;

impl Interface {
    /// The interface of that name, which is asked for only by the calls below.
    ///
    /// # Errors
    /// `ENODEV` for a name that no interface can have; else what the kernel says of a socket.
    pub(crate) fn named(name: &str) -> nix::Result<Self> {
        let mut padded = [0; 16];
        if name.is_empty() || name.len() > MAX_INTERFACE_NAME_LEN || name.contains('\0') {
            return Err(Errno::ENODEV);
        }
        padded.get_mut(..name.len()).ok_or(Errno::ENODEV)?.copy_from_slice(name.as_bytes());
        let socket = datagram(AddressFamily::Inet)?;
        Ok(Self { socket, name: padded })
    }

    /// Is it up (administratively)?
    ///
    /// # Errors
    /// `ENODEV` when there is none of that name.
    pub(crate) fn is_up(&self) -> nix::Result<bool> {
        Ok(self.flags()? & UP != 0)
    }

    /// Brings it up or down. As it comes up, the kernel gives `lo` the addresses 127.0.0.1 and ::1.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn set_up(&self, up: bool) -> nix::Result<()> {
        let before = self.flags()?;
        let flags = if up { before | UP } else { before & !UP };
        if flags != before {
            self.ask(libc::SIOCSIFFLAGS, flags.to_ne_bytes())?;
        }
        Ok(())
    }

    /// The link's type (`ARPHRD_…`, linux/if_arp.h), and its address if it is Ethernet's.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn mac(&self) -> nix::Result<(u16, [u8; 6])> {
        let [k0, k1, a0, a1, a2, a3, a4, a5, ..] = self.ask(libc::SIOCGIFHWADDR, [])?;
        Ok((u16::from_ne_bytes([k0, k1]), [a0, a1, a2, a3, a4, a5]))
    }

    /// Gives it a MAC address; many drivers want it to be down.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn set_mac(&self, mac: [u8; 6]) -> nix::Result<()> {
        let [k0, k1] = libc::ARPHRD_ETHER.to_ne_bytes();
        let [a0, a1, a2, a3, a4, a5] = mac;
        self.ask(libc::SIOCSIFHWADDR, [k0, k1, a0, a1, a2, a3, a4, a5]).map(drop)
    }

    /// Gives it an IPv4 address, in place of the one it has, with a prefix of at most 32 bits.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn set_ipv4(&self, address: [u8; 4], prefix: u8) -> nix::Result<()> {
        let host_bits = 32_u32.saturating_sub(u32::from(prefix));
        let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
        self.ask(libc::SIOCSIFADDR, ipv4_bytes(address))?;
        self.ask(libc::SIOCSIFNETMASK, ipv4_bytes(mask.to_be_bytes())).map(drop)
    }

    /// Gives it one more IPv6 address.
    ///
    /// # Errors
    /// `EEXIST` when it has it; `EAFNOSUPPORT` from a kernel without IPv6; else what the kernel says.
    pub(crate) fn add_ipv6(&self, address: [u8; 16], prefix: u8) -> nix::Result<()> {
        let [i0, i1, i2, i3, ..] = self.ask(libc::SIOCGIFINDEX, [])?;
        let index = libc::c_int::from_ne_bytes([i0, i1, i2, i3]);
        let socket = datagram(AddressFamily::Inet6)?;
        let request = Ipv6Request { address, prefix: u32::from(prefix), index };
        // SAFETY: the structure lives through the call, which only reads it.
        unsafe { set_address_v6(socket.as_raw_fd(), &raw const request) }.map(drop)
    }

    /// Adds a default route through it.
    ///
    /// # Errors
    /// `EEXIST` when it is there; else what the kernel says.
    pub(crate) fn add_default(&self, route: DefaultRoute) -> nix::Result<()> {
        let request = self.route(route);
        // SAFETY: the structure and the name, which ends with a zero, live through the call, which only reads them.
        unsafe { add_route(self.socket.as_raw_fd(), &raw const request) }.map(drop)
    }

    /// Deletes a default route through it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn delete_default(&self, route: DefaultRoute) -> nix::Result<()> {
        let request = self.route(route);
        // SAFETY: the structure and the name, which ends with a zero, live through the call, which only reads them.
        unsafe { delete_route(self.socket.as_raw_fd(), &raw const request) }.map(drop)
    }

    fn flags(&self) -> nix::Result<u16> {
        let [f0, f1, ..] = self.ask(libc::SIOCGIFFLAGS, [])?;
        Ok(u16::from_ne_bytes([f0, f1]))
    }

    /// Asks one of the `SIOC[GS]IF…` questions about it, with `value` at the beginning of the union.
    fn ask<const LEN: usize>(
        &self,
        question: libc::c_ulong,
        value: [u8; LEN],
    ) -> nix::Result<[u8; 24]> {
        const { assert!(LEN <= 24) }
        let mut request = InterfaceRequest { name: self.name, value: [0; 24] };
        for (to, from) in request.value.iter_mut().zip(value) {
            *to = from;
        }
        // The type of the question depends on the C library; all of these fit into either.
        let question = question as ioctl_num_type;
        // SAFETY: all questions asked in this file take an ifreq, whose layout this structure has or exceeds; it lives
        // through the call, and any bytes that the kernel writes into it are valid.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), question, &raw mut request) };
        Errno::result(result).map(|_| request.value)
    }

    fn route(&self, route: DefaultRoute) -> RouteRequest {
        let any = Ipv4Socket { family: INET, ..Ipv4Socket::default() };
        let gateway = Ipv4Socket { address: route.gateway, ..any };
        let through = if route.gateway == [0; 4] { 0 } else { ROUTE_GATEWAY };
        RouteRequest {
            pad1: 0,
            target: any,
            gateway,
            mask: any,
            flags: ROUTE_UP | through,
            pad2: 0,
            pad3: 0,
            pad4: 0,
            // The kernel takes one off (route(8): "+1 for binary compatibility").
            metric: libc::c_short::try_from(route.metric.saturating_add(1))
                .unwrap_or(libc::c_short::MAX),
            device: self.name.as_ptr(),
            mtu: 0,
            window: 0,
            round_trip: 0,
        }
    }
}

fn datagram(family: AddressFamily) -> nix::Result<OwnedFd> {
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

/// `struct sockaddr_in` as bytes.
fn ipv4_bytes(address: [u8; 4]) -> [u8; 8] {
    let [f0, f1] = INET.to_ne_bytes();
    let [a0, a1, a2, a3] = address;
    [f0, f1, 0, 0, a0, a1, a2, a3]
}
