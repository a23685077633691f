"""The JSON schema that an answer shall fit. Nothing is ever fetched: a schema holds all that it points to."""

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from schemas.errors import SpecError

KEY = "validate.json_schema"


def check_schema(schema: dict[str, Any]) -> None:
    """`SpecError` where `validate.json_schema` is no JSON schema, or points to what is none within it."""
    import jsonschema
    import referencing
    import referencing.jsonschema

    if not isinstance(schema.get("$schema", ""), str):
        raise SpecError(f"{KEY}.$schema: {schema['$schema']!r} is no address of a dialect", "see json-schema.org")
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
        whole = referencing.Resource.from_contents(schema, default_specification=referencing.jsonschema.DRAFT202012)
        for reference, resolver in _references(whole, referencing.Registry().with_resource("", whole).resolver()):
            _check_reference(reference, resolver)
    except jsonschema.SchemaError as error:
        raise SpecError(f"{KEY}: {error.message}", "see json-schema.org") from None


def _references(part: Any, resolver: Any) -> Iterator[tuple[str, Any]]:
    """Every `$ref` of a schema, with the resolver of the place where it stands."""
    if isinstance(part.contents, dict):
        found = (part.contents.get(name) for name in ("$ref", "$dynamicRef"))
        yield from ((reference, resolver) for reference in found if isinstance(reference, str))
    for inner in part.subresources():
        yield from _references(inner, resolver.in_subresource(inner))


def _check_reference(reference: str, resolver: Any) -> None:
    """Follow a reference until it comes to a schema that is not one itself."""
    import jsonschema
    import referencing

    passed: set[int] = set()
    target: Any = {"$ref": reference}
    while isinstance(target, dict) and isinstance(following := target.get("$ref"), str):
        if not following.startswith("#"):
            raise SpecError(f"{KEY}: $ref {following!r} lies elsewhere", "write it out under $defs")
        try:
            found = resolver.lookup(following)
        except (referencing.exceptions.Unresolvable, ValueError, LookupError, TypeError):
            raise SpecError(f"{KEY}: $ref {following!r} points nowhere", "write it out under $defs") from None
        target, resolver = found.contents, found.resolver
        if id(target) in passed:
            raise SpecError(f"{KEY}: $ref {reference!r} comes back to itself", "let it end in a schema")
        passed.add(id(target))
    if not isinstance(target, dict | bool):
        raise SpecError(f"{KEY}: $ref {reference!r} points to what is no schema", "write it out under $defs")
    jsonschema.validators.validator_for(target).check_schema(target)


def misfit(text: str, schema: dict[str, Any]) -> str:
    """How a text falls short of a JSON schema, '' where it fits."""
    import jsonschema
    import referencing

    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as problem:
        return f"not JSON: {problem}"
    # By default a remote reference would be fetched.
    validator = jsonschema.validators.validator_for(schema)(schema, registry=referencing.Registry())
    try:
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    except (referencing.exceptions.Unresolvable, RecursionError) as problem:
        return f"the schema cannot be followed: {type(problem).__name__}"
    except ArithmeticError as problem:  # a number of 400 digits against a fractional multipleOf
        return f"a number is too large to be checked: {problem}"
    return f"{error.json_path}: {error.message}"[:300] if error else ""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is beyond what a double holds")
    return value
