//! Which large buffers of arguments a worker may be reading.
//!
//! A piece lends its buffers to the worker until it has ended. What the worker still uses then (a task has put an
//! array into a global) it names before, and is kept for it until it says that it is done. When the worker is gone,
//! so is everything that it had borrowed.

use crate::arena::Span;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a worker says of them.
#[derive(Debug)]
pub(crate) enum News {
    /// It goes on using these, which it has from pieces that have not ended.
    Kept(Vec<u64>),
    /// It does not use these any more, which it had kept.
    Released(Vec<u64>),
    /// The piece of this number has ended, and so have all before it.
    Ended(u64),
}

#[derive(Debug, Default)]
pub(crate) struct Loans {
    by_piece: VecDeque<(u64, Vec<Arc<Span>>)>,
    /// By where they begin; with the number of views that the worker has kept of each.
    kept: BTreeMap<u64, (Arc<Span>, usize)>,
}

impl Loans {
    /// The piece of this number has been sent, with these.
    pub(crate) fn lend<'a>(&mut self, seq: u64, spans: impl Iterator<Item = &'a Arc<Span>>) {
        let mut lent: Vec<Arc<Span>> = Vec::new();
        for span in spans {
            // Items that follow each other often have the same ones.
            if !lent
                .iter()
                .rev()
                .take(4)
                .any(|last| Arc::ptr_eq(last, span))
            {
                lent.push(span.clone());
            }
        }
        if !lent.is_empty() {
            self.by_piece.push_back((seq, lent));
        }
    }

    /// False if no well-behaved worker says this. What is not lent any more goes into `over`.
    pub(crate) fn hear(&mut self, news: News, over: &mut Vec<Arc<Span>>) -> bool {
        match news {
            News::Kept(places) => places.into_iter().all(|place| self.keep(place)),
            News::Released(places) => places.into_iter().all(|place| self.release(place, over)),
            News::Ended(seq) => {
                while self.by_piece.front().is_some_and(|(at, _)| *at <= seq) {
                    let ended = self.by_piece.pop_front();
                    over.extend(ended.into_iter().flat_map(|(_, spans)| spans));
                }
                true
            }
        }
    }

    fn keep(&mut self, place: u64) -> bool {
        if let Some((_, views)) = self.kept_at(place) {
            *views += 1;
            return true;
        }
        let mut lent = self.by_piece.iter().flat_map(|(_, spans)| spans);
        let Some(span) = lent.find(|span| span.contains(place)) else {
            return false;
        };
        self.kept.insert(span.placement().id(), (span.clone(), 1));
        true
    }

    fn release(&mut self, place: u64, over: &mut Vec<Arc<Span>>) -> bool {
        let Some((span, views)) = self.kept_at(place) else {
            return false;
        };
        *views -= 1;
        if *views == 0 {
            let id = span.placement().id();
            over.extend(self.kept.remove(&id).map(|(span, _)| span));
        }
        true
    }

    fn kept_at(&mut self, place: u64) -> Option<&mut (Arc<Span>, usize)> {
        let (_, kept) = self.kept.range_mut(..=place).next_back()?;
        kept.0.contains(place).then_some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{Arena, create_file};

    #[test]
    fn a_piece_lends_until_it_ends_and_what_is_kept_until_it_is_released() {
        let arena = Arena::of_results(create_file().unwrap());
        let spans = [(); 3].map(|()| Arc::new(arena.reserve(100).unwrap()));
        let [first, kept, later] = spans.each_ref().map(|span| span.placement().id());
        let page = arena.used_bytes() / 3;
        let mut loans = Loans::default();
        loans.lend(4, spans[..2].iter());
        loans.lend(5, std::iter::empty());
        loans.lend(6, spans[2..].iter());
        drop(spans);
        assert_eq!(arena.used_bytes(), 3 * page);
        assert!(loans.hear(News::Kept(vec![kept]), &mut Vec::new()));
        assert!(loans.hear(News::Ended(4), &mut Vec::new()));
        assert_eq!(arena.used_bytes(), 2 * page);
        assert!(
            !loans.hear(News::Kept(vec![first]), &mut Vec::new()),
            "that is over"
        );
        assert!(
            !loans.hear(News::Released(vec![later]), &mut Vec::new()),
            "that was never kept"
        );
        assert!(
            loans.hear(News::Kept(vec![kept + 9]), &mut Vec::new()),
            "another view, of a part of it"
        );
        assert!(loans.hear(News::Released(vec![kept]), &mut Vec::new()));
        assert_eq!(arena.used_bytes(), 2 * page);
        assert!(loans.hear(News::Released(vec![kept + 9]), &mut Vec::new()));
        assert!(
            !loans.hear(News::Released(vec![kept]), &mut Vec::new()),
            "it was released"
        );
        assert_eq!(arena.used_bytes(), page);
        assert!(loans.hear(News::Ended(u64::MAX), &mut Vec::new()));
        assert_eq!(arena.used_bytes(), 0);
    }
}
