//! Evaluation.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::args::Args;
use super::budget::{Budget, SLOT_BYTES};
use super::syntax::{CallArgs, CompareOp, Expr, For, Macro, Name, Node, Postfix, Stmt, Target};
use super::value::{Loop, MacroObject, Object, Scope, Seq, SeqKind, Value};
use super::{
    Error, Result, access, compare, filters, globals, json, limits, methods, ops, predicates, repr, undefined,
};

/// What comes after a statement.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// One rendering.
#[derive(Default)]
pub struct Vm {
    budget: Budget,
    line: Cell<usize>,
    /// The scopes of macros. They can refer to themselves and to each other in long chains, so they are emptied one by one
    /// at the end.
    captured: RefCell<Vec<Rc<Scope>>>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        for scope in self.captured.borrow().iter() {
            let variables = scope.variables.take();
            drop(variables);
        }
    }
}

// --- statements ----------------------------------------------------------------------------------------------

impl Vm {
    /// Renders a template with its variables.
    pub fn render(&self, body: &[Node], variables: &[(&str, &serde_json::Value)]) -> Result<String> {
        let root = Scope::new(None);
        for (name, value) in variables {
            root.set((*name).into(), json::to_value(&self.budget, value)?);
        }
        let mut out = String::new();
        let rendered = self.run(body, &root, &mut out);
        rendered.map_err(|e| e.at(self.line.get()))?;
        Ok(out)
    }

    fn run(&self, body: &[Node], scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        self.budget.deeper(|| {
            for node in body {
                self.budget.step(1)?;
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
        self.budget.push(out, text)
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
                    let text = repr::to_text(&self.budget, &value)?;
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
                let text = repr::to_text(&self.budget, &text)?;
                self.emit(out, &text)?;
            }
            Stmt::Filter(filters, body) => {
                let text = self.captured(body, scope)?;
                let text = self.filtered(filters, text, scope)?;
                let text = repr::to_text(&self.budget, &text)?;
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
        let mut items = ops::sequence(&self.budget, items)?;
        if let Some(condition) = &code.condition {
            let mut kept = Vec::new();
            for item in items.read() {
                let inner = Scope::new(Some(scope.clone()));
                self.assign(&code.target, item.clone(), &inner)?;
                if self.eval(condition, &inner)?.is_true() {
                    kept.push(item.clone());
                }
            }
            self.budget.reserve(SLOT_BYTES * kept.len())?;
            items = Rc::new(Seq::new(kept, SeqKind::List));
        } else if items.kind == SeqKind::Generator {
            let rest = items.read().to_vec();
            self.budget.reserve(SLOT_BYTES * rest.len())?;
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
        self.budget.step(1)?;
        match target {
            Target::Name(name) => {
                self.budget.reserve(2 * SLOT_BYTES)?;
                scope.set(name.clone(), value);
            }
            Target::Attr(object, name) => {
                let Value::Object(object) = self.lookup(object, scope)? else {
                    return Err(Error::new("only attributes of a namespace can be assigned"));
                };
                let Object::Namespace(variables) = &*object else {
                    return Err(Error::new("only attributes of a namespace can be assigned"));
                };
                self.budget.reserve(2 * SLOT_BYTES)?;
                let old = variables.borrow_mut().insert(name.clone(), value);
                drop(old);
            }
            Target::Tuple(targets) => {
                let items = ops::sequence(&self.budget, &value)?;
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
        self.budget.reserve(4 * SLOT_BYTES)?;
        self.captured.borrow_mut().push(scope.clone());
        Ok(())
    }

    fn make_macro(&self, code: &Arc<Macro>, scope: &Rc<Scope>) -> Result<Value> {
        self.capture(scope)?;
        self.budget.object(Object::Macro(MacroObject { code: code.clone(), scope: scope.clone() }))
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
            self.budget.step(1)?;
            scope = at.parent.as_deref();
        }
        match globals::find(name) {
            Some(builtin) => Ok(Value::Object(Rc::new(Object::Builtin(builtin)))),
            None => Ok(Value::Undefined(Some(name.clone()))),
        }
    }

    fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.budget.deeper(|| self.eval_here(expr, scope))
    }

    fn eval_here(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        Ok(match expr {
            Expr::None => Value::None,
            Expr::Bool(value) => Value::Bool(*value),
            Expr::Int(value) => Value::Int(*value),
            Expr::Float(value) => Value::Float(*value),
            Expr::Str(text) => Value::Str(text.clone()),
            Expr::Name(name) => self.lookup(name, scope)?,
            Expr::List(items) => self.budget.list(self.eval_all(items, scope)?)?,
            Expr::Tuple(items) => self.budget.tuple(self.eval_all(items, scope)?)?,
            Expr::Dict(items) => {
                let mut entries = Vec::with_capacity(items.len());
                for (key, value) in items {
                    entries.push((self.eval(key, scope)?, self.eval(value, scope)?));
                }
                compare::dict(&self.budget, entries)?
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
                    left = ops::binary(&self.budget, *op, &left, &right)?;
                }
                left
            }
            Expr::Concat(operands) => {
                let mut text = String::new();
                for operand in operands {
                    repr::write_text(&self.budget, &self.eval(operand, scope)?, &mut text)?;
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
            CompareOp::Eq => compare::equal(&self.budget, left, right)?,
            CompareOp::Ne => !compare::equal(&self.budget, left, right)?,
            CompareOp::Lt => compare::compare(&self.budget, left, right)? == Some(Less),
            CompareOp::Le => matches!(compare::compare(&self.budget, left, right)?, Some(Less | Equal)),
            CompareOp::Gt => compare::compare(&self.budget, left, right)? == Some(Greater),
            CompareOp::Ge => matches!(compare::compare(&self.budget, left, right)?, Some(Greater | Equal)),
            CompareOp::In => ops::contains(&self.budget, right, left)?,
            CompareOp::NotIn => !ops::contains(&self.budget, right, left)?,
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
            Expr::Chain(first, chain) => self.budget.deeper(|| self.chain(first, chain, caller, scope)),
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
            self.budget.step(1)?;
            // The block belongs to the last call.
            let caller = caller.clone().filter(|_| i + 1 == chain.len());
            value = match (postfix, chain.get(i + 1)) {
                (Postfix::Attr(name), Some(Postfix::Call(line, args))) if access::has(&value, name) => {
                    i += 1;
                    let args = self.args(args, scope)?;
                    self.line.set(*line);
                    methods::call(&self.budget, &value, name, args)?
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
            Postfix::Attr(name) => access::attr(&self.budget, &value, name),
            Postfix::Item(index) => {
                let index = self.eval(index, scope)?;
                access::item(&self.budget, &value, &index)
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
                ops::slice(&self.budget, &value, bounds)
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
                filters::apply(&self.budget, name, value, args)
            }
            Postfix::Test { name, args, negated } => {
                let args = self.args(args, scope)?;
                Ok(Value::Bool(predicates::check(&self.budget, name, &value, args)? != *negated))
            }
        }
    }

    fn args(&self, args: &CallArgs, scope: &Rc<Scope>) -> Result<Args> {
        let mut values = Args::default();
        for (expr, is_spread) in &args.positional {
            let value = self.eval(expr, scope)?;
            if *is_spread {
                let items = ops::sequence(&self.budget, &value)?;
                self.budget.reserve(SLOT_BYTES * items.items.len())?;
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
            self.budget.reserve(2 * SLOT_BYTES * dict.entries.len())?;
            for (key, value) in &dict.entries {
                let Value::Str(name) = key else {
                    return Err(Error::new("names of arguments must be strings"));
                };
                values.named.push((name.clone(), value.clone()));
            }
        }
        Ok(values)
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
            Object::Builtin(builtin) => globals::call(&self.budget, *builtin, args),
            Object::Method(value, name) => methods::call(&self.budget, value, name, args),
            Object::Loop(state) => {
                let Some((code, scope)) = &state.recursion else {
                    return Err(Error::new("`loop` can be called only in a `recursive` loop"));
                };
                let [items] = args.take("loop", ["items"])?;
                let items = items.ok_or_else(|| Error::new("`loop` needs a list"))?;
                let mut out = String::new();
                self.budget.deeper(|| self.for_loop(code, &items, state.level + 1, scope, &mut out))?;
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
            self.budget.step(1)?;
            inner.set(name.clone(), value);
        }
        if let Some(at) = named.iter().position(|(name, _)| **name == *"caller") {
            let (name, caller) = named.swap_remove(at);
            inner.set(name, caller);
        }
        let rest: Vec<Value> = positional.collect();
        if code.varargs {
            inner.set("varargs".into(), self.budget.tuple(rest)?);
        } else if !rest.is_empty() {
            let n = code.params.len();
            return Err(Error::new(format!("macro `{}` takes at most {n} arguments", code.name)));
        }
        if code.kwargs {
            let entries = named.into_iter().map(|(name, value)| (Value::Str(name), value)).collect();
            inner.set("kwargs".into(), compare::dict(&self.budget, entries)?);
        } else if let Some((unknown, _)) = named.first() {
            return Err(Error::new(format!("macro `{}` has no parameter `{unknown}`", code.name)));
        }
        let mut out = String::new();
        self.run(&code.body, &inner, &mut out)?;
        Ok(Value::str(out))
    }
}
