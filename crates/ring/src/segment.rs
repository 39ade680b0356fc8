//! The two segments of a worker, made, sealed and mapped, and the safe ends of both sides.
//!
//! Segments are memfds: nameless, so nothing is left behind however the processes end. Both are
//! sealed against resizing (a reader of a shrunk file dies of SIGBUS), the task segment also against
//! any further writable mapping, after the parent made its own. The descriptors are needed only to
//! map: hand them to the worker and close them.
//!
//! A [`ParentEnd`] or [`WorkerEnd`] owns its mappings. The rings are public fields, so that one can
//! be used while the other is borrowed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::board::Board;
use crate::claim::{self, Attempt, Claim};
use crate::layout::{self, ANSWERS_MAGIC, HEADER_BYTES, Identity, TASKS_MAGIC, VERSION};
use crate::map::Map;
use crate::ring::{Consumer, Producer, Ring};
use crate::sleep::{self, Listener, Wants};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const FIXED_SIZE: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Why a worker cannot take up its segments.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The system refused.
    #[error("segment cannot be mapped: {0}")]
    Io(#[from] io::Error),
    /// The descriptor is of something else.
    #[error("not a segment of this kind (magic {found:#018x})")]
    Magic {
        /// What stands where the magic should.
        found: u64,
    },
    /// The parent is of another version.
    #[error("segment of layout version {found}, this is version {VERSION}")]
    Version {
        /// The parent's version.
        found: u64,
    },
    /// File size and ring sizes contradict each other.
    #[error("segment of {file_bytes} bytes for rings of {task_ring_bytes} and {answer_ring_bytes}")]
    Size {
        /// The file's size.
        file_bytes: u64,
        /// The task ring's size according to the header.
        task_ring_bytes: u64,
        /// The answer ring's size according to the header.
        answer_ring_bytes: u64,
    },
    /// The segment could shrink under our feet.
    #[error("segment is not sealed against resizing")]
    Unsealed,
    /// The two segments are not of one pair: their ring sizes differ.
    #[error("task and answer segments do not belong together")]
    Mismatch,
}

impl From<rustix::io::Errno> for AttachError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// One memfd of a pair, not mapped yet.
#[derive(Debug)]
struct Segment {
    fd: OwnedFd,
}

impl Segment {
    fn create(name: &str, magic: u64, ring_bytes: usize, sizes: [usize; 2]) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know NOEXEC_SEAL, later ones may insist on it.
        let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
            other => other?,
        };
        rustix::fs::ftruncate(&fd, (HEADER_BYTES + ring_bytes) as u64)?;
        // Written through the descriptor, because the parent maps its answer segments read-only.
        let identity = [magic, VERSION, sizes[0] as u64, sizes[1] as u64];
        let bytes: Vec<u8> = identity
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let written = rustix::io::pwrite(&fd, &bytes, 0)?;
        assert_eq!(written, bytes.len(), "short write to a memfd");
        Ok(Self { fd })
    }

    fn seal(&self, seals: SealFlags) -> io::Result<()> {
        rustix::fs::fcntl_add_seals(&self.fd, seals | SealFlags::SEAL)?;
        Ok(())
    }
}

/// Checks one segment and returns the sizes of the task and of the answer ring.
fn inspect(fd: BorrowedFd<'_>, magic: u64) -> Result<[usize; 2], AttachError> {
    // First of all: from here on the size is what it is.
    match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) if seals.contains(FIXED_SIZE) => {}
        // EINVAL is a file that knows no seals.
        Ok(_) | Err(rustix::io::Errno::INVAL) => return Err(AttachError::Unsealed),
        Err(errno) => return Err(errno.into()),
    }
    let mut words = [0_u64; size_of::<Identity>() / 8];
    for (index, word) in words.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        // A file too short leaves zeros, which are no magic.
        rustix::io::pread(fd, &mut bytes, index as u64 * 8)?;
        *word = u64::from_ne_bytes(bytes);
    }
    let [found_magic, version, task_ring_bytes, answer_ring_bytes] = words;
    if found_magic != magic {
        return Err(AttachError::Magic { found: found_magic });
    }
    if version != VERSION {
        return Err(AttachError::Version { found: version });
    }
    let file_bytes = rustix::fs::fstat(fd)?.st_size as u64;
    let ring_bytes = if magic == TASKS_MAGIC {
        task_ring_bytes
    } else {
        answer_ring_bytes
    };
    if !layout::is_ring_size(task_ring_bytes)
        || !layout::is_ring_size(answer_ring_bytes)
        || file_bytes != HEADER_BYTES as u64 + ring_bytes
    {
        return Err(AttachError::Size {
            file_bytes,
            task_ring_bytes,
            answer_ring_bytes,
        });
    }
    Ok([task_ring_bytes as usize, answer_ring_bytes as usize])
}

/// Both segments of a worker, mapped.
#[derive(Debug)]
struct Pair {
    tasks: Map,
    answers: Map,
}

/// The ring that carries tasks to the worker.
#[derive(Debug)]
pub struct TaskRing(Arc<Pair>);

impl Ring for TaskRing {
    fn tail(&self) -> &AtomicU64 {
        &self.0.tasks.task_header().tasks_tail.0
    }

    fn head(&self) -> &AtomicU64 {
        &self.0.answers.answer_header().tasks_head.0
    }

    fn data(&self) -> &[AtomicU64] {
        self.0.tasks.data()
    }
}

/// The ring that carries answers to the parent.
#[derive(Debug)]
pub struct AnswerRing(Arc<Pair>);

impl Ring for AnswerRing {
    fn tail(&self) -> &AtomicU64 {
        &self.0.answers.answer_header().answers_tail.0
    }

    fn head(&self) -> &AtomicU64 {
        &self.0.tasks.task_header().answers_head.0
    }

    fn data(&self) -> &[AtomicU64] {
        self.0.answers.data()
    }
}

/// The parent's end of the channel to one worker.
#[derive(Debug)]
pub struct ParentEnd {
    /// Tasks to the worker.
    pub tasks: Producer<TaskRing>,
    /// Answers from the worker.
    pub answers: Consumer<AnswerRing>,
    pair: Arc<Pair>,
}

impl ParentEnd {
    /// Makes both segments; the descriptors returned, of tasks and of answers, are for the worker.
    ///
    /// Ring sizes are powers of two, from [`layout::MIN_RING_BYTES`] to [`layout::MAX_RING_BYTES`].
    pub fn create(
        task_ring_bytes: usize,
        answer_ring_bytes: usize,
    ) -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let sizes = [task_ring_bytes, answer_ring_bytes];
        if let Some(size) = sizes
            .iter()
            .find(|&&size| !layout::is_ring_size(size as u64))
        {
            let message = format!("ring of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let tasks = Segment::create("rightlane-tasks", TASKS_MAGIC, task_ring_bytes, sizes)?;
        let answers =
            Segment::create("rightlane-answers", ANSWERS_MAGIC, answer_ring_bytes, sizes)?;
        let task_map = Map::writable(tasks.fd.as_fd(), task_ring_bytes)?;
        // FUTURE_WRITE spares the mapping just made and forbids every later one.
        tasks.seal(FIXED_SIZE | SealFlags::FUTURE_WRITE)?;
        answers.seal(FIXED_SIZE)?;
        let answer_map = Map::read_only(answers.fd.as_fd(), answer_ring_bytes)?;
        let pair = Arc::new(Pair {
            tasks: task_map,
            answers: answer_map,
        });
        let end = Self {
            tasks: Producer::new(TaskRing(pair.clone())),
            answers: Consumer::new(AnswerRing(pair.clone())),
            pair,
        };
        Ok((end, tasks.fd, answers.fd))
    }

    /// The futex word on which the worker sleeps.
    pub fn doorbell(&self) -> &AtomicU32 {
        &self.pair.tasks.task_header().doorbell.0
    }

    /// To be asked after `provided` was provided: tasks published, or answers read and so room made.
    /// If true, the doorbell has been rung, and the caller must wake one waiter of its futex.
    #[must_use]
    pub fn must_wake(&self, provided: Wants) -> bool {
        sleep::must_ring(self.asleep(), self.doorbell(), provided)
    }

    /// Whether the worker has announced that it sleeps; for information only.
    pub fn worker_asleep(&self) -> bool {
        sleep::worker_is_asleep(self.asleep())
    }

    /// Announces to the worker that the parent is going to sleep; to be called before every wait.
    /// Look at the rings ([`has_answers`](Self::has_answers), pending pushes) after this.
    pub fn prepare_sleep(&self, wants: Wants) {
        self.announce(wants, Listener::Keeper);
        sleep::announced();
    }

    /// The same without the fence, for a parent with several workers: [`sleep::announced`] comes after the
    /// last of them.
    pub fn announce(&self, wants: Wants, listener: Listener) {
        sleep::parent_announce(self.parent_asleep(), wants, listener);
    }

    /// A way to see from elsewhere whether there are answers, without the right to read them.
    pub fn peephole(&self) -> Peephole {
        Peephole(self.pair.clone())
    }

    /// What the worker has measured.
    pub fn board(&self) -> &Board {
        &self.pair.answers.answer_header().board.0
    }

    /// Takes the announcement back.
    pub fn awake(&self) {
        sleep::parent_awake(self.parent_asleep());
    }

    /// Whether there are answers to pop.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Takes the piece `seq` back, as far as it is not begun; see [`claim`] for what
    /// the claim returned means. Numbers must not be used again for later pieces.
    pub fn revoke(&self, seq: u64) -> Claim {
        let slot = &self.pair.tasks.task_header().revoked.0[claim::slot(seq)];
        claim::revoke(slot, self.claim_word(), seq)
    }

    /// What the worker has claimed now.
    pub fn claim(&self) -> Claim {
        claim::claimed(self.claim_word())
    }

    fn asleep(&self) -> &AtomicU64 {
        &self.pair.answers.answer_header().asleep.0
    }

    fn parent_asleep(&self) -> &AtomicU64 {
        &self.pair.tasks.task_header().parent_asleep.0
    }

    fn claim_word(&self) -> &AtomicU64 {
        &self.pair.answers.answer_header().claim.0
    }
}

/// See [`ParentEnd::peephole`].
#[derive(Clone, Debug)]
pub struct Peephole(Arc<Pair>);

impl Peephole {
    /// Whether there are answers that the parent has not taken, or has not said that it took.
    pub fn has_answers(&self) -> bool {
        let tail = self
            .0
            .answers
            .answer_header()
            .answers_tail
            .0
            .load(Ordering::Relaxed);
        tail != self
            .0
            .tasks
            .task_header()
            .answers_head
            .0
            .load(Ordering::Relaxed)
    }
}

/// See [`WorkerEnd::notes`].
#[derive(Clone, Debug)]
pub struct Notes(Arc<Pair>);

impl Notes {
    /// The board, to be written by one thread at a time.
    pub fn board(&self) -> &Board {
        &self.0.answers.answer_header().board.0
    }
}

/// The worker's end of the channel.
#[derive(Debug)]
pub struct WorkerEnd {
    /// Tasks from the parent.
    pub tasks: Consumer<TaskRing>,
    /// Answers to the parent.
    pub answers: Producer<AnswerRing>,
    pair: Arc<Pair>,
    /// See [`sleep::must_signal`].
    signalled: u64,
}

impl WorkerEnd {
    /// Maps the segments that the parent made. The descriptors are closed.
    pub fn attach(tasks: OwnedFd, answers: OwnedFd) -> Result<Self, AttachError> {
        let sizes = inspect(tasks.as_fd(), TASKS_MAGIC)?;
        if inspect(answers.as_fd(), ANSWERS_MAGIC)? != sizes {
            return Err(AttachError::Mismatch);
        }
        let pair = Arc::new(Pair {
            tasks: Map::read_only(tasks.as_fd(), sizes[0])?,
            answers: Map::writable(answers.as_fd(), sizes[1])?,
        });
        Ok(Self {
            tasks: Consumer::new(TaskRing(pair.clone())),
            answers: Producer::new(AnswerRing(pair.clone())),
            pair,
            signalled: 0,
        })
    }

    /// Where to write what was measured, from elsewhere too.
    pub fn notes(&self) -> Notes {
        Notes(self.pair.clone())
    }

    /// The futex word to sleep on, in a shared mapping. Wait with what
    /// [`prepare_sleep`](Self::prepare_sleep) returned.
    pub fn doorbell(&self) -> &AtomicU32 {
        &self.pair.tasks.task_header().doorbell.0
    }

    /// Announces that the worker is going to sleep, and returns the value to wait on the doorbell
    /// with. Look at the rings after this, then wait, then call [`cancel_sleep`](Self::cancel_sleep).
    pub fn prepare_sleep(&self, wants: Wants) -> u32 {
        sleep::worker_prepare(self.asleep(), self.doorbell(), wants)
    }

    /// Takes the announcement back, whether or not the worker slept.
    pub fn cancel_sleep(&self) {
        sleep::worker_awake(self.asleep());
    }

    /// To be asked after `provided` was provided: answers published, tasks read and so room made.
    /// The caller must signal the eventfd of whoever is returned.
    #[must_use]
    pub fn parent_to_wake(&mut self, provided: Wants) -> Option<Listener> {
        let parent_asleep = &self.pair.tasks.task_header().parent_asleep.0;
        sleep::must_signal(parent_asleep, provided, &mut self.signalled)
    }

    /// Whether [`parent_to_wake`](Self::parent_to_wake) is worth its fence; see [`sleep::is_worth_asking`].
    pub fn parent_may_want(&self, provided: Wants) -> bool {
        let parent_asleep = &self.pair.tasks.task_header().parent_asleep.0;
        sleep::is_worth_asking(parent_asleep, provided, self.signalled)
    }

    /// Claims one item of the piece `seq`, unless it was taken back.
    ///
    /// # Panics
    ///
    /// When `item` has more than 31 bits.
    pub fn claim(&self, seq: u64, item: u32) -> Attempt {
        claim::claim(self.claim_word(), self.revocation(seq), seq, item)
    }

    /// Nothing is claimed any more; to be called after the answer is published.
    pub fn release_claim(&self) {
        claim::release(self.claim_word());
    }

    /// Whether the piece `seq` was taken back.
    pub fn revoked(&self, seq: u64) -> bool {
        claim::is_revoked(self.revocation(seq), seq)
    }

    fn asleep(&self) -> &AtomicU64 {
        &self.pair.answers.answer_header().asleep.0
    }

    fn claim_word(&self) -> &AtomicU64 {
        &self.pair.answers.answer_header().claim.0
    }

    fn revocation(&self, seq: u64) -> &AtomicU64 {
        &self.pair.tasks.task_header().revoked.0[claim::slot(seq)]
    }
}

const _: () = {
    const fn assert_send<T: Send>() {}
    assert_send::<ParentEnd>();
    assert_send::<WorkerEnd>();
};

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::layout::MIN_RING_BYTES;

    fn pair() -> (ParentEnd, OwnedFd, OwnedFd) {
        ParentEnd::create(MIN_RING_BYTES, 2 * MIN_RING_BYTES).unwrap()
    }

    #[test]
    fn both_directions_carry_records() {
        let (mut parent, tasks, answers) = pair();
        let mut worker = WorkerEnd::attach(tasks, answers).unwrap();
        parent.tasks.try_push(7, &[b"do ", b"this"]).unwrap();
        let mut out = Vec::new();
        assert_eq!(worker.tasks.try_pop(&mut out), Ok(Some(7)));
        assert_eq!(out, b"do this");
        assert!(!parent.has_answers());
        worker.answers.try_push(8, &[b"done"]).unwrap();
        assert!(parent.has_answers());
        assert_eq!(parent.answers.try_pop(&mut out), Ok(Some(8)));
        assert_eq!(out, b"do thisdone");
        assert_eq!(parent.tasks.consumed(), Ok(parent.tasks.published()));
    }

    #[test]
    fn each_ring_has_the_size_asked_for() {
        let (parent, tasks, answers) = pair();
        let worker = WorkerEnd::attach(tasks, answers).unwrap();
        assert_eq!(parent.tasks.max_bytes(), MIN_RING_BYTES - 8);
        assert_eq!(worker.answers.max_bytes(), 2 * MIN_RING_BYTES - 8);
        for size in [
            0,
            100,
            MIN_RING_BYTES / 2,
            3 * MIN_RING_BYTES,
            2 * layout::MAX_RING_BYTES,
        ] {
            let error = ParentEnd::create(size, MIN_RING_BYTES).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    /// Rule 16: who has the descriptor of the task segment can read it and nothing else.
    #[test]
    fn task_segment_is_read_only_for_the_worker() {
        let (_parent, tasks, answers) = pair();
        assert!(Map::writable(tasks.as_fd(), MIN_RING_BYTES).is_err());
        assert!(rustix::io::pwrite(&tasks, b"x", 0).is_err());
        for fd in [&tasks, &answers] {
            assert!(rustix::fs::ftruncate(fd, 0).is_err());
            assert!(rustix::fs::ftruncate(fd, 1 << 20).is_err());
            assert!(rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE).is_err());
        }
        assert!(Map::read_only(tasks.as_fd(), MIN_RING_BYTES).is_ok());
    }

    #[test]
    fn what_is_no_segment_is_refused() {
        let (_parent, tasks, answers) = pair();
        let error = WorkerEnd::attach(answers.try_clone().unwrap(), tasks.try_clone().unwrap());
        assert!(matches!(
            error,
            Err(AttachError::Magic {
                found: ANSWERS_MAGIC
            })
        ));
        let (_other, _, foreign) = ParentEnd::create(MIN_RING_BYTES, MIN_RING_BYTES).unwrap();
        let error = WorkerEnd::attach(tasks.try_clone().unwrap(), foreign);
        assert!(matches!(error, Err(AttachError::Mismatch)));
        let file = File::open("/proc/self/exe").unwrap();
        let error = WorkerEnd::attach(file.into(), answers);
        assert!(matches!(error, Err(AttachError::Unsealed)));
    }

    #[test]
    fn wrong_identities_are_refused() {
        let good = [
            TASKS_MAGIC,
            VERSION,
            MIN_RING_BYTES as u64,
            MIN_RING_BYTES as u64,
        ];
        let attach = |identity: [u64; 4], file_bytes: usize| {
            let fd = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&fd, file_bytes as u64).unwrap();
            let bytes = identity.map(u64::to_ne_bytes).concat();
            rustix::io::pwrite(&fd, &bytes[..bytes.len().min(file_bytes)], 0).unwrap();
            rustix::fs::fcntl_add_seals(&fd, FIXED_SIZE).unwrap();
            inspect(fd.as_fd(), TASKS_MAGIC)
        };
        let file_bytes = HEADER_BYTES + MIN_RING_BYTES;
        assert!(attach(good, file_bytes).is_ok());
        for short in [0, 8, 20, HEADER_BYTES, file_bytes - 1, file_bytes + 1] {
            assert!(attach(good, short).is_err(), "{short} bytes");
        }
        for (at, value) in [
            (0, 0),
            (1, VERSION + 1),
            (2, 0),
            (2, 100),
            (2, 8192),
            (3, u64::MAX),
        ] {
            let mut bad = good;
            bad[at] = value;
            assert!(attach(bad, file_bytes).is_err(), "{value} in word {at}");
        }
    }

    #[test]
    fn a_sleep_costs_one_wake() {
        let (parent, tasks, answers) = pair();
        let mut worker = WorkerEnd::attach(tasks, answers).unwrap();
        assert!(!parent.must_wake(Wants::EITHER));
        let value = worker.prepare_sleep(Wants::MESSAGES);
        assert!(parent.worker_asleep());
        assert!(!parent.must_wake(Wants::ROOM), "it does not wait for room");
        assert!(parent.must_wake(Wants::MESSAGES));
        assert_ne!(
            worker.doorbell().load(crate::sync::Ordering::Relaxed),
            value
        );
        assert!(!parent.must_wake(Wants::MESSAGES), "that sleep is over");
        worker.cancel_sleep();
        assert!(!parent.worker_asleep());

        assert!(worker.parent_to_wake(Wants::EITHER).is_none());
        for _ in 0..2 {
            parent.prepare_sleep(Wants::MESSAGES);
            assert!(worker.parent_to_wake(Wants::ROOM).is_none());
            assert!(worker.parent_to_wake(Wants::EITHER).is_some());
            assert!(worker.parent_to_wake(Wants::MESSAGES).is_none());
            parent.awake();
        }
        assert!(worker.parent_to_wake(Wants::EITHER).is_none());
    }

    #[test]
    fn claims_and_revocations_meet() {
        let (parent, tasks, answers) = pair();
        let worker = WorkerEnd::attach(tasks, answers).unwrap();
        assert_eq!(parent.claim(), Claim::NOTHING);
        // Piece 0, item 0 is not “nothing”, and numbers beyond 32 bits are told apart.
        assert_eq!(worker.claim(0, 0), Attempt::Claimed);
        assert_eq!(parent.claim().item_of(0), Some(0));
        let far = (1 << 32) + 5;
        assert_eq!(parent.revoke(far).item_of(far), None);
        assert!(worker.revoked(far) && !worker.revoked(5));
        assert_eq!(worker.claim(5, 9), Attempt::Claimed);
        assert_eq!(worker.claim(far, 9), Attempt::Revoked);
        // Standing back leaves the claim before in place: its answer may not have been read yet.
        assert_eq!(parent.claim().item_of(5), Some(9));
        assert_eq!(worker.claim(6, 3), Attempt::Claimed);
        assert_eq!(parent.revoke(6).item_of(6), Some(3));
        worker.release_claim();
        assert_eq!(parent.claim(), Claim::NOTHING);
    }
}
