//! Many datagrams a system call.

use std::io;
use std::mem::zeroed;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// The most datagrams a call.
pub const BATCH: usize = 64;

fn batch(
    octets: *mut u8,
    size: usize,
    count: usize,
    parts: &mut [libc::iovec; BATCH],
) -> [libc::mmsghdr; BATCH] {
    // SAFETY: all-zero is a valid mmsghdr.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
    for (index, (message, part)) in messages.iter_mut().zip(parts).enumerate().take(count) {
        part.iov_base = octets.wrapping_add(index * size).cast();
        part.iov_len = size;
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    messages
}

const NO_PART: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Sends the datagrams of `size` octets that lie one after another in `octets`, at most [`BATCH`]
/// of them, to the socket's peer; says how many the kernel took.
pub fn send(socket: &UdpSocket, octets: &[u8], size: usize) -> io::Result<usize> {
    let count = (octets.len() / size.max(1)).min(BATCH);
    let mut parts = [NO_PART; BATCH];
    let mut messages = batch(octets.as_ptr().cast_mut(), size, count, &mut parts);
    // SAFETY: `count` messages, each with one part inside `octets`, which sending only reads; all
    // of it lives until the call returns.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            0,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives datagrams into rooms of `size` octets in `octets`, at most [`BATCH`] of them: waits (as
/// long as the socket's timeout) for the first and takes what is there. Says how many came.
pub fn receive(socket: &UdpSocket, octets: &mut [u8], size: usize) -> io::Result<usize> {
    let count = (octets.len() / size.max(1)).min(BATCH);
    let mut parts = [NO_PART; BATCH];
    let mut messages = batch(octets.as_mut_ptr(), size, count, &mut parts);
    // SAFETY: as in `send`; the rooms do not overlap and are exclusively ours.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_WAITFORONE,
            std::ptr::null_mut(),
        )
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// Gives a socket room for `octets`, beyond the system's limit for ordinary users.
pub fn set_room(socket: &UdpSocket, receiving: bool, octets: i32) -> io::Result<()> {
    let option = if receiving {
        libc::SO_RCVBUFFORCE
    } else {
        libc::SO_SNDBUFFORCE
    };
    // SAFETY: the value is a live i32 and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const octets).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets the calling thread's sleeps end within a microsecond of their time, not fifty.
pub fn sleep_precisely() {
    // SAFETY: plain integers. It cannot fail; if it did, pacing would be coarser.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000 as libc::c_ulong, 0, 0, 0) };
}
