//! Starting a program without forking the caller: `posix_spawn` shares the caller's memory until the
//! exec, so it costs a millisecond where a fork of a large process costs a hundred (rule 15).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// What to start.
#[derive(Clone, Debug)]
pub struct Program {
    /// Absolute path of the executable.
    pub path: CString,
    /// Its arguments, the first one being its name.
    pub argv: Vec<CString>,
    /// Its environment, as `NAME=value`.
    pub env: Vec<CString>,
}

/// Starts the program with the null device as standard input, `descriptors` as descriptors 3, 4, …,
/// all signals at their defaults and none blocked. Returns its pid.
pub fn spawn(program: &Program, descriptors: &[BorrowedFd<'_>]) -> io::Result<i32> {
    let pointers = |strings: &[CString]| -> Vec<*mut libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr().cast_mut())
            .chain([std::ptr::null_mut()])
            .collect()
    };
    let argv = pointers(&program.argv);
    let env = pointers(&program.env);
    // The sources must not be overwritten by an earlier dup2 of the list: move them out of the way.
    let above = 3 + descriptors.len() as RawFd;
    let moved = descriptors
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, above).map_err(io::Error::from))
        .collect::<io::Result<Vec<_>>>()?;
    let mut pid = 0;
    // SAFETY: actions and attributes are initialised before use and destroyed after it; every pointer
    // handed over lives until posix_spawn returns, which is after the exec or its failure.
    let failed = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        let mut attributes: libc::posix_spawnattr_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&mut actions);
        libc::posix_spawnattr_init(&mut attributes);
        let null = c"/dev/null";
        libc::posix_spawn_file_actions_addopen(&mut actions, 0, null.as_ptr(), libc::O_RDONLY, 0);
        for (target, fd) in (3..).zip(&moved) {
            libc::posix_spawn_file_actions_adddup2(&mut actions, fd.as_raw_fd(), target);
        }
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::posix_spawnattr_setsigmask(&mut attributes, &set);
        libc::sigfillset(&mut set);
        libc::posix_spawnattr_setsigdefault(&mut attributes, &set);
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        libc::posix_spawnattr_setflags(&mut attributes, flags as libc::c_short);
        let failed = libc::posix_spawn(
            &mut pid,
            program.path.as_ptr(),
            &actions,
            &attributes,
            argv.as_ptr(),
            env.as_ptr(),
        );
        libc::posix_spawnattr_destroy(&mut attributes);
        libc::posix_spawn_file_actions_destroy(&mut actions);
        failed
    };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    Ok(pid)
}
