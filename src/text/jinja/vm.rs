//! Evaluation, and the counting of what it spends.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::globals::{self, Args};
use super::repr::brief;
use super::syntax::{CallArgs, CompareOp, Expr, For, Macro, Name, Node, Postfix, Stmt, Target};
use super::value::{Dict, Loop, MacroObject, Object, Seq, SeqKind, Value};
use super::{Error, Result, filters, json, limits, methods, ops, predicates, repr};

/// Bytes that a value takes in a list, and an entry in a dict twice.
const SLOT_BYTES: usize = 32;
/// Bytes that are read or written in a step.
const STEP_BYTES: usize = 64;

/// Variables, and those around them.
pub struct Scope {
    variables: RefCell<HashMap<Name, Value>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    fn new(parent: Option<Rc<Scope>>) -> Rc<Scope> {
        Rc::new(Scope { variables: RefCell::default(), parent })
    }

    fn set(&self, name: Name, value: Value) {
        self.variables.borrow_mut().insert(name, value);
    }
}

/// What comes after a statement.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// One rendering: it evaluates, and counts steps, bytes and levels.
#[derive(Default)]
pub struct Vm {
    steps: Cell<u64>,
    bytes: Cell<u64>,
    depth: Cell<u64>,
    line: Cell<usize>,
    /// The namespaces and the scopes of macros. They can refer to themselves and to each other in long chains, so they are
    /// emptied one by one at the end.
    namespaces: RefCell<Vec<Rc<Object>>>,
    captured: RefCell<Vec<Rc<Scope>>>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        for object in self.namespaces.borrow().iter() {
            if let Object::Namespace(variables) = &**object {
                let variables = variables.take();
                drop(variables);
            }
        }
        for scope in self.captured.borrow().iter() {
            let variables = scope.variables.take();
            drop(variables);
        }
    }
}

// --- counting ------------------------------------------------------------------------------------------------

impl Vm {
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

    /// A dict. Of equal keys the last one counts, in the place of the first.
    pub fn dict(&self, entries: Vec<(Value, Value)>) -> Result<Value> {
        self.reserve(2 * SLOT_BYTES * (entries.len() + 1))?;
        let mut distinct: Vec<(Value, Value)> = Vec::with_capacity(entries.len());
        let mut strings: HashMap<Arc<str>, usize> = HashMap::new();
        for (key, value) in entries {
            self.step(1)?;
            let place = match &key {
                Value::Str(text) => strings.get(text).copied(),
                _ => self.find(&distinct, check_key(&key)?)?,
            };
            match (place, &key) {
                (Some(place), _) => distinct[place].1 = value,
                (None, Value::Str(text)) => {
                    strings.insert(text.clone(), distinct.len());
                    distinct.push((key, value));
                }
                (None, _) => distinct.push((key, value)),
            }
        }
        self.dict_of(Dict::new(distinct))
    }

    /// A dict whose keys are known to be distinct.
    pub fn dict_of(&self, dict: Dict) -> Result<Value> {
        let dict = Value::Dict(Rc::new(dict));
        self.check_depth(&dict)?;
        Ok(dict)
    }

    /// The index of `key`.
    pub fn find(&self, entries: &[(Value, Value)], key: &Value) -> Result<Option<usize>> {
        self.step(entries.len() / 8)?;
        if let Value::Str(text) = key {
            return Ok(entries.iter().position(|(found, _)| matches!(found, Value::Str(s) if s == text)));
        }
        for (i, (found, _)) in entries.iter().enumerate() {
            if ops::equal(self, found, key)? {
                return Ok(Some(i));
            }
        }
        Ok(None)
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

/// Refuses what cannot be a key of a dict.
pub fn check_key(key: &Value) -> Result<&Value> {
    match key {
        Value::Seq(seq) if seq.kind == SeqKind::List => Err(Error::new("a list cannot be a key")),
        Value::Dict(_) => Err(Error::new("a dict cannot be a key")),
        _ => Ok(key),
    }
}

// --- statements ----------------------------------------------------------------------------------------------

impl Vm {
    /// Renders a template with its variables.
    pub fn render(&self, body: &[Node], variables: &[(&str, &serde_json::Value)]) -> Result<String> {
        let root = Scope::new(None);
        for (name, value) in variables {
            root.set((*name).into(), json::to_value(self, value)?);
        }
        let mut out = String::new();
        let rendered = self.run(body, &root, &mut out);
        rendered.map_err(|e| e.at(self.line.get()))?;
        Ok(out)
    }

    fn run(&self, body: &[Node], scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        self.deeper(|| {
            for node in body {
                self.step(1)?;
                self.line.set(node.line);
                let flow = self.statement(&node.stmt, scope, out)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    fn emit(&self, out: &mut String, text: &str) -> Result<()> {
        if (out.len() + text.len()) as u64 > limits::OUTPUT {
            return Err(Error::limit("bytes of output", limits::OUTPUT));
        }
        self.push(out, text)
    }

    /// The output of a body that has variables of its own.
    fn captured(&self, body: &[Node], scope: &Rc<Scope>) -> Result<Value> {
        let mut out = String::new();
        self.run(body, &Scope::new(Some(scope.clone())), &mut out)?;
        Ok(Value::str(out))
    }

    fn statement(&self, stmt: &Stmt, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        match stmt {
            Stmt::Text(text) => self.emit(out, text)?,
            Stmt::Print(expr) => match self.eval(expr, scope)? {
                Value::Str(text) => self.emit(out, &text)?,
                value => {
                    let text = repr::to_text(self, &value)?;
                    self.emit(out, &text)?;
                }
            },
            Stmt::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.is_true() {
                        return self.run(body, scope, out);
                    }
                }
                return self.run(otherwise, scope, out);
            }
            Stmt::For(code) => {
                let items = self.eval(&code.items, scope)?;
                self.for_loop(code, &items, 1, scope, out)?;
            }
            Stmt::Set(target, expr) => {
                let value = self.eval(expr, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::SetBlock(target, filters, body) => {
                let text = self.captured(body, scope)?;
                let value = self.filtered(filters, text, scope)?;
                self.assign(target, value, scope)?;
            }
            Stmt::Macro(code) => {
                let value = self.make_macro(code, scope)?;
                scope.set(code.name.clone(), value);
            }
            Stmt::Call(code, call) => {
                let inner = Scope::new(Some(scope.clone()));
                let caller = self.make_macro(code, &inner)?;
                let text = self.call_with(call, Some(caller), &inner)?;
                let text = repr::to_text(self, &text)?;
                self.emit(out, &text)?;
            }
            Stmt::Filter(filters, body) => {
                let text = self.captured(body, scope)?;
                let text = self.filtered(filters, text, scope)?;
                let text = repr::to_text(self, &text)?;
                self.emit(out, &text)?;
            }
            Stmt::With(values, body) => {
                let inner = Scope::new(Some(scope.clone()));
                for (target, expr) in values {
                    let value = self.eval(expr, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.run(body, &inner, out);
            }
            Stmt::Scope(body) => return self.run(body, &Scope::new(Some(scope.clone())), out),
            Stmt::Other(tag) => {
                return Err(Error::new(format!(
                    "`{{% {tag} %}}` needs another template: a chat template is one file"
                )));
            }
            Stmt::Do(expr) => drop(self.eval(expr, scope)?),
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn for_loop(
        &self,
        code: &Arc<For>,
        items: &Value,
        level: usize,
        scope: &Rc<Scope>,
        out: &mut String,
    ) -> Result<()> {
        let mut items = ops::sequence(self, items)?;
        if let Some(condition) = &code.condition {
            let mut kept = Vec::new();
            for item in items.read() {
                let inner = Scope::new(Some(scope.clone()));
                self.assign(&code.target, item.clone(), &inner)?;
                if self.eval(condition, &inner)?.is_true() {
                    kept.push(item.clone());
                }
            }
            self.reserve(SLOT_BYTES * kept.len())?;
            items = Rc::new(Seq::new(kept, SeqKind::List));
        } else if items.kind == SeqKind::Generator {
            let rest = items.read().to_vec();
            self.reserve(SLOT_BYTES * rest.len())?;
            items = Rc::new(Seq::new(rest, SeqKind::List));
        }
        if items.items.is_empty() {
            self.run(&code.otherwise, &Scope::new(Some(scope.clone())), out)?;
            return Ok(());
        }
        let recursion = code.recursive.then(|| (code.clone(), scope.clone()));
        if code.recursive {
            self.capture(scope)?;
        }
        let state =
            Loop { items: items.clone(), at: Cell::new(0), level, changed: RefCell::new(None), recursion };
        let state = Rc::new(Object::Loop(state));
        let name: Name = "loop".into();
        for (i, item) in items.items.iter().enumerate() {
            if let Object::Loop(state) = &*state {
                state.at.set(i);
            }
            let inner = Scope::new(Some(scope.clone()));
            inner.set(name.clone(), Value::Object(state.clone()));
            self.assign(&code.target, item.clone(), &inner)?;
            if self.run(&code.body, &inner, out)? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        self.step(1)?;
        match target {
            Target::Name(name) => {
                self.reserve(2 * SLOT_BYTES)?;
                scope.set(name.clone(), value);
            }
            Target::Attr(object, name) => {
                let Value::Object(object) = self.lookup(object, scope)? else {
                    return Err(Error::new("only attributes of a namespace can be assigned"));
                };
                let Object::Namespace(variables) = &*object else {
                    return Err(Error::new("only attributes of a namespace can be assigned"));
                };
                self.reserve(2 * SLOT_BYTES)?;
                let old = variables.borrow_mut().insert(name.clone(), value);
                drop(old);
            }
            Target::Tuple(targets) => {
                let items = ops::sequence(self, &value)?;
                let items = items.read();
                if items.len() != targets.len() {
                    let (n, expected) = (items.len(), targets.len());
                    return Err(Error::new(format!("cannot unpack {n} values into {expected} names")));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item.clone(), scope)?;
                }
            }
        }
        Ok(())
    }

    /// Keeps a scope until the end.
    fn capture(&self, scope: &Rc<Scope>) -> Result<()> {
        self.reserve(4 * SLOT_BYTES)?;
        self.captured.borrow_mut().push(scope.clone());
        Ok(())
    }

    fn make_macro(&self, code: &Arc<Macro>, scope: &Rc<Scope>) -> Result<Value> {
        self.capture(scope)?;
        self.object(Object::Macro(MacroObject { code: code.clone(), scope: scope.clone() }))
    }
}

// --- expressions ---------------------------------------------------------------------------------------------

impl Vm {
    fn lookup(&self, name: &Name, scope: &Scope) -> Result<Value> {
        let mut scope = Some(scope);
        while let Some(at) = scope {
            if let Some(value) = at.variables.borrow().get(name) {
                return Ok(value.clone());
            }
            self.step(1)?;
            scope = at.parent.as_deref();
        }
        match globals::find(name) {
            Some(builtin) => Ok(Value::Object(Rc::new(Object::Builtin(builtin)))),
            None => Ok(Value::Undefined(Some(name.clone()))),
        }
    }

    fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.deeper(|| self.eval_here(expr, scope))
    }

    fn eval_here(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        Ok(match expr {
            Expr::None => Value::None,
            Expr::Bool(value) => Value::Bool(*value),
            Expr::Int(value) => Value::Int(*value),
            Expr::Float(value) => Value::Float(*value),
            Expr::Str(text) => Value::Str(text.clone()),
            Expr::Name(name) => self.lookup(name, scope)?,
            Expr::List(items) => self.list(self.eval_all(items, scope)?)?,
            Expr::Tuple(items) => self.tuple(self.eval_all(items, scope)?)?,
            Expr::Dict(items) => {
                let mut entries = Vec::with_capacity(items.len());
                for (key, value) in items {
                    entries.push((self.eval(key, scope)?, self.eval(value, scope)?));
                }
                self.dict(entries)?
            }
            Expr::Captured => Value::str(""),
            Expr::Chain(first, chain) => self.chain(first, chain, None, scope)?,
            Expr::Neg(operand) => ops::negative(&self.eval(operand, scope)?)?,
            Expr::Pos(operand) => ops::positive(&self.eval(operand, scope)?)?,
            Expr::Not(operand) => Value::Bool(!self.eval(operand, scope)?.is_true()),
            Expr::Binary(first, others) => {
                let mut left = self.eval(first, scope)?;
                for (op, right) in others {
                    let right = self.eval(right, scope)?;
                    left = ops::binary(self, *op, &left, &right)?;
                }
                left
            }
            Expr::Concat(operands) => {
                let mut text = String::new();
                for operand in operands {
                    repr::write_text(self, &self.eval(operand, scope)?, &mut text)?;
                }
                Value::str(text)
            }
            Expr::And(operands) => self.shortcut(operands, false, scope)?,
            Expr::Or(operands) => self.shortcut(operands, true, scope)?,
            Expr::Compare(first, others) => {
                let mut left = self.eval(first, scope)?;
                for (op, right) in others {
                    let right = self.eval(right, scope)?;
                    if !self.compare(*op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Expr::If(value, conditions) => {
                for (condition, otherwise) in conditions.iter().rev() {
                    if !self.eval(condition, scope)?.is_true() {
                        return match otherwise {
                            Some(otherwise) => self.eval(otherwise, scope),
                            None => Ok(Value::Undefined(None)),
                        };
                    }
                }
                self.eval(value, scope)?
            }
        })
    }

    fn eval_all(&self, exprs: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    /// `and` and `or`: the first operand whose truth is `until`, or the last one.
    fn shortcut(&self, operands: &[Expr], until: bool, scope: &Rc<Scope>) -> Result<Value> {
        let mut value = Value::None;
        for operand in operands {
            value = self.eval(operand, scope)?;
            if value.is_true() == until {
                break;
            }
        }
        Ok(value)
    }

    fn compare(&self, op: CompareOp, left: &Value, right: &Value) -> Result<bool> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        Ok(match op {
            CompareOp::Eq => ops::equal(self, left, right)?,
            CompareOp::Ne => !ops::equal(self, left, right)?,
            CompareOp::Lt => ops::compare(self, left, right)? == Some(Less),
            CompareOp::Le => matches!(ops::compare(self, left, right)?, Some(Less | Equal)),
            CompareOp::Gt => ops::compare(self, left, right)? == Some(Greater),
            CompareOp::Ge => matches!(ops::compare(self, left, right)?, Some(Greater | Equal)),
            CompareOp::In => ops::contains(self, right, left)?,
            CompareOp::NotIn => !ops::contains(self, right, left)?,
        })
    }

    /// Applies filters to the text of a block.
    fn filtered(&self, filters: &Expr, text: Value, scope: &Rc<Scope>) -> Result<Value> {
        match filters {
            Expr::Chain(_, chain) => {
                chain.iter().try_fold(text, |value, postfix| self.postfix(value, postfix, None, scope))
            }
            _ => Ok(text),
        }
    }

    /// A call with a macro as `caller`.
    fn call_with(&self, call: &Expr, caller: Option<Value>, scope: &Rc<Scope>) -> Result<Value> {
        match call {
            Expr::Chain(first, chain) => self.deeper(|| self.chain(first, chain, caller, scope)),
            other => self.eval(other, scope),
        }
    }

    fn chain(
        &self,
        first: &Expr,
        chain: &[Postfix],
        caller: Option<Value>,
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let mut value = self.eval(first, scope)?;
        let mut i = 0;
        while let Some(postfix) = chain.get(i) {
            self.step(1)?;
            // The block belongs to the last call.
            let caller = caller.clone().filter(|_| i + 1 == chain.len());
            value = match (postfix, chain.get(i + 1)) {
                (Postfix::Attr(name), Some(Postfix::Call(line, args))) if methods::has(&value, name) => {
                    i += 1;
                    let args = self.args(args, scope)?;
                    self.line.set(*line);
                    methods::call(self, &value, name, args)?
                }
                _ => self.postfix(value, postfix, caller, scope)?,
            };
            i += 1;
        }
        Ok(value)
    }

    fn postfix(
        &self,
        value: Value,
        postfix: &Postfix,
        caller: Option<Value>,
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        match postfix {
            Postfix::Attr(name) => self.attr(&value, name),
            Postfix::Item(index) => {
                let index = self.eval(index, scope)?;
                self.item(&value, &index)
            }
            Postfix::Slice(parts) => {
                let mut bounds = [None; 3];
                for (bound, part) in bounds.iter_mut().zip(&**parts) {
                    let Some(part) = part else { continue };
                    *bound = match self.eval(part, scope)? {
                        Value::None => None,
                        index => Some(index.as_int().ok_or_else(|| Error::new("a slice needs integers"))?),
                    };
                }
                ops::slice(self, &value, bounds)
            }
            Postfix::Call(line, args) => {
                let mut args = self.args(args, scope)?;
                args.named.extend(caller.map(|caller| ("caller".into(), caller)));
                self.line.set(*line);
                let result = self.call(&value, args);
                let result = result.map_err(|e| e.at(self.line.get()))?;
                self.line.set(*line);
                Ok(result)
            }
            Postfix::Filter(name, args) => {
                let args = self.args(args, scope)?;
                filters::apply(self, name, value, args)
            }
            Postfix::Test { name, args, negated } => {
                let args = self.args(args, scope)?;
                Ok(Value::Bool(predicates::check(self, name, &value, args)? != *negated))
            }
        }
    }

    fn args(&self, args: &CallArgs, scope: &Rc<Scope>) -> Result<Args> {
        let mut values = Args::default();
        for (expr, is_spread) in &args.positional {
            let value = self.eval(expr, scope)?;
            if *is_spread {
                let items = ops::sequence(self, &value)?;
                self.reserve(SLOT_BYTES * items.items.len())?;
                values.positional.extend_from_slice(items.read());
            } else {
                values.positional.push(value);
            }
        }
        for (name, expr) in &args.named {
            values.named.push((name.clone(), self.eval(expr, scope)?));
        }
        for expr in &args.spread {
            let Value::Dict(dict) = self.eval(expr, scope)? else {
                return Err(Error::new("`**` needs a dict"));
            };
            self.reserve(2 * SLOT_BYTES * dict.entries.len())?;
            for (key, value) in &dict.entries {
                let Value::Str(name) = key else {
                    return Err(Error::new("names of arguments must be strings"));
                };
                values.named.push((name.clone(), value.clone()));
            }
        }
        Ok(values)
    }

    /// `value.name`: a method, else an item, else undefined.
    pub fn attr(&self, value: &Value, name: &Name) -> Result<Value> {
        if methods::has(value, name) {
            return self.object(Object::Method(value.clone(), name.clone()));
        }
        let found = match value {
            Value::Undefined(what) => return Err(undefined(what.as_deref())),
            Value::Dict(dict) => {
                self.step(dict.entries.len() / 8)?;
                dict.get(name).cloned()
            }
            Value::Seq(seq) if seq.kind == SeqKind::Group => {
                let i = ["grouper", "list"].iter().position(|known| **known == **name);
                i.map(|i| seq.items[i].clone())
            }
            Value::Object(object) => match &**object {
                Object::Namespace(variables) => variables.borrow().get(name).cloned(),
                Object::Loop(state) => loop_attr(state, name),
                Object::Cycler { items, at } if **name == *"current" => items.get(at.get()).cloned(),
                Object::Macro(object) if **name == *"name" => Some(Value::Str(object.code.name.clone())),
                _ => None,
            },
            _ => None,
        };
        Ok(found.unwrap_or_else(|| Value::Undefined(Some(name.clone()))))
    }

    /// `value[index]`: an item, else a method, else undefined.
    pub fn item(&self, value: &Value, index: &Value) -> Result<Value> {
        let found = match (value, index) {
            (Value::Undefined(what), _) => return Err(undefined(what.as_deref())),
            (Value::Dict(dict), _) => self.find(&dict.entries, index)?.map(|i| dict.entries[i].1.clone()),
            (Value::Seq(seq), _) if seq.is_indexed() => {
                let i = index.as_int().and_then(|i| ops::index(i, seq.items.len()));
                i.map(|i| seq.items[i].clone())
            }
            (Value::Str(text), _) => match index.as_int() {
                Some(i) => {
                    self.scan(text.len())?;
                    let n = if text.is_ascii() { text.len() } else { text.chars().count() };
                    let c = ops::index(i, n).and_then(|i| text.chars().nth(i));
                    c.map(|c| Value::str(&*c.encode_utf8(&mut [0; 4])))
                }
                None => None,
            },
            (Value::Object(_), Value::Str(name)) => return self.attr(value, name),
            _ => None,
        };
        match (found, index) {
            (Some(found), _) => Ok(found),
            (None, Value::Str(name)) if methods::has(value, name) => self.attr(value, name),
            (None, Value::Str(name)) => Ok(Value::Undefined(Some(name.clone()))),
            (None, _) => Ok(Value::Undefined(None)),
        }
    }

    pub fn call(&self, callee: &Value, args: Args) -> Result<Value> {
        let Value::Object(object) = callee else {
            return Err(match callee {
                Value::Undefined(what) => undefined(what.as_deref()),
                other => Error::new(format!("a {} cannot be called", other.type_name())),
            });
        };
        match &**object {
            Object::Macro(object) => self.call_macro(object, args),
            Object::Builtin(builtin) => globals::call(self, *builtin, args),
            Object::Method(value, name) => methods::call(self, value, name, args),
            Object::Loop(state) => {
                let Some((code, scope)) = &state.recursion else {
                    return Err(Error::new("`loop` can be called only in a `recursive` loop"));
                };
                let [items] = args.take("loop", ["items"])?;
                let items = items.ok_or_else(|| Error::new("`loop` needs a list"))?;
                let mut out = String::new();
                self.deeper(|| self.for_loop(code, &items, state.level + 1, scope, &mut out))?;
                Ok(Value::str(out))
            }
            Object::Cycler { .. } => Err(Error::new("a Cycler cannot be called: `next()` is its method")),
            Object::Joiner { separator, used } => {
                Ok(if used.replace(true) { separator.clone() } else { Value::str("") })
            }
            Object::Namespace(_) => Err(Error::new("a Namespace cannot be called")),
        }
    }

    fn call_macro(&self, object: &MacroObject, args: Args) -> Result<Value> {
        let MacroObject { code, scope } = object;
        let inner = Scope::new(Some(scope.clone()));
        let Args { positional, mut named } = args;
        let mut positional = positional.into_iter();
        for (name, default) in &code.params {
            let given = positional.next().or_else(|| {
                let at = named.iter().position(|(found, _)| found == name)?;
                Some(named.swap_remove(at).1)
            });
            let value = match (given, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default, &inner)?,
                (None, None) => Value::Undefined(Some(name.clone())),
            };
            self.step(1)?;
            inner.set(name.clone(), value);
        }
        if let Some(at) = named.iter().position(|(name, _)| **name == *"caller") {
            let (name, caller) = named.swap_remove(at);
            inner.set(name, caller);
        }
        let rest: Vec<Value> = positional.collect();
        if code.varargs {
            inner.set("varargs".into(), self.tuple(rest)?);
        } else if !rest.is_empty() {
            let n = code.params.len();
            return Err(Error::new(format!("macro `{}` takes at most {n} arguments", code.name)));
        }
        if code.kwargs {
            let entries = named.into_iter().map(|(name, value)| (Value::Str(name), value)).collect();
            inner.set("kwargs".into(), self.dict(entries)?);
        } else if let Some((unknown, _)) = named.first() {
            return Err(Error::new(format!("macro `{}` has no parameter `{unknown}`", code.name)));
        }
        let mut out = String::new();
        self.run(&code.body, &inner, &mut out)?;
        Ok(Value::str(out))
    }
}

fn loop_attr(state: &Loop, name: &str) -> Option<Value> {
    let (at, n) = (state.at.get(), state.items.items.len());
    Some(match name {
        "index" => Value::from(at + 1),
        "index0" => Value::from(at),
        "revindex" => Value::from(n - at),
        "revindex0" => Value::from(n - at - 1),
        "first" => Value::Bool(at == 0),
        "last" => Value::Bool(at + 1 == n),
        "length" => Value::from(n),
        "depth" => Value::from(state.level),
        "depth0" => Value::from(state.level - 1),
        "previtem" => match at.checked_sub(1) {
            Some(previous) => state.items.items[previous].clone(),
            None => Value::Undefined(None),
        },
        "nextitem" => state.items.items.get(at + 1).cloned().unwrap_or(Value::Undefined(None)),
        _ => return None,
    })
}

/// The use of an undefined value for something that needs one.
pub fn undefined(what: Option<&str>) -> Error {
    Error::new(match what {
        Some(name) => format!("`{}` is undefined", brief(name)),
        None => "an item is undefined".to_string(),
    })
}
