//! The syntax tree. What can be chained without end (operators, subscripts, filters) is a list here, so that the tree is
//! only as deep as the source is nested.

use std::sync::Arc;

/// A name of a variable, attribute, filter, test or argument.
pub type Name = Arc<str>;

/// A statement, or text between tags.
pub struct Node {
    pub line: usize,
    pub stmt: Stmt,
}

pub type Body = Vec<Node>;

pub enum Stmt {
    Text(String),
    Print(Expr),
    /// Conditions with their bodies, and the body of `else`.
    If(Vec<(Expr, Body)>, Body),
    For(Arc<For>),
    Set(Target, Expr),
    /// `{% set x | filters %}...{% endset %}`: the filters are a [`Expr::Chain`] of [`Expr::Captured`].
    SetBlock(Target, Expr, Body),
    Macro(Arc<Macro>),
    /// `{% call %}`: the block as a macro named `caller`, and the call.
    Call(Arc<Macro>, Expr),
    /// `{% filter %}`.
    Filter(Expr, Body),
    With(Vec<(Target, Expr)>, Body),
    /// A body with variables of its own: `{% generation %}`, `{% block %}`.
    Scope(Body),
    /// A tag that needs other files.
    Other(&'static str),
    Do(Expr),
    Break,
    Continue,
}

pub struct For {
    pub target: Target,
    pub items: Expr,
    pub condition: Option<Expr>,
    pub recursive: bool,
    pub body: Body,
    pub otherwise: Body,
}

pub struct Macro {
    pub name: Name,
    pub params: Vec<(Name, Option<Expr>)>,
    /// Whether the body names `varargs` and `kwargs`. Only then the macro takes more arguments than it lists.
    pub varargs: bool,
    pub kwargs: bool,
    pub body: Body,
}

/// The left side of an assignment.
pub enum Target {
    Name(Name),
    /// An attribute of a namespace.
    Attr(Name, Name),
    Tuple(Vec<Target>),
}

pub enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    /// The text of the block that is filtered.
    Captured,
    Chain(Box<Expr>, Vec<Postfix>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    Not(Box<Expr>),
    /// Operators of one precedence, applied from left to right.
    Binary(Box<Expr>, Vec<(BinaryOp, Expr)>),
    Concat(Vec<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// `a < b < c`: each neighbouring pair is compared.
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    /// A value with conditions, the outermost last: `value if condition else other`.
    If(Box<Expr>, Vec<(Expr, Option<Expr>)>),
}

pub enum Postfix {
    Attr(Name),
    Item(Expr),
    /// Start, stop, step.
    Slice(Box<[Option<Expr>; 3]>),
    Call(usize, CallArgs),
    Filter(Name, CallArgs),
    Test {
        name: Name,
        args: CallArgs,
        negated: bool,
    },
}

#[derive(Default)]
pub struct CallArgs {
    /// With whether it is `*args`.
    pub positional: Vec<(Expr, bool)>,
    pub named: Vec<(Name, Expr)>,
    /// `**kwargs`.
    pub spread: Vec<Expr>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

impl BinaryOp {
    /// As it is written.
    pub fn sign(self) -> &'static str {
        match self {
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::FloorDiv => "//",
            BinaryOp::Mod => "%",
            BinaryOp::Pow => "**",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}
