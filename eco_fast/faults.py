"""What is wrong with a value or a key of the configuration, in words: pydantic's faults as people read them."""

import difflib
from collections.abc import Sequence

from pydantic_core import ErrorDetails

_ACCEPTABLE = {  # pydantic's name of a fault -> what would be right
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true (on) or false (off)",
    "bool_type": "true (on) or false (off)",
    "string_type": "a name",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "two numbers, such as [0.9, 0.99]",
    "missing": "two numbers, such as [0.9, 0.99]",  # keys have defaults: only a pair of numbers can miss one
    "too_long": "two numbers, such as [0.9, 0.99]",
    "dict_type": "a table, such as {{blocks = 4}}",
    "model_type": "a table of keys",
}


def key_of(fault: ErrorDetails, keys: Sequence[str]) -> str:
    """The key that a fault belongs to, without what pydantic adds for items of lists and branches of unions."""
    parts = [str(part) for part in fault["loc"]]
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in keys), ".".join(parts))


def acceptable(fault: ErrorDetails) -> str:
    """What would be right in the place of a wrong value."""
    if fault["type"] == "literal_error":
        names = _names(fault)
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    known = _ACCEPTABLE.get(fault["type"])
    return known.format(**fault.get("ctx", {})) if known else f"another value ({fault['msg']})"


def meant(fault: ErrorDetails) -> str:
    """The nearest of the names that would be right, as the end of a line; empty where none is near."""
    names = _names(fault) if fault["type"] == "literal_error" else []
    near = difflib.get_close_matches(str(fault["input"]), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def suggestion(key: str, keys: Sequence[str]) -> str:
    """The valid key that is nearest to an unknown one; all of them where none is near."""
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if not near:  # a key without its section, or in a wrong one
        last = difflib.get_close_matches(key.rpartition(".")[2], [name.rpartition(".")[2] for name in keys], n=1)
        near = [name for name in keys if last and name.rpartition(".")[2] == last[0]]
    return f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(keys)}"


def _names(fault: ErrorDetails) -> list[str]:
    """Those of which a value has to be one: pydantic has them as `'a', 'b' or 'c'`."""
    return fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
