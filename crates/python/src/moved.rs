//! What was moved between processes for each function: bytes, copies, time.
//!
//! Counted where pieces and answers pass anyway: one addition for each call that is submitted or block of a map's
//! items, two for each run of answers. Clocks are read only where a large buffer or its answer is at hand; of small ones
//! the time follows from those calls that are timed for the choice of a lane.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use rightlane_runtime::lane::Measured;
use rightlane_runtime::{AnswerBytes, Block, Moved, Run};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// See the module. The two halves are written by different threads, as a rule.
#[derive(Debug, Default)]
pub(crate) struct Account {
    sent: Half,
    answered: Half,
}

/// Arguments, or results.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Half {
    /// Serialised, or copied into shared memory.
    bytes: AtomicU64,
    saved_bytes: AtomicU64,
    copies: AtomicU64,
    ns: AtomicU64,
    /// How many items have large buffers.
    large: AtomicU64,
    /// How many items there were; only of answers.
    items: AtomicU64,
}

fn add(to: &AtomicU64, more: u64) {
    to.fetch_add(more, Ordering::Relaxed);
}

fn get(from: &AtomicU64) -> u64 {
    from.load(Ordering::Relaxed)
}

impl Half {
    #[cold]
    fn count_large(&self, moved: &Moved, items: u64) {
        add(&self.saved_bytes, moved.saved_bytes);
        add(&self.copies, moved.copies);
        add(&self.ns, moved.ns);
        add(&self.large, items);
    }
}

/// What a block's items take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    bytes: u64,
    large: Option<(Moved, u64)>,
}

impl Load {
    pub(crate) fn of(block: &Block) -> Load {
        Load {
            bytes: block.amount().bytes,
            large: block.moved(),
        }
    }
}

impl Account {
    /// Arguments were accepted.
    pub(crate) fn sent(&self, load: &Load) {
        add(&self.sent.bytes, load.bytes);
        if let Some((moved, items)) = &load.large {
            self.sent.count_large(moved, *items);
        }
    }

    /// A result or an exception has come.
    pub(crate) fn answered(&self, answer: &AnswerBytes<'_>) {
        let mut bytes = answer.as_slice().len() as u64;
        if let Some((large, moved)) = answer.moved() {
            bytes += large.saturating_sub(moved.saved_bytes);
            self.answered.count_large(&moved, 1);
        }
        add(&self.answered.bytes, bytes);
        add(&self.answered.items, 1);
    }

    /// Several have.
    pub(crate) fn answered_run(&self, run: &Run) {
        add(&self.answered.bytes, run.bytes_from(0) as u64);
        add(&self.answered.items, run.len() as u64);
    }

    /// Reading a large result was begun then, and is done.
    pub(crate) fn opened(&self, begun: Instant) {
        add(&self.answered.ns, begun.elapsed().as_nanos() as u64);
    }

    /// As `Executor.explain` shows it. Of calls without large buffers it is known what pickling their arguments takes,
    /// each, and of some calls what they took in workers.
    pub(crate) fn to_dict<'py>(
        &self,
        py: Python<'py>,
        pickle_ns: f64,
        in_workers: &Measured,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (sent, answered) = (&self.sent, &self.answered);
        let both = |what: fn(&Half) -> &AtomicU64| get(what(sent)) + get(what(answered));
        let items = get(&answered.items);
        let small = |half: &Half| items.saturating_sub(get(&half.large)) as f64;
        let each = |ns: u64| ns as f64 / in_workers.done.max(1) as f64;
        // Of a large result the worker itself says what it took.
        let ns = both(|half| &half.ns) as f64
            + small(sent) * pickle_ns
            + small(answered) * each(in_workers.pack_ns)
            + items as f64 * each(in_workers.unpack_ns);
        let dict = PyDict::new(py);
        dict.set_item("argument_bytes", get(&sent.bytes))?;
        dict.set_item("result_bytes", get(&answered.bytes))?;
        dict.set_item("saved_bytes", both(|half| &half.saved_bytes))?;
        dict.set_item("copies", both(|half| &half.copies))?;
        dict.set_item("seconds", ns / 1e9)?;
        Ok(dict)
    }
}
