"""What jaxtyping's import hook does to our functions in tests: those that take or return arrays are
checked in every call.

The hook itself would wrap every function, and a third of the time of all tests would be calls of
wrappers that have no array to look at. Types that are no arrays are pyrefly's.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from beartype import beartype
from jaxtyping import _import_hook

ARRAYS = frozenset({"Bool", "Float", "Int"})


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result in every call, but not of a function in a function.

    The latter is made anew in every call of the outer one, hooks many thousand times, and beartype
    compiles a checker each time.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)


class _OfArrays(_import_hook.JaxtypingTransformer):
    """Decorates what has an array in its signature, and data classes that hold one."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        given = node.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        types = [node.returns, *(each.annotation for each in arguments if each is not None)]
        return super().visit_FunctionDef(node) if _has_array(types) else node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        fields = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
        if _has_array(fields):
            return super().visit_ClassDef(node)
        self._parents.append(node)
        self.generic_visit(node)
        self._parents.pop()
        return node


def _has_array(types: Sequence[ast.expr | None]) -> bool:
    return any(name in ARRAYS for each in types if each is not None for name in _names(each))


def _names(expression: ast.expr) -> Iterator[str]:
    for node in ast.walk(expression):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ARRAYS & set(node.value.replace("[", " ").split())


_import_hook.JaxtypingTransformer = _OfArrays
