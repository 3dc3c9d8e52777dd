//! A tap device in the network namespace that was just made, for a machine monitor that knows nothing else, and a socket
//! on its other side. The namespace has no other device, no address and no route: what the monitor writes to the tap
//! ends in that socket or nowhere. Must be done before capabilities go and sockets are denied.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::super::Tap;

const DEVICE: &str = "/dev/net/tun";
/// What the socket may hold that nobody has read yet; the kernel takes off what it does not allow.
const BUFFER: libc::c_int = 4 << 20;

/// Makes the device, sets it up, and gives the socket that sees its frames, each behind a virtio-net header of ten
/// bytes (packet(7), `PACKET_VNET_HDR`).
pub(super) fn make(tap: &Tap) -> io::Result<OwnedFd> {
    // The kernel's own neighbour discovery has nobody to talk to. Where this is read-only it only talks in vain.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut request = request(Tap::NAME);
    request.ifr_ifru.ifru_flags = short(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    change(&device, libc::TUNSETIFF, &mut request)?;
    #[expect(unsafe_code, reason = "TUNSETPERSIST has no wrapper")]
    // SAFETY: its argument is a number, and the descriptor is open.
    let kept = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1) } == 0;
    if !kept {
        return Err(io::Error::last_os_error());
    }
    let socket = packet_socket()?;
    request = self::request(Tap::NAME);
    change(&socket, libc::SIOCGIFINDEX, &mut request)?;
    #[expect(unsafe_code, reason = "a union of the kernel's interface")]
    // SAFETY: SIOCGIFINDEX has just written this field.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    request.ifr_ifru.ifru_mtu = i32::try_from(tap.mtu).map_err(io::Error::other)?;
    change(&socket, libc::SIOCSIFMTU, &mut request)?;
    // Whatever address the guest has taken: its frames are for the other side.
    request.ifr_ifru.ifru_flags = short(libc::IFF_UP | libc::IFF_NOARP | libc::IFF_PROMISC)?;
    change(&socket, libc::SIOCSIFFLAGS, &mut request)?;
    bind(&socket, index)?;
    Ok(socket)
}

fn short(flags: libc::c_int) -> io::Result<libc::c_short> {
    libc::c_short::try_from(flags).map_err(io::Error::other)
}

fn request(name: &str) -> libc::ifreq {
    #[expect(unsafe_code, reason = "the kernel's interface is a structure with a union")]
    // SAFETY: all of its fields are numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last one stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn change(of: &impl std::os::fd::AsRawFd, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    #[expect(unsafe_code, reason = "network devices are set up by ioctls that have no wrapper")]
    // SAFETY: each of these reads and writes no more than a whole `ifreq`, which outlives the call.
    let failed = unsafe { libc::ioctl(of.as_raw_fd(), what, std::ptr::from_mut(request)) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn packet_socket() -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "rustix has no packet sockets")]
    // SAFETY: a plain system call; the descriptor that it gives is nobody else's. It hears nothing until it is bound.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    // What we send ourselves, and what the kernel says on its own account, is not the guest's.
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    Ok(socket)
}

fn set(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "these options have no wrapper")]
    // SAFETY: the value is a number of the size given and outlives the call, which only reads it.
    let failed =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), size) }
            != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn bind(socket: &OwnedFd, index: libc::c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "rustix has no packet sockets")]
    // SAFETY: all of its fields are numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = index;
    let size = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: the address is of the size given and outlives the call, which only reads it.
    let failed = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), size) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}
