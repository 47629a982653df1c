"""Help texts: the docstrings below the fields of a section, read from its source when asked for."""

import ast
import inspect
from dataclasses import fields
from functools import cache


@cache
def field_docs(section: type) -> dict[str, str]:
    """Return the docstring of each field of a section, by the field's name, as one line.

    Fields of a section that is made of a table have their text in their metadata.
    """
    told = {field.name: field.metadata["help"] for field in fields(section) if "help" in field.metadata}
    if told:
        return told
    (class_node,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(class_node, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in zip(class_node.body, class_node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
            docs[field.target.id] = " ".join(ast.literal_eval(text.value).split())  # type: ignore[attr-defined]
    return docs


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
