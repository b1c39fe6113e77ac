//! From tokens to the syntax tree: Jinja2's grammar, with limits on nesting.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::lexer::{Token, lex};
use super::syntax::{
    BinaryOp, Body, CallArgs, CompareOp, Expr, For, Macro, Name, Node, Postfix, Stmt, Target,
};
use super::{Error, Result, limits};

/// Parses a template. Returns it, and the names that it reads before it assigns them, if it does.
pub fn parse(source: &str) -> Result<(Body, BTreeSet<Name>)> {
    let mut parser = Parser {
        tokens: lex(source)?.into_iter(),
        next: None,
        line: 1,
        depth: 0,
        n_loops: 0,
        names: [false; 2],
        read: BTreeSet::new(),
        assigned: BTreeSet::new(),
    };
    parser.advance();
    let parsed = parser.body(&[]);
    let line = parser.line;
    Ok((parsed.map_err(|e| e.at(line))?, parser.read))
}

struct Parser {
    tokens: std::vec::IntoIter<(Token, usize)>,
    next: Option<Token>,
    /// The line of `next`, or of the last token.
    line: usize,
    depth: u64,
    /// Loops around the current statement, within the innermost macro.
    n_loops: usize,
    /// Whether `varargs` and `kwargs` have been named since the innermost macro began.
    names: [bool; 2],
    /// Names that were read before they were assigned.
    read: BTreeSet<Name>,
    assigned: BTreeSet<Name>,
}

/// Counts a level of nesting while `$parse` runs.
macro_rules! nested {
    ($self:ident, $parse:expr) => {{
        $self.depth += 1;
        if $self.depth > limits::NESTING {
            return Err(Error::limit("levels of nesting in the source", limits::NESTING));
        }
        let parsed = $parse;
        $self.depth -= 1;
        parsed
    }};
}

/// Refuses a list of operators that is too long.
fn check_chain(n: usize) -> Result<()> {
    if n as u64 > limits::OPERATORS {
        return Err(Error::limit("operators in a row in one expression", limits::OPERATORS));
    }
    Ok(())
}

impl Parser {
    // --- tokens ---

    fn advance(&mut self) -> Option<Token> {
        let next = self.tokens.next().map(|(token, line)| {
            self.line = line;
            token
        });
        std::mem::replace(&mut self.next, next)
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(&self.next, Some(Token::Op(found)) if *found == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(&self.next, Some(Token::Name(found)) if **found == *name)
    }

    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.advance();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.advance();
        }
        found
    }

    fn unexpected(&self, expected: &str) -> Error {
        let found = self.next.as_ref().map_or("the end of the template".to_string(), Token::to_string);
        Error::new(format!("unexpected {found}, expected {expected}"))
    }

    fn expect_op(&mut self, op: &str) -> Result<()> {
        if self.skip_op(op) { Ok(()) } else { Err(self.unexpected(&format!("`{op}`"))) }
    }

    fn expect_name(&mut self, name: &str) -> Result<()> {
        if self.skip_name(name) { Ok(()) } else { Err(self.unexpected(&format!("`{name}`"))) }
    }

    fn expect(&mut self, token: &Token) -> Result<()> {
        if self.next.as_ref() == Some(token) {
            self.advance();
            return Ok(());
        }
        Err(self.unexpected(&token.to_string()))
    }

    fn any_name(&mut self) -> Result<Name> {
        match self.advance() {
            Some(Token::Name(name)) => Ok(name),
            other => {
                self.next = other;
                Err(self.unexpected("a name"))
            }
        }
    }

    // --- statements ---

    /// Statements up to a tag that begins with a name in `ends`, whose name is the next token then.
    fn body(&mut self, ends: &[&str]) -> Result<Body> {
        let mut body = Vec::new();
        loop {
            let line = self.line;
            let stmt = match self.advance() {
                None if ends.is_empty() => return Ok(body),
                None => return Err(self.unexpected(&format!("`{}`", ends.join("` or `")))),
                Some(Token::Text(text)) => Stmt::Text(text),
                Some(Token::PrintBegin) => {
                    let expr = self.tuple(true)?;
                    self.expect(&Token::PrintEnd)?;
                    Stmt::Print(expr)
                }
                Some(_) => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    let stmt = nested!(self, self.statement()?);
                    self.expect(&Token::TagEnd)?;
                    stmt
                }
            };
            body.push(Node { line, stmt });
        }
    }

    /// The end of the current tag, and the body up to the tag `end`, without the end of that.
    fn block(&mut self, end: &str) -> Result<Body> {
        self.expect(&Token::TagEnd)?;
        let body = self.body(&[end])?;
        self.advance();
        Ok(body)
    }

    fn statement(&mut self) -> Result<Stmt> {
        let name = self.any_name()?;
        Ok(match &*name {
            "if" => self.if_statement()?,
            "for" => self.for_statement()?,
            "set" => self.set_statement()?,
            "macro" => {
                let name = self.any_name()?;
                self.expect_op("(")?;
                let params = self.params()?;
                Stmt::Macro(self.macro_body(name, params, "endmacro")?)
            }
            "call" => {
                let params = if self.skip_op("(") { self.params()? } else { Vec::new() };
                let call = self.expression()?;
                if !matches!(&call, Expr::Chain(_, chain) if matches!(chain.last(), Some(Postfix::Call(..))))
                {
                    return Err(Error::new("`{% call %}` expects the call of a macro"));
                }
                Stmt::Call(self.macro_body("caller".into(), params, "endcall")?, call)
            }
            "filter" => {
                let filters = self.filters_of_block()?;
                Stmt::Filter(filters, self.block("endfilter")?)
            }
            "with" => {
                let mut values = Vec::new();
                while self.next != Some(Token::TagEnd) {
                    if !values.is_empty() {
                        self.expect_op(",")?;
                    }
                    let target = self.target(false)?;
                    self.expect_op("=")?;
                    values.push((target, self.expression()?));
                }
                Stmt::With(values, self.block("endwith")?)
            }
            // transformers marks the tokens to train on with this.
            "generation" => Stmt::Scope(self.block("endgeneration")?),
            "block" => {
                let name = self.any_name()?;
                while self.skip_name("scoped") || self.skip_name("required") {}
                let body = self.block("endblock")?;
                self.skip_name(&name);
                Stmt::Scope(body)
            }
            "autoescape" => {
                if !matches!(self.expression()?, Expr::Bool(false)) {
                    return Err(Error::new("`{% autoescape %}` must be false: a prompt is not HTML"));
                }
                Stmt::Scope(self.block("endautoescape")?)
            }
            "break" | "continue" if self.n_loops == 0 => {
                return Err(Error::new(format!("`{name}` is outside of a loop")));
            }
            "break" => Stmt::Break,
            "continue" => Stmt::Continue,
            "do" => Stmt::Do(self.tuple(true)?),
            "include" => self.other_file("include")?,
            "import" | "from" => self.other_file("import")?,
            "extends" => self.other_file("extends")?,
            _ => return Err(Error::new(format!("unknown tag `{name}`"))),
        })
    }

    /// A tag that needs another template. It fails when it is reached.
    fn other_file(&mut self, tag: &'static str) -> Result<Stmt> {
        while !matches!(self.next, None | Some(Token::TagEnd)) {
            self.advance();
        }
        Ok(Stmt::Other(tag))
    }

    fn if_statement(&mut self) -> Result<Stmt> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false)?;
            self.expect(&Token::TagEnd)?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            if self.skip_name("elif") {
                continue;
            }
            let otherwise = if self.skip_name("else") { self.block("endif")? } else { self.end_of("endif") };
            return Ok(Stmt::If(branches, otherwise));
        }
    }

    /// Skips the name `end`; there is no body before it.
    fn end_of(&mut self, end: &str) -> Body {
        self.skip_name(end);
        Vec::new()
    }

    fn for_statement(&mut self) -> Result<Stmt> {
        let target = self.target_tuple(false)?;
        self.expect_name("in")?;
        let items = self.tuple(false)?;
        let condition = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.expect(&Token::TagEnd)?;
        self.n_loops += 1;
        let body = self.body(&["endfor", "else"])?;
        self.n_loops -= 1;
        let otherwise = if self.skip_name("else") { self.block("endfor")? } else { self.end_of("endfor") };
        Ok(Stmt::For(Arc::new(For { target, items, condition, recursive, body, otherwise })))
    }

    fn set_statement(&mut self) -> Result<Stmt> {
        let target = self.target_tuple(true)?;
        if self.skip_op("=") {
            return Ok(Stmt::Set(target, self.tuple(true)?));
        }
        let filters = if self.skip_op("|") { self.filters_of_block()? } else { Expr::Captured };
        Ok(Stmt::SetBlock(target, filters, self.block("endset")?))
    }

    /// `name | name(args)`, applied to a block.
    fn filters_of_block(&mut self) -> Result<Expr> {
        let mut chain = Vec::new();
        loop {
            check_chain(chain.len())?;
            let name = self.dotted_name()?;
            let args = if self.is_op("(") { self.call_args()? } else { CallArgs::default() };
            chain.push(Postfix::Filter(name, args));
            if !self.skip_op("|") {
                return Ok(Expr::Chain(Box::new(Expr::Captured), chain));
            }
        }
    }

    /// Parameters of a macro, after the bracket.
    fn params(&mut self) -> Result<Vec<(Name, Option<Expr>)>> {
        let mut params = Vec::new();
        while !self.skip_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            let name = self.any_name()?;
            let default = if self.skip_op("=") { Some(self.expression()?) } else { None };
            if default.is_none() && matches!(params.last(), Some((_, Some(_)))) {
                return Err(Error::new(format!(
                    "parameter `{name}` has no default, but follows one that has"
                )));
            }
            params.push((name, default));
        }
        Ok(params)
    }

    fn macro_body(&mut self, name: Name, params: Vec<(Name, Option<Expr>)>, end: &str) -> Result<Arc<Macro>> {
        let n_loops = std::mem::take(&mut self.n_loops);
        let names = std::mem::take(&mut self.names);
        let body = self.block(end)?;
        let [varargs, kwargs] = std::mem::replace(&mut self.names, names);
        self.n_loops = n_loops;
        Ok(Arc::new(Macro { name, params, varargs, kwargs, body }))
    }

    // --- targets of assignments ---

    fn target(&mut self, with_attr: bool) -> Result<Target> {
        if self.skip_op("(") {
            let target = nested!(self, self.target_tuple(with_attr)?);
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.any_name()?;
        if matches!(
            &*name,
            "true" | "True" | "false" | "False" | "none" | "None" | "not" | "and" | "or" | "in" | "is"
        ) {
            return Err(Error::new(format!("`{name}` cannot be assigned")));
        }
        if with_attr && self.skip_op(".") {
            return Ok(Target::Attr(name, self.any_name()?));
        }
        self.assigned.insert(name.clone());
        Ok(Target::Name(name))
    }

    fn target_tuple(&mut self, with_attr: bool) -> Result<Target> {
        let mut targets = vec![self.target(with_attr)?];
        let mut is_tuple = false;
        while self.skip_op(",") {
            is_tuple = true;
            if self.is_name("in") || self.is_op("=") || self.is_op(")") || self.next == Some(Token::TagEnd) {
                break;
            }
            targets.push(self.target(with_attr)?);
        }
        Ok(match targets.pop() {
            Some(only) if !is_tuple => only,
            last => {
                targets.extend(last);
                Target::Tuple(targets)
            }
        })
    }

    // --- expressions ---

    /// An expression, or several with commas between them, which are a tuple.
    fn tuple(&mut self, with_condition: bool) -> Result<Expr> {
        let mut items = Vec::new();
        loop {
            let is_end = matches!(self.next, None | Some(Token::PrintEnd | Token::TagEnd)) || self.is_op(")");
            if !items.is_empty() && (is_end || self.is_name("recursive")) {
                break;
            }
            items.push(if with_condition { self.expression()? } else { nested!(self, self.or()?) });
            if !self.skip_op(",") {
                if items.len() == 1 {
                    return items.pop().ok_or_else(|| self.unexpected("an expression"));
                }
                break;
            }
        }
        Ok(Expr::Tuple(items))
    }

    fn expression(&mut self) -> Result<Expr> {
        nested!(self, self.conditional())
    }

    fn conditional(&mut self) -> Result<Expr> {
        let value = self.or()?;
        let mut conditions = Vec::new();
        while self.skip_name("if") {
            check_chain(conditions.len())?;
            let condition = self.or()?;
            let otherwise = if self.skip_name("else") { Some(self.expression()?) } else { None };
            conditions.push((condition, otherwise));
        }
        Ok(if conditions.is_empty() { value } else { Expr::If(Box::new(value), conditions) })
    }

    fn or(&mut self) -> Result<Expr> {
        let first = self.and()?;
        self.separated(first, "or", Parser::and, Expr::Or)
    }

    fn and(&mut self) -> Result<Expr> {
        let first = self.not()?;
        self.separated(first, "and", Parser::not, Expr::And)
    }

    /// More operands after `first`, each behind the word `operator`.
    fn separated(
        &mut self,
        first: Expr,
        operator: &str,
        operand: fn(&mut Parser) -> Result<Expr>,
        make: fn(Vec<Expr>) -> Expr,
    ) -> Result<Expr> {
        if !self.is_name(operator) {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.skip_name(operator) {
            check_chain(operands.len())?;
            operands.push(operand(self)?);
        }
        Ok(make(operands))
    }

    fn not(&mut self) -> Result<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(nested!(self, self.not()?))));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let op = match &self.next {
                Some(Token::Op("==")) => CompareOp::Eq,
                Some(Token::Op("!=")) => CompareOp::Ne,
                Some(Token::Op("<")) => CompareOp::Lt,
                Some(Token::Op("<=")) => CompareOp::Le,
                Some(Token::Op(">")) => CompareOp::Gt,
                Some(Token::Op(">=")) => CompareOp::Ge,
                Some(Token::Name(name)) if **name == *"in" => CompareOp::In,
                Some(Token::Name(name)) if **name == *"not" => CompareOp::NotIn,
                _ => break,
            };
            self.advance();
            if op == CompareOp::NotIn {
                self.expect_name("in")?;
            }
            check_chain(others.len())?;
            others.push((op, self.sum()?));
        }
        Ok(if others.is_empty() { first } else { Expr::Compare(Box::new(first), others) })
    }

    fn sum(&mut self) -> Result<Expr> {
        self.binary(Parser::concat, &[BinaryOp::Add, BinaryOp::Sub])
    }

    fn concat(&mut self) -> Result<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.skip_op("~") {
            check_chain(operands.len())?;
            operands.push(self.product()?);
        }
        Ok(Expr::Concat(operands))
    }

    fn product(&mut self) -> Result<Expr> {
        self.binary(Parser::power, &[BinaryOp::Mul, BinaryOp::Div, BinaryOp::FloorDiv, BinaryOp::Mod])
    }

    fn power(&mut self) -> Result<Expr> {
        self.binary(|parser| parser.unary(true), &[BinaryOp::Pow])
    }

    fn binary(&mut self, operand: fn(&mut Parser) -> Result<Expr>, ops: &[BinaryOp]) -> Result<Expr> {
        let first = operand(self)?;
        let mut others = Vec::new();
        while let Some(op) = ops.iter().copied().find(|op| self.is_op(op.sign())) {
            check_chain(others.len())?;
            self.advance();
            others.push((op, operand(self)?));
        }
        Ok(if others.is_empty() { first } else { Expr::Binary(Box::new(first), others) })
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let operand = if self.skip_op("-") {
            Expr::Neg(Box::new(nested!(self, self.unary(false)?)))
        } else if self.skip_op("+") {
            Expr::Pos(Box::new(nested!(self, self.unary(false)?)))
        } else {
            self.primary()?
        };
        let mut chain = Vec::new();
        self.postfix(&mut chain)?;
        if with_filters {
            self.filters(&mut chain)?;
        }
        Ok(if chain.is_empty() { operand } else { Expr::Chain(Box::new(operand), chain) })
    }

    fn primary(&mut self) -> Result<Expr> {
        Ok(match self.advance() {
            Some(Token::Name(name)) => match &*name {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ => {
                    self.names[0] |= *name == *"varargs";
                    self.names[1] |= *name == *"kwargs";
                    if !self.assigned.contains(&name) {
                        self.read.insert(name.clone());
                    }
                    Expr::Name(name)
                }
            },
            Some(Token::Str(mut text)) => {
                while let Some(Token::Str(more)) = &self.next {
                    text.push_str(more);
                    self.advance();
                }
                Expr::Str(text.into())
            }
            Some(Token::Int(value)) => Expr::Int(value),
            Some(Token::Float(value)) => Expr::Float(value),
            Some(Token::Op("(")) => {
                let inner = if self.is_op(")") { Expr::Tuple(Vec::new()) } else { self.tuple(true)? };
                self.expect_op(")")?;
                inner
            }
            Some(Token::Op("[")) => {
                let mut items = Vec::new();
                while !self.skip_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.skip_op("]") {
                            break;
                        }
                    }
                    items.push(self.expression()?);
                }
                Expr::List(items)
            }
            Some(Token::Op("{")) => {
                let mut items = Vec::new();
                while !self.skip_op("}") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                        if self.skip_op("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.expect_op(":")?;
                    items.push((key, self.expression()?));
                }
                Expr::Dict(items)
            }
            other => {
                let found = other.map_or("the end of the template".to_string(), |token| token.to_string());
                return Err(Error::new(format!("unexpected {found}, expected an expression")));
            }
        })
    }

    /// Attributes, subscripts and calls.
    fn postfix(&mut self, chain: &mut Vec<Postfix>) -> Result<()> {
        loop {
            check_chain(chain.len())?;
            if self.skip_op(".") {
                chain.push(match self.advance() {
                    Some(Token::Name(name)) => Postfix::Attr(name),
                    Some(Token::Int(index)) => Postfix::Item(Expr::Int(index)),
                    other => {
                        self.next = other;
                        return Err(self.unexpected("a name or a number"));
                    }
                });
            } else if self.skip_op("[") {
                chain.push(self.subscript()?);
            } else if self.is_op("(") {
                let line = self.line;
                chain.push(Postfix::Call(line, self.call_args()?));
            } else {
                return Ok(());
            }
        }
    }

    fn subscript(&mut self) -> Result<Postfix> {
        let mut items = Vec::new();
        loop {
            let start = if self.is_op(":") { None } else { Some(self.expression()?) };
            if self.skip_op(":") {
                let mut rest = [None, None];
                for (i, part) in rest.iter_mut().enumerate() {
                    if !(self.is_op(":") || self.is_op("]") || self.is_op(",")) {
                        *part = Some(self.expression()?);
                    }
                    if i == 1 || !self.skip_op(":") {
                        break;
                    }
                }
                let [stop, step] = rest;
                self.expect_op("]")?;
                return Ok(Postfix::Slice(Box::new([start, stop, step])));
            }
            items.extend(start);
            if !self.skip_op(",") {
                break;
            }
        }
        self.expect_op("]")?;
        Ok(Postfix::Item(match items.pop() {
            Some(only) if items.is_empty() => only,
            last => {
                items.extend(last);
                Expr::Tuple(items)
            }
        }))
    }

    fn dotted_name(&mut self) -> Result<Name> {
        let mut name = self.any_name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.any_name()?).into();
        }
        Ok(name)
    }

    /// Filters and tests, and calls of what they return.
    fn filters(&mut self, chain: &mut Vec<Postfix>) -> Result<()> {
        loop {
            check_chain(chain.len())?;
            if self.skip_op("|") {
                let name = self.dotted_name()?;
                let args = if self.is_op("(") { self.call_args()? } else { CallArgs::default() };
                chain.push(Postfix::Filter(name, args));
            } else if self.skip_name("is") {
                let negated = self.skip_name("not");
                let name = self.dotted_name()?;
                let args = if self.is_op("(") { self.call_args()? } else { self.bare_arg()? };
                chain.push(Postfix::Test { name, args, negated });
            } else if self.is_op("(") {
                let line = self.line;
                chain.push(Postfix::Call(line, self.call_args()?));
            } else {
                return Ok(());
            }
        }
    }

    /// The argument of a test without brackets: `x is divisibleby 3`.
    fn bare_arg(&mut self) -> Result<CallArgs> {
        let begins = match &self.next {
            Some(Token::Name(name)) => !matches!(&**name, "else" | "or" | "and" | "is" | "if" | "in" | "not"),
            Some(Token::Str(_) | Token::Int(_) | Token::Float(_)) => true,
            Some(Token::Op(op)) => matches!(*op, "[" | "{"),
            _ => false,
        };
        let mut args = CallArgs::default();
        if begins {
            let operand = nested!(self, self.primary()?);
            let mut chain = Vec::new();
            self.postfix(&mut chain)?;
            let arg = if chain.is_empty() { operand } else { Expr::Chain(Box::new(operand), chain) };
            args.positional.push((arg, false));
        }
        Ok(args)
    }

    fn call_args(&mut self) -> Result<CallArgs> {
        self.expect_op("(")?;
        let mut args = CallArgs::default();
        let mut is_first = true;
        while !self.skip_op(")") {
            if !is_first {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            is_first = false;
            if self.skip_op("**") {
                args.spread.push(self.expression()?);
            } else if self.skip_op("*") {
                args.positional.push((self.expression()?, true));
            } else {
                match self.expression()? {
                    Expr::Name(name) if self.skip_op("=") => args.named.push((name, self.expression()?)),
                    _ if !args.named.is_empty() || !args.spread.is_empty() => {
                        return Err(Error::new("an argument without a name follows one with a name"));
                    }
                    value => args.positional.push((value, false)),
                }
            }
        }
        Ok(args)
    }
}
