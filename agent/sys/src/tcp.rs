//! What the kernel knows of a TCP connection.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

/// Time since the other side has acknowledged anything, be it a question of TCP itself.
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn silence(socket: BorrowedFd<'_>) -> io::Result<Duration> {
    let mut info = mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    // SAFETY: `info` has room for `length` bytes, and both outlive the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all fields are numbers, and every byte was zeroed or written by the kernel.
    let info = unsafe { info.assume_init() };
    Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
        thread::sleep,
    };

    #[test]
    fn an_answer_ends_the_silence() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        sleep(Duration::from_millis(300));
        assert!(silence(server.as_fd()).unwrap() >= Duration::from_millis(200));
        io::Write::write_all(&mut server, b"x").unwrap();
        sleep(Duration::from_millis(50));
        assert!(silence(server.as_fd()).unwrap() < Duration::from_millis(200));
        assert!(silence(std::io::stdin().as_fd()).is_err());
        drop(client);
    }
}
