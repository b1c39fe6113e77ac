//! The names of filters and tests: `value is filter` asks whether there is one.

/// Whether there is such a filter.
pub fn is_filter(name: &str) -> bool {
    #[rustfmt::skip]
    const NAMES: [&str; 51] = [
        "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape",
        "filesizeformat", "first", "float", "forceescape", "format", "fromjson", "groupby", "indent", "int", "items",
        "join", "last", "length", "list", "lower", "map", "max", "min", "pprint", "reject", "rejectattr", "replace",
        "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum", "title", "tojson", "trim",
        "truncate", "unique", "upper", "urlencode", "wordcount", "from_json",
    ];
    NAMES.contains(&name)
}

/// Whether there is such a test.
pub fn is_test(name: &str) -> bool {
    #[rustfmt::skip]
    const NAMES: [&str; 39] = [
        "odd", "even", "divisibleby", "defined", "undefined", "filter", "test", "none", "boolean", "false", "true",
        "integer", "float", "lower", "upper", "string", "mapping", "number", "sequence", "iterable", "callable", "sameas",
        "escaped", "in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<", "lt", "lessthan",
        "le", "<=",
    ];
    NAMES.contains(&name)
}
