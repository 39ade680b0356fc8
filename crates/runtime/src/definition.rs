//! Definitions: functions and classes that messages refer to by number.
//!
//! A definition is pickled once and travels to each worker once, before the first message that needs
//! it. The worker keeps the bytes and unpickles them only when an item that needs it has been claimed
//! (rule 8). When the last reference goes here, the workers that know it are told to forget it.

use crate::arena::Span;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// See the module.
#[derive(Debug)]
pub struct Definition {
    id: u64,
    body: OnceLock<Body>,
}

#[derive(Debug)]
struct Body {
    /// The id, then the bytes: the payload of a `DEFINE` message.
    frame: Box<[u8]>,
    /// What must be there before this one can be unpickled.
    needs: Vec<Arc<Definition>>,
    /// Large buffers of it, and of all that it needs, in shared memory.
    spans: Vec<Arc<Span>>,
}

impl Definition {
    /// A definition that has its number but no content yet, so that definitions can refer to each other.
    pub fn reserve() -> Arc<Definition> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Definition {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            body: OnceLock::new(),
        })
    }

    /// Gives a reserved definition its content; what it needs has its own by then. `span`: a large buffer that the
    /// bytes speak of. False if it has one already.
    pub fn fill(&self, bytes: &[u8], needs: Vec<Arc<Definition>>, span: Option<Arc<Span>>) -> bool {
        let frame = [&self.id.to_le_bytes()[..], bytes]
            .concat()
            .into_boxed_slice();
        let mut spans: Vec<_> = span.into_iter().collect();
        for span in needs.iter().flat_map(|need| need.spans()) {
            if !spans.iter().any(|known| Arc::ptr_eq(known, span)) {
                spans.push(span.clone());
            }
        }
        let body = Body {
            frame,
            needs,
            spans,
        };
        self.body.set(body).is_ok()
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its bytes; empty while it is only reserved.
    pub fn bytes(&self) -> &[u8] {
        self.body.get().map_or(&[], |body| &body.frame[8..])
    }

    pub(crate) fn frame(&self) -> &[u8] {
        self.body.get().map_or(&[], |body| &body.frame)
    }

    /// Where its large buffers lie, and those of all that it needs.
    pub(crate) fn spans(&self) -> &[Arc<Span>] {
        self.body.get().map_or(&[], |body| &body.spans)
    }

    /// What it refers to.
    pub fn needs(&self) -> &[Arc<Definition>] {
        self.body.get().map_or(&[], |body| &body.needs)
    }
}
