"""Whether JSON is what a schema describes; and where it is not, what is wrong with it.

A validator library takes longer to import than all else that opening a bundle needs. It is asked just for documents
that the short check below does not find valid, so it has the last word on what is refused, and says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any


def fault(schema: Mapping[str, Any], data: Any) -> tuple[str, str] | None:
    """What is wrong, and where (`a/0/b`; "" for the document itself); None for a document that the schema admits.

    Args:
        schema: JSON Schema, draft 2020-12.
    """
    try:
        if _admits(schema, data, schema):
            return None
    except _UnknownKeyword:
        pass
    import jsonschema

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(data))
    return None if error is None else (error.message, "/".join(map(str, error.absolute_path)))


class _UnknownKeyword(Exception):
    """The schema says something that the short check does not know."""


def _admits(schema: Mapping[str, Any], data: Any, root: Mapping[str, Any]) -> bool:
    for keyword, stated in schema.items():
        if keyword in _ANNOTATIONS:
            continue
        if keyword not in _CHECKS:
            raise _UnknownKeyword(keyword)
        if not _CHECKS[keyword](stated, data, schema, root):
            return False
    return True


def _type(stated: Any, data: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    return any(_TYPES[name](data) for name in ([stated] if isinstance(stated, str) else stated))


def _properties(stated: Any, data: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    return not isinstance(data, dict) or all(
        _admits(inner, data[name], root) for name, inner in stated.items() if name in data
    )


def _additional(stated: Any, data: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    if not isinstance(data, dict):
        return True
    others = [value for name, value in data.items() if name not in schema.get("properties", {})]
    if isinstance(stated, bool):
        return stated or not others
    return all(_admits(stated, value, root) for value in others)


def _reference(stated: Any, data: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    start, _, name = stated.rpartition("/")
    if start != "#/$defs":
        raise _UnknownKeyword(stated)
    return _admits(root["$defs"][name], data, root)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (dict, list)):
        raise _UnknownKeyword("a constant that is not a single value")
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _number(data: Any) -> bool:
    return isinstance(data, (int, float)) and not isinstance(data, bool)


_ANNOTATIONS = frozenset({"$schema", "$id", "$defs", "title", "description"})
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda data: isinstance(data, dict),
    "array": lambda data: isinstance(data, list),
    "string": lambda data: isinstance(data, str),
    "boolean": lambda data: isinstance(data, bool),
    "null": lambda data: data is None,
    "number": _number,
    "integer": lambda data: _number(data) and data == data // 1,
}
# What a keyword states, the document's part, the schema that has the keyword, the whole schema -> whether it holds.
_CHECKS: Mapping[str, Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any]], bool]] = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "$ref": _reference,
    "required": lambda stated, data, *_: not isinstance(data, dict) or all(name in data for name in stated),
    "items": lambda stated, data, _, root: (
        not isinstance(data, list) or all(_admits(stated, entry, root) for entry in data)
    ),
    "oneOf": lambda stated, data, _, root: sum(_admits(inner, data, root) for inner in stated) == 1,
    "enum": lambda stated, data, *_: any(_same(entry, data) for entry in stated),
    "const": lambda stated, data, *_: _same(stated, data),
    "minimum": lambda stated, data, *_: not _number(data) or data >= stated,
    "maximum": lambda stated, data, *_: not _number(data) or data <= stated,
    "minItems": lambda stated, data, *_: not isinstance(data, list) or len(data) >= stated,
    "maxItems": lambda stated, data, *_: not isinstance(data, list) or len(data) <= stated,
    "minLength": lambda stated, data, *_: not isinstance(data, str) or len(data) >= stated,
    "maxLength": lambda stated, data, *_: not isinstance(data, str) or len(data) <= stated,
    "pattern": lambda stated, data, *_: not isinstance(data, str) or re.search(stated, data) is not None,
}
