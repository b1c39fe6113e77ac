//! What a rendering may still spend. Whatever computes, copies or descends counts here, and values are made here.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::syntax::Name;
use super::value::{Dict, Object, Seq, SeqKind, Value};
use super::{Error, Result, limits};

/// Bytes that a value takes in a list, and an entry in a dict twice.
pub const SLOT_BYTES: usize = 32;
/// Bytes that are read or written in a step.
const STEP_BYTES: usize = 64;

/// Steps, bytes and levels of one rendering.
#[derive(Default)]
pub struct Budget {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    depth: Cell<u64>,
    /// The namespaces. They can refer to themselves and to each other in long chains, so they are emptied one by one at
    /// the end.
    namespaces: RefCell<Vec<Rc<Object>>>,
}

impl Drop for Budget {
    fn drop(&mut self) {
        for object in self.namespaces.borrow().iter() {
            if let Object::Namespace(variables) = &**object {
                let variables = variables.take();
                drop(variables);
            }
        }
    }
}

impl Budget {
    /// Counts `n` steps.
    pub fn step(&self, n: usize) -> Result<()> {
        let steps = self.steps.get().saturating_add(n as u64);
        self.steps.set(steps);
        if steps > limits::STEPS { Err(Error::limit("steps of evaluation", limits::STEPS)) } else { Ok(()) }
    }

    /// Counts the reading of `n_bytes` of text.
    pub fn scan(&self, n_bytes: usize) -> Result<()> {
        self.step(n_bytes / STEP_BYTES)
    }

    /// Counts `n_bytes` that are about to be made.
    pub fn reserve(&self, n_bytes: usize) -> Result<()> {
        let bytes = self.bytes.get().saturating_add(n_bytes as u64);
        self.bytes.set(bytes);
        if bytes > limits::MEMORY {
            return Err(Error::limit("bytes of text and lists made while rendering", limits::MEMORY));
        }
        self.scan(n_bytes)
    }

    /// Appends to a text that is being made.
    pub fn push(&self, out: &mut String, text: &str) -> Result<()> {
        self.reserve(text.len())?;
        out.push_str(text);
        Ok(())
    }

    /// A text that is no longer than those it was made of.
    pub fn text(&self, text: &str) -> Result<Value> {
        self.reserve(SLOT_BYTES + text.len())?;
        Ok(Value::str(text))
    }

    /// A sequence.
    pub fn seq(&self, items: Vec<Value>, kind: SeqKind) -> Result<Value> {
        self.reserve(SLOT_BYTES * (items.len() + 1))?;
        self.step(items.len())?;
        let seq = Value::Seq(Rc::new(Seq::new(items, kind)));
        self.check_depth(&seq)?;
        Ok(seq)
    }

    pub fn list(&self, items: Vec<Value>) -> Result<Value> {
        self.seq(items, SeqKind::List)
    }

    pub fn tuple(&self, items: Vec<Value>) -> Result<Value> {
        self.seq(items, SeqKind::Tuple)
    }

    /// Refuses values that are nested too deep.
    pub fn check_depth(&self, value: &Value) -> Result<()> {
        if u64::from(value.depth()) > limits::VALUE_DEPTH {
            return Err(Error::limit("levels of nested lists and dicts", limits::VALUE_DEPTH));
        }
        Ok(())
    }

    /// A dict whose keys are known to be distinct.
    pub fn dict_of(&self, dict: Dict) -> Result<Value> {
        let dict = Value::Dict(Rc::new(dict));
        self.check_depth(&dict)?;
        Ok(dict)
    }

    pub fn namespace(&self, variables: HashMap<Name, Value>) -> Result<Value> {
        self.reserve(SLOT_BYTES * (4 + 2 * variables.len()))?;
        let object = Rc::new(Object::Namespace(RefCell::new(variables)));
        self.namespaces.borrow_mut().push(object.clone());
        Ok(Value::Object(object))
    }

    /// An object other than a namespace.
    pub fn object(&self, object: Object) -> Result<Value> {
        self.reserve(4 * SLOT_BYTES)?;
        let value = Value::Object(Rc::new(object));
        self.check_depth(&value)?;
        Ok(value)
    }

    /// Runs `work` one level deeper.
    pub fn deeper<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.step(1)?;
        let depth = self.depth.get() + 1;
        if depth > limits::DEPTH {
            return Err(Error::limit("levels of nested expressions, blocks and calls", limits::DEPTH));
        }
        self.depth.set(depth);
        let result = work();
        self.depth.set(depth - 1);
        result
    }
}
