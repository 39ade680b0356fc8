//! The engine's side of the template process: the fresh interpreter from which workers are forked.
//!
//! Nothing here waits. The socket is made for datagrams, so a message is whole or not there.

use crate::sys::spawn::{Program, spawn};
use crate::wire::{FromTemplate, Garbled, MOST_DATAGRAM_BYTES, ToTemplate};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most descriptors that travel with one message.
pub(crate) const MOST_DESCRIPTORS: usize = 6;

/// Sends a datagram with descriptors. `Ok(false)`: the socket is full.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<bool> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let pushed = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(pushed, "at most MOST_DESCRIPTORS");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::TOOMANYREFS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A datagram and the descriptors that came with it.
pub(crate) type Received = ([u8; MOST_DATAGRAM_BYTES], usize, Vec<OwnedFd>);

/// Receives a datagram with its descriptors; `None` if none is there. An empty one is the end.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    let mut bytes = [0; MOST_DATAGRAM_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = match rustix::net::recvmsg(socket, &mut parts, &mut ancillary, flags) {
        Ok(message) => message,
        Err(rustix::io::Errno::AGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            descriptors.extend(fds);
        }
    }
    Ok(Some((bytes, message.bytes, descriptors)))
}

/// A running template.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pid: i32,
    pub(crate) ready: bool,
    /// What it imports at this moment: if it dies, of this.
    pub(crate) learning: Option<u32>,
    backlog: VecDeque<(ToTemplate, Vec<OwnedFd>)>,
}

impl Template {
    /// `door` is what workers knock at; see [`crate::hub`].
    pub(crate) fn start(program: &Program, door: BorrowedFd<'_>) -> io::Result<Template> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let engine = rustix::process::pidfd_open(
            rustix::process::getpid(),
            rustix::process::PidfdFlags::empty(),
        )?;
        let pid = spawn(program, &[theirs.as_fd(), engine.as_fd(), door])?;
        let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        Ok(Template {
            socket: ours,
            pidfd,
            pid: pid.as_raw_nonzero().get(),
            ready: false,
            learning: None,
            backlog: VecDeque::new(),
        })
    }

    /// Sends a message now, or as soon as there is room.
    pub(crate) fn send(&mut self, message: ToTemplate, descriptors: &[BorrowedFd<'_>]) {
        if self.backlog.is_empty() {
            match send(self.socket.as_fd(), &message.to_bytes(), descriptors) {
                Ok(true) => return,
                Ok(false) => {}
                // It is gone: its pidfd tells the hub, and whatever was asked of it is asked again.
                Err(_) => return,
            }
        }
        let kept = descriptors
            .iter()
            .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
            .collect::<Result<_, _>>();
        if let Ok(kept) = kept {
            self.backlog.push_back((message, kept));
        }
    }

    /// Sends what did not fit before.
    pub(crate) fn flush(&mut self) {
        while let Some((message, descriptors)) = self.backlog.front() {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match send(self.socket.as_fd(), &message.to_bytes(), &borrowed) {
                Ok(false) => return,
                Ok(true) | Err(_) => drop(self.backlog.pop_front()),
            }
        }
    }

    /// The next message, if one is there.
    pub(crate) fn receive(&mut self) -> Result<Option<(FromTemplate, Vec<OwnedFd>)>, Garbled> {
        match receive(self.socket.as_fd()) {
            Ok(Some((_, 0, _))) | Ok(None) => Ok(None),
            Ok(Some((bytes, len, descriptors))) => Ok(Some((
                FromTemplate::from_bytes(&bytes[..len])?,
                descriptors,
            ))),
            // As in `send`: the pidfd has the last word on whether it lives.
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }

    /// Reaps it; true if it is gone, reaped by us or by somebody else (rule 23).
    pub(crate) fn reap(&self) -> bool {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(None))
    }
}
