//! Values: Python's, as far as templates see them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::syntax::{For, Macro, Name};

#[derive(Clone)]
pub enum Value {
    /// The name that was not found, for messages.
    Undefined(Option<Name>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Seq(Rc<Seq>),
    Dict(Rc<Dict>),
    Object(Rc<Object>),
}

/// What a sequence is in Python. It decides about output, comparison, subscripts and truth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeqKind {
    List,
    Tuple,
    /// The keys, values or items of a dict, with the name of that type: no subscripts.
    View(&'static str),
    /// What `groupby` returns for each group: a tuple whose items are also called `grouper` and `list`.
    Group,
    /// A generator, as most filters return: it has no length, is always true, and can be read once.
    Generator,
}

/// A sequence. It never changes: Jinja's sandbox refuses methods that would change it.
pub struct Seq {
    pub items: Vec<Value>,
    pub kind: SeqKind,
    depth: u32,
    /// Whether a generator has been read.
    read: Cell<bool>,
}

impl Seq {
    pub fn new(items: Vec<Value>, kind: SeqKind) -> Seq {
        let depth = 1 + items.iter().map(Value::depth).max().unwrap_or(0);
        Seq { items, kind, depth, read: Cell::new(false) }
    }

    /// Whether the items have numbers, and can be compared with those of another sequence.
    pub fn is_indexed(&self) -> bool {
        matches!(self.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Group)
    }

    /// The items to iterate over.
    pub fn read(&self) -> &[Value] {
        if self.kind == SeqKind::Generator && self.read.replace(true) { &[] } else { &self.items }
    }
}

/// A dict, in the order of insertion. It never changes.
pub struct Dict {
    pub entries: Vec<(Value, Value)>,
    depth: u32,
}

impl Dict {
    /// A dict of entries with distinct keys.
    pub fn new(entries: Vec<(Value, Value)>) -> Dict {
        let depth = 1 + entries.iter().map(|(key, value)| key.depth().max(value.depth())).max().unwrap_or(0);
        Dict { entries, depth }
    }

    /// The value of a key that is a string.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries
            .iter()
            .find(|(found, _)| matches!(found, Value::Str(s) if **s == *key))
            .map(|(_, value)| value)
    }
}

pub enum Object {
    Namespace(RefCell<HashMap<Name, Value>>),
    Macro(MacroObject),
    Loop(Loop),
    Cycler {
        items: Vec<Value>,
        at: Cell<usize>,
    },
    Joiner {
        separator: Value,
        used: Cell<bool>,
    },
    Builtin(Builtin),
    /// A method of a value, not called yet.
    Method(Value, Name),
}

pub struct MacroObject {
    pub code: Arc<Macro>,
    /// The variables where it was defined.
    pub scope: Rc<Scope>,
}

/// The variable `loop`.
pub struct Loop {
    pub items: Rc<Seq>,
    pub at: Cell<usize>,
    /// From 1.
    pub level: usize,
    /// What `loop.changed` saw last, as text: a loop that kept the values could come to keep itself.
    pub changed: RefCell<Option<String>>,
    /// What a call of a recursive loop runs, and the variables around the loop.
    pub recursion: Option<(Arc<For>, Rc<Scope>)>,
}

/// A function that every template can call.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Builtin {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
    /// `self`: the template, whose blocks are its attributes. Here it has none.
    Template,
}

/// Variables, and those around them.
pub struct Scope {
    pub variables: RefCell<HashMap<Name, Value>>,
    pub parent: Option<Rc<Scope>>,
}

impl Scope {
    pub fn new(parent: Option<Rc<Scope>>) -> Rc<Scope> {
        Rc::new(Scope { variables: RefCell::default(), parent })
    }

    pub fn set(&self, name: Name, value: Value) {
        self.variables.borrow_mut().insert(name, value);
    }
}

impl Value {
    pub fn str(text: impl Into<Arc<str>>) -> Value {
        Value::Str(text.into())
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The value as an integer: Python's booleans are 0 and 1.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Bool(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// The value as a number.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) => !text.is_empty(),
            Value::Seq(seq) => seq.kind == SeqKind::Generator || !seq.items.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            Value::Object(_) => true,
        }
    }

    /// How deep lists and dicts are nested in the value. Namespaces and macros end the count: `Budget` and `Vm` keep them until
    /// the end, and nothing descends into them.
    pub fn depth(&self) -> u32 {
        match self {
            Value::Seq(seq) => seq.depth,
            Value::Dict(dict) => dict.depth,
            Value::Object(object) => match &**object {
                Object::Loop(state) => state.items.depth + 1,
                Object::Cycler { items, .. } => 1 + items.iter().map(Value::depth).max().unwrap_or(0),
                Object::Joiner { separator: value, .. } | Object::Method(value, _) => value.depth() + 1,
                Object::Namespace(_) | Object::Macro(_) | Object::Builtin(_) => 0,
            },
            _ => 0,
        }
    }

    /// The name of the type in Python.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple => "tuple",
                SeqKind::View(name) => name,
                SeqKind::Group => "tuple",
                SeqKind::Generator => "generator",
            },
            Value::Dict(_) => "dict",
            Value::Object(object) => match &**object {
                Object::Namespace(_) => "Namespace",
                Object::Macro(_) => "Macro",
                Object::Loop(_) => "LoopContext",
                Object::Cycler { .. } => "Cycler",
                Object::Joiner { .. } => "Joiner",
                Object::Builtin(_) => "function",
                Object::Method(..) => "method",
            },
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Value {
        Value::Int(value as i128)
    }
}
