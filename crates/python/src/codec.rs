//! How Python values travel: exact scalars, short strings and tuples of them in a form of our own, everything
//! else as CPython's pickle.
//!
//! Exact types only: a subclass has a meaning that only its own pickling knows. Strings that no UTF-8 can
//! hold (lone surrogates) and integers beyond 64 bits are left to the pickler as well.

use crate::cached::Cached;
use crate::definition::PyDefinition;
use crate::ffi;
use crate::sent;
use crate::sent::Sweep;
use crate::shortage::{self, Patient};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyString, PyTuple};
use rightlane_runtime::arena::{LARGE_BYTES, Mine};
use rightlane_runtime::borrowed::Borrowed;
use rightlane_runtime::homes::Home;
use rightlane_runtime::{Arena, Block, Fruit, Moved, Placement, Span};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Instant;

pub(crate) const NONE: u8 = b'N';
const TRUE: u8 = b'T';
const FALSE: u8 = b'F';
const INT: u8 = b'i';
/// An integer of 32 bits.
const SHORT: u8 = b'j';
const FLOAT: u8 = b'd';
const STR: u8 = b's';
const BYTES: u8 = b'b';
const TUPLE: u8 = b't';
/// The rest is a pickle.
pub(crate) const PICKLE: u8 = b'P';
/// The same, and the pickle is the first of the large buffers that came along.
const PLACED_PICKLE: u8 = b'Q';
/// Bytes, which are the only large buffer that came along.
pub(crate) const PLACED_BYTES: u8 = b'R';
/// Of an argument: the number of large buffers in 32 bits, their places, then one of the three above.
const PLACED: u8 = b'O';

/// Longer strings and bytes gain nothing from passing the pickler by.
const MOST_STR_BYTES: usize = 4 * 1024;
const MOST_BYTES: usize = 64 * 1024;
/// Deeper or longer tuples are the pickler's business: it remembers what it has seen.
const MOST_TUPLE_ITEMS: usize = 64;
const MOST_DEPTH: u32 = 4;

/// Appends the value if it is one that we encode ourselves; leaves `out` as it was if not.
pub(crate) fn encode_scalar(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let mark = out.len();
    let done = scalar(value, out, 0);
    if !done {
        out.truncate(mark);
    }
    done
}

fn scalar(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32) -> bool {
    if value.is_none() {
        out.push(NONE);
    } else if let Ok(value) = value.cast_exact::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else {
            return false;
        };
        match i32::try_from(number) {
            Ok(number) => {
                let [a, b, c, d] = number.to_le_bytes();
                out.extend_from_slice(&[SHORT, a, b, c, d]);
            }
            Err(_) => {
                out.push(INT);
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
    } else if let Ok(value) = value.cast_exact::<PyBool>() {
        out.push(if value.is_true() { TRUE } else { FALSE });
    } else if let Ok(value) = value.cast_exact::<PyString>() {
        let Ok(text) = value.to_cow() else {
            return false;
        };
        if text.len() > MOST_STR_BYTES {
            return false;
        }
        out.push(STR);
        sized(text.as_bytes(), out);
    } else if let Ok(value) = value.cast_exact::<PyFloat>() {
        out.push(FLOAT);
        out.extend_from_slice(&value.value().to_le_bytes());
    } else if let Ok(value) = value.cast_exact::<PyTuple>() {
        if depth == MOST_DEPTH || value.len() > MOST_TUPLE_ITEMS {
            return false;
        }
        out.push(TUPLE);
        out.push(value.len() as u8);
        return value
            .iter_borrowed()
            .all(|item| scalar(&item, out, depth + 1));
    } else if let Ok(value) = value.cast_exact::<PyBytes>() {
        if value.as_bytes().len() > MOST_BYTES {
            return false;
        }
        out.push(BYTES);
        sized(value.as_bytes(), out);
    } else {
        return false;
    }
    true
}

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Whether a value that begins so is more than what stands in the message: a pickle, or large bytes beside it.
pub(crate) fn is_pickle(tag: u8) -> bool {
    matches!(tag, PICKLE | PLACED_PICKLE | PLACED_BYTES)
}

/// Whether these are bytes that travel beside the message, and need no pickler.
pub(crate) fn is_large_bytes(value: &Bound<'_, PyAny>) -> bool {
    let bytes = value.cast_exact::<PyBytes>();
    bytes.is_ok_and(|bytes| bytes.as_bytes().len() >= LARGE_BYTES)
}

/// A pickle, and the large buffers that travel beside it.
pub(crate) struct Pickled<'py> {
    pub(crate) pickle: Bound<'py, PyBytes>,
    pub(crate) parts: Vec<Part>,
}

/// A large buffer in shared memory.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) span: Arc<Span>,
    /// All of it or, of a home, a part.
    pub(crate) placement: Placement,
    /// It was placed now, and not sent before.
    pub(crate) new: bool,
    /// How long that took, or finding out that it lay there.
    ns: u64,
}

impl Part {
    pub(crate) fn whole(span: Arc<Span>, new: bool) -> Part {
        let placement = span.placement();
        Part {
            span,
            placement,
            new,
            ns: 0,
        }
    }
}

/// What it took to place these.
pub(crate) fn moved(parts: &[Part]) -> Moved {
    let mut all = Moved::default();
    for part in parts {
        all.add(Moved {
            saved_bytes: if part.new { 0 } else { part.placement.bytes },
            copies: u64::from(part.new),
            ns: part.ns,
        });
    }
    all
}

impl<'py> Pickled<'py> {
    /// Without anything beside it.
    pub(crate) fn plain(pickle: Bound<'py, PyBytes>) -> Pickled<'py> {
        let parts = Vec::new();
        Pickled { pickle, parts }
    }

    /// Places the pickle itself, if it is large and there is room. Returns the tag to write: of a pickle that follows,
    /// or of one that has been placed.
    pub(crate) fn place(&mut self, placing: Option<&Placing>) -> PyResult<u8> {
        let (py, bytes) = (self.pickle.py(), self.pickle.as_bytes());
        if bytes.len() >= LARGE_BYTES
            && let Some(placing) = placing
            && let Some(span) = placing.reserve(py, bytes.len())?
        {
            let begun = Instant::now();
            ffi::fill(py, &span, bytes);
            let mut part = Part::whole(Arc::new(span), true);
            part.ns = begun.elapsed().as_nanos() as u64;
            self.parts.insert(0, part);
            return Ok(PLACED_PICKLE);
        }
        Ok(PICKLE)
    }
}

/// Writes an argument that is large bytes, if there is room for them; else nothing.
pub(crate) fn write_large_bytes(
    value: &Bound<'_, PyAny>,
    placing: &Placing,
    block: &mut Block,
) -> PyResult<bool> {
    let Some(part) = placing.place_bytes(value)? else {
        return Ok(false);
    };
    let placement = part.placement.to_bytes();
    block.note_moved(moved(std::slice::from_ref(&part)));
    block.place([(part.span, part.new)]);
    block.push(|row| {
        row.push(PLACED);
        row.extend_from_slice(&1_u32.to_le_bytes());
        row.extend_from_slice(&placement);
        row.push(PLACED_BYTES);
    });
    Ok(true)
}

/// Writes a pickled argument.
pub(crate) fn write_argument(
    mut pickled: Pickled<'_>,
    placing: Option<&Placing>,
    block: &mut Block,
) -> PyResult<()> {
    let tag = pickled.place(placing)?;
    let bytes = match tag {
        PICKLE => pickled.pickle.as_bytes(),
        _ => &[],
    };
    let placements: Vec<u8> = pickled
        .parts
        .iter()
        .flat_map(|part| part.placement.to_bytes())
        .collect();
    let count = pickled.parts.len() as u32;
    if count > 0 {
        block.note_moved(moved(&pickled.parts));
    }
    block.place(pickled.parts.into_iter().map(|part| (part.span, part.new)));
    block.push(|row| {
        if count > 0 {
            row.push(PLACED);
            row.extend_from_slice(&count.to_le_bytes());
            row.extend_from_slice(&placements);
        }
        row.push(tag);
        row.extend_from_slice(bytes);
    });
    Ok(())
}

/// Reads an argument.
pub(crate) fn decode_argument<'py>(
    py: Python<'py>,
    bytes: &[u8],
    borrowed: Option<&Arc<Borrowed>>,
) -> PyResult<Bound<'py, PyAny>> {
    let Some((&PLACED, rest)) = bytes.split_first() else {
        return decode(py, bytes);
    };
    let mut rest = rest;
    let count = u32::from_le_bytes(take(&mut rest)?);
    let mut buffers = Vec::new();
    for _ in 0..count {
        let (placement, after) = Placement::take(rest).ok_or_else(garbled)?;
        rest = after;
        let borrowed = borrowed.ok_or_else(garbled)?;
        buffers.push(ffi::SharedBuffer::over(py, borrowed.view(placement)?)?);
    }
    unpickle_placed(py, rest, buffers)
}

/// Reads a result.
pub(crate) fn decode_result<'py>(
    py: Python<'py>,
    bytes: &[u8],
    fruits: &[Arc<Fruit>],
) -> PyResult<Bound<'py, PyAny>> {
    if fruits.is_empty() {
        return decode(py, bytes);
    }
    let buffers = fruits
        .iter()
        .map(|fruit| ffi::SharedBuffer::over(py, fruit.clone()))
        .collect::<PyResult<_>>()?;
    unpickle_placed(py, bytes, buffers)
}

fn unpickle_placed<'py>(
    py: Python<'py>,
    bytes: &[u8],
    mut buffers: Vec<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: Cached = Cached::new(c"_pickle", "loads");
    let pickle = match bytes.split_first() {
        Some((&PICKLE, pickle)) => PyBytes::new(py, pickle).into_any(),
        Some((&PLACED_PICKLE, [])) if !buffers.is_empty() => buffers.remove(0),
        Some((&PLACED_BYTES, [])) if buffers.len() == 1 => {
            return ffi::call_one(py.get_type::<PyBytes>().as_any(), &buffers[0]);
        }
        _ => return Err(garbled()),
    };
    let kwargs = PyDict::new(py);
    kwargs.set_item(PyString::intern(py, "buffers"), buffers)?;
    let args = PyTuple::new(py, [pickle])?;
    ffi::call(LOADS.get(py)?, &args, Some(&kwargs))
}

/// Reads a value back: one of ours, or a pickle.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if let Some((&PICKLE, pickle)) = bytes.split_first() {
        return unpickle(py, pickle);
    }
    let mut rest = bytes;
    let value = read(py, &mut rest, 0)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(garbled())
    }
}

fn read<'py>(py: Python<'py>, rest: &mut &[u8], depth: u32) -> PyResult<Bound<'py, PyAny>> {
    let [tag] = take::<1>(rest)?;
    Ok(match tag {
        NONE => py.None().into_bound(py),
        TRUE => PyBool::new(py, true).to_owned().into_any(),
        FALSE => PyBool::new(py, false).to_owned().into_any(),
        SHORT => i32::from_le_bytes(take(rest)?)
            .into_pyobject(py)?
            .into_any(),
        INT => i64::from_le_bytes(take(rest)?)
            .into_pyobject(py)?
            .into_any(),
        FLOAT => PyFloat::new(py, f64::from_le_bytes(take(rest)?)).into_any(),
        STR => {
            let text = std::str::from_utf8(run(rest)?).map_err(|_| garbled())?;
            PyString::new(py, text).into_any()
        }
        BYTES => PyBytes::new(py, run(rest)?).into_any(),
        TUPLE if depth < MOST_DEPTH => {
            let [len] = take::<1>(rest)?;
            let items = (0..len)
                .map(|_| read(py, rest, depth + 1))
                .collect::<PyResult<Vec<_>>>()?;
            PyTuple::new(py, items)?.into_any()
        }
        _ => return Err(garbled()),
    })
}

/// Whether reading this value makes one object that refers to no other: that runs no code of anybody's.
pub(crate) fn is_atom(bytes: &[u8]) -> bool {
    bytes
        .first()
        .is_some_and(|tag| *tag != TUPLE && !is_pickle(*tag))
}

fn take<const N: usize>(rest: &mut &[u8]) -> PyResult<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(garbled)?;
    *rest = tail;
    Ok(*head)
}

fn run<'a>(rest: &mut &'a [u8]) -> PyResult<&'a [u8]> {
    let len = u32::from_le_bytes(take(rest)?) as usize;
    let (head, tail) = rest.split_at_checked(len).ok_or_else(garbled)?;
    *rest = tail;
    Ok(head)
}

fn garbled() -> PyErr {
    PyValueError::new_err("a message between processes is garbled")
}

/// Homes of which an answer speaks.
pub(crate) type LentHomes = Rc<RefCell<Vec<Weak<Home>>>>;

/// Where large buffers are placed, and which of them need not be.
#[derive(Clone, Debug)]
pub(crate) enum Placing {
    /// Results: each has its own place, because its reader may write there. Homes that were lent are noted.
    Results(Arc<Arena>, LentHomes),
    /// Arguments, read in this sweep of a map's input, or in none.
    Arguments(Mine, Option<Arc<Sweep>>, Option<Patient>),
}

impl Placing {
    /// Of arguments, if there is an arena.
    pub(crate) fn arguments(
        sweep: Option<Arc<Sweep>>,
        patient: Option<Patient>,
    ) -> Option<Placing> {
        let arena = rightlane_runtime::arena::mine()?;
        Some(Placing::Arguments(arena, sweep, patient))
    }

    /// Room for so much, as soon as there is some, or None.
    fn reserve(&self, py: Python<'_>, bytes: usize) -> PyResult<Option<Span>> {
        match self {
            Placing::Results(arena, _) => {
                let span = arena.reserve(bytes);
                if span.is_none() {
                    shortage::note_result(bytes);
                }
                Ok(span)
            }
            Placing::Arguments(arena, sweep, patient) => {
                let span = arena.reserve(bytes);
                if span.is_some() {
                    return Ok(span);
                }
                // Others run meanwhile, and may change what was sent.
                if let Some(sweep) = sweep {
                    sweep.forget();
                }
                shortage::reserve(py, arena, bytes, patient.as_ref())
            }
        }
    }

    /// The buffer behind a `PickleBuffer` in shared memory, if it is large and there is room.
    fn place(&self, buffer: &Bound<'_, PyAny>) -> PyResult<Option<Part>> {
        self.place_raw(buffer, ffi::RawBuffer::of(buffer))
    }

    /// The same of bytes.
    pub(crate) fn place_bytes(&self, bytes: &Bound<'_, PyAny>) -> PyResult<Option<Part>> {
        self.place_raw(bytes, ffi::RawBuffer::of_bytes(bytes))
    }

    fn place_raw(
        &self,
        buffer: &Bound<'_, PyAny>,
        raw: Option<ffi::RawBuffer<'_>>,
    ) -> PyResult<Option<Part>> {
        let Some(raw) = raw.filter(|raw| raw.bytes() >= LARGE_BYTES) else {
            return Ok(None);
        };
        let begun = Instant::now();
        let mut part = self.place_large(buffer.py(), &raw)?;
        if let Some(part) = &mut part {
            part.ns = begun.elapsed().as_nanos() as u64;
        }
        Ok(part)
    }

    fn place_large(&self, py: Python<'_>, raw: &ffi::RawBuffer<'_>) -> PyResult<Option<Part>> {
        let (address, bytes) = (raw.address(), raw.bytes());
        let home = Home::of(address, bytes);
        match self {
            Placing::Arguments(arena, sweep, _) => {
                let lent = home.and_then(|home| home.lend(arena, address, bytes));
                if let Some((span, placement)) = lent {
                    let part = Part::whole(span, false);
                    return Ok(Some(Part { placement, ..part }));
                }
                let reserve = || self.reserve(py, bytes);
                sent::place(py, raw, arena, sweep.as_deref(), reserve)
            }
            Placing::Results(arena, lent_homes) => {
                // Its reader frees all of it, and writes there: half a home is copied, and so is one the second time.
                let lent = |home: &Arc<Home>| {
                    let lent_homes = lent_homes.borrow();
                    lent_homes
                        .iter()
                        .any(|lent| lent.as_ptr() == Arc::as_ptr(home))
                };
                if let Some(home) = home.filter(|home| home.bytes() == bytes && !lent(home))
                    && let Some((span, _)) = home.lend(arena, address, bytes)
                {
                    lent_homes.borrow_mut().push(Arc::downgrade(&home));
                    return Ok(Some(Part::whole(span, false)));
                }
                let Some(span) = self.reserve(py, bytes)? else {
                    return Ok(None);
                };
                raw.copy(py, &span);
                Ok(Some(Part::whole(Arc::new(span), true)))
            }
        }
    }
}

thread_local! {
    /// Where the pickler that runs in this thread places large buffers, and those that it has placed.
    static PLACING: RefCell<Option<(Placing, Vec<Part>)>> = const { RefCell::new(None) };
}

/// The pickler's `buffer_callback`. False: the buffer has been placed beside the pickle.
#[pyfunction]
pub(crate) fn place_buffer(buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
    let placing =
        PLACING.with_borrow(|placing| placing.as_ref().map(|(placing, _)| placing.clone()));
    let Some(placing) = placing else {
        return Ok(true);
    };
    let Some(part) = placing.place(buffer)? else {
        return Ok(true);
    };
    Ok(PLACING.with_borrow_mut(|placing| match placing {
        Some((_, parts)) => {
            parts.push(part);
            false
        }
        None => true,
    }))
}

thread_local! {
    static IN_BAND: Cell<bool> = const { Cell::new(false) };
}

/// Whether buffers of what this thread pickles stay in their pickles: of what no piece of work lends to a worker. Returns
/// what held before.
#[pyfunction]
pub(crate) fn keep_in_band(keep: bool) -> bool {
    IN_BAND.replace(keep)
}

/// Places a buffer of a function, or of what stands beside one, and returns the definition that names it; None if it is
/// to stay in its pickle.
#[pyfunction]
pub(crate) fn define_buffer(buffer: &Bound<'_, PyAny>) -> PyResult<Option<PyDefinition>> {
    if IN_BAND.get() {
        return Ok(None);
    }
    let Some(placing) = Placing::arguments(None, None) else {
        return Ok(None);
    };
    let part = placing.place(buffer)?;
    Ok(part.map(|part| PyDefinition::of(sent::definition(&part))))
}

/// Memory of this size whose contents can be sent without a copy, writable; None where there is none to be had.
#[pyfunction]
pub(crate) fn allocate(py: Python<'_>, bytes: usize) -> PyResult<Option<Bound<'_, PyAny>>> {
    let home = if bytes < LARGE_BYTES {
        None
    } else {
        Home::make(bytes)
    };
    home.map(|home| ffi::SharedBuffer::over(py, home))
        .transpose()
}

/// The bytes behind a `PickleBuffer` in such memory; None if they are few, or where there is none to be had.
#[pyfunction]
pub(crate) fn store<'py>(buffer: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = buffer.py();
    let raw = ffi::RawBuffer::of(buffer).filter(|raw| raw.bytes() >= LARGE_BYTES);
    let stored = raw.and_then(|raw| {
        let home = Home::make(raw.bytes())?;
        raw.copy(py, home.span());
        Some(home)
    });
    stored
        .map(|home| ffi::SharedBuffer::over(py, home))
        .transpose()
}

/// Whether this memory, of this address and size, was allocated so.
#[pyfunction]
pub(crate) fn is_allocated(address: usize, bytes: usize) -> bool {
    Home::of(address, bytes).is_some()
}

/// In a worker: the memory that such a definition names, as this task's own.
#[pyfunction]
pub(crate) fn view_buffer<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let (placement, _) = Placement::take(bytes).ok_or_else(garbled)?;
    let borrowed = rightlane_runtime::borrowed::mine().ok_or_else(garbled)?;
    ffi::SharedBuffer::over(py, borrowed.view(placement)?)
}

/// CPython's own pickler, protocol 5, with large buffers placed in shared memory, if there is any.
pub(crate) fn pickle<'py>(
    value: &Bound<'py, PyAny>,
    placing: Option<&Placing>,
) -> PyResult<Pickled<'py>> {
    static DUMPS: Cached = Cached::new(c"_pickle", "dumps");
    let Some(placing) = placing else {
        return plain_pickle(value).map(Pickled::plain);
    };
    static PLACING_KEYWORDS: Cached = Cached::new(c"rightlane._core", "_placing");
    let py = value.py();
    let kwargs = PLACING_KEYWORDS.get(py)?.cast::<PyDict>()?;
    // What is being pickled may pickle something itself.
    let outer = PLACING.replace(Some((placing.clone(), Vec::new())));
    let args = (value, 5).into_pyobject(py)?;
    let pickled = ffi::call(DUMPS.get(py)?, &args, Some(kwargs));
    let placed = PLACING.replace(outer);
    Ok(Pickled {
        pickle: pickled?.cast_into::<PyBytes>()?,
        parts: placed.map_or_else(Vec::new, |(_, parts)| parts),
    })
}

/// The keywords that make a pickler place buffers; made once.
pub(crate) fn placing_keywords(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let kwargs = PyDict::new(py);
    let place = pyo3::wrap_pyfunction!(place_buffer, py)?;
    kwargs.set_item("buffer_callback", place)?;
    Ok(kwargs)
}

/// CPython's own pickler, protocol 5.
pub(crate) fn plain_pickle<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    static DUMPS: Cached = Cached::new(c"_pickle", "dumps");
    Ok(ffi::call1(DUMPS.get(value.py())?, (value, 5))?.cast_into::<PyBytes>()?)
}

fn unpickle<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: Cached = Cached::new(c"_pickle", "loads");
    // A copy, because the message is nobody's that Python could keep alive; large pickles are placed, and come as views.
    ffi::call1(LOADS.get(py)?, (PyBytes::new(py, pickle),))
}

/// Whether a pickle may name something of `__main__`, which is another module in a worker.
pub(crate) fn mentions_main(pickle: &[u8]) -> bool {
    memchr::memmem::find(pickle, b"__main__").is_some()
}

/// Pickles `(args, kwargs)` of one call.
pub(crate) fn call_payload<'py>(
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = args.py();
    let kwargs = match kwargs {
        Some(kwargs) => kwargs.clone().into_any(),
        None => py.None().into_bound(py),
    };
    Ok((args, kwargs).into_pyobject(py)?.into_any())
}
