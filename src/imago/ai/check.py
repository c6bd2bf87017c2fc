"""Checks of generated code, before anything of it runs: what it may contain is on a list, and all else is refused.

The lists keep out files, processes, the network and Python's internals. They do not bound time or memory.
"""

import ast
import builtins
import importlib
from types import ModuleType
from typing import Any

import torch

from imago.ai.prompt import Prompt
from imago.errors import UserError

MOST_CHARACTERS = 20_000
MODULES = (
    *("math", "torch", "torch.nn.functional", "torch.linalg", "torch.fft"),
    *("torchvision.transforms.functional", "torchvision.transforms.v2.functional"),
)
"""Modules that may be imported."""
BUILTINS = (
    *("abs", "all", "any", "bool", "dict", "enumerate", "float", "int", "isinstance", "len", "list", "max", "min"),
    *("range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip", "ValueError", "TypeError"),
)
OF_TORCH = ("Tensor", "pi", "inf", "nan", "e", "newaxis")
NO_TORCH = ("from_file", "compile")
"""Functions of torch that read or write files."""
NO_METHOD = (
    *("numpy", "storage", "untyped_storage", "typed_storage", "share_memory_", "module_load", "apply_", "map_"),
    "map2_",
    *("data_ptr", "register_hook", "register_post_accumulate_grad_hook", "backward", "set_", "from_file", "grad_fn"),
)
"""Attributes of tensors that lead out of computing."""
OTHER_METHODS = ("append", "extend", "items", "keys", "values", "get", "pop", "insert", "index", "count", "copy")
"""Methods of lists and dictionaries."""
NODES = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Import, ast.ImportFrom, ast.alias, ast.Return),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.If, ast.IfExp, ast.Raise, ast.Pass, ast.Break),
    *(ast.Continue, ast.Expr, ast.Assert, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call),
    *(ast.Constant, ast.Attribute, ast.Subscript, ast.Name, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Slice),
    *(ast.keyword, ast.Starred, ast.ListComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.JoinedStr),
    *(ast.FormattedValue, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
"""Kinds of syntax: no classes, no nested functions, no `while`, `with`, `try`, `global`, `lambda`, `yield`, `await`."""


class RefusedCodeError(UserError):
    """Code that is not run."""


def check_code(code: str, prompt: Prompt) -> dict[str, Any]:
    """Check that `code` is the function of `prompt`, and has nothing in it that is not on the lists. Returns what it
    imports: name -> module or function.

    Raises:
        RefusedCodeError: It is something else; the message says what and where.
    """
    if len(code) > MOST_CHARACTERS:
        raise RefusedCodeError(f"it has {len(code)} characters; {MOST_CHARACTERS} are the most")
    try:
        tree = ast.parse(code)
        compile(code, "<generated>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RefusedCodeError(f"it is no Python ({error})") from error
    function = _only_function(tree, prompt)
    for node in ast.walk(tree):
        _check_node(node, is_root=node in (tree, function))
    imported = _imports(tree)
    _check_names(function, imported)
    return imported


def _only_function(tree: ast.Module, prompt: Prompt) -> ast.FunctionDef:
    body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom) and not _is_text(node)]
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise RefusedCodeError("it must be imports and one function, and nothing else")
    function = body[0]
    if function.name != prompt.name:
        raise RefusedCodeError(f"its function is {function.name}, and not {prompt.name}")
    asked = prompt.definition
    if (
        function.decorator_list
        or _dump(function.args) != _dump(asked.args)
        or _dump(function.returns) != _dump(asked.returns)
    ):
        raise RefusedCodeError(f"the signature of {prompt.name} is another one")
    return function


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _dump(node: ast.AST | None) -> str:
    return ast.dump(node) if node is not None else ""


def _check_node(node: ast.AST, is_root: bool) -> None:
    """Raise RefusedCodeError for syntax that is not listed, and for double underscores anywhere."""
    kinds: tuple[type[ast.AST], ...] = NODES
    if not isinstance(node, kinds) or (isinstance(node, ast.FunctionDef) and not is_root):
        raise RefusedCodeError(f"{type(node).__name__} {_where(node)}is not allowed")
    names = [getattr(node, key, None) for key in ("id", "attr", "arg", "name", "asname", "module", "value")]
    texts = [name for name in names if isinstance(name, str)]
    if bad := next((text for text in texts if "__" in text or (text.startswith("_") and len(text) > 1)), None):
        raise RefusedCodeError(f"{bad[:40]!r} {_where(node)}has underscores that lead into Python or a library")
    function = getattr(node, "func", None)
    if isinstance(function, ast.Attribute) and function.attr in ("format", "format_map"):
        raise RefusedCodeError(f"str.format {_where(node)}is not allowed. Use an f-string")


def _imports(tree: ast.Module) -> dict[str, Any]:
    imported: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = _module(alias.name, node)
                root = alias.name.partition(".")[0]
                imported[alias.asname or root] = module if alias.asname else _module(root, node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imported[alias.asname or alias.name] = _imported_from(node, alias)
    if any(isinstance(node, ast.Import | ast.ImportFrom) and node not in tree.body for node in ast.walk(tree)):
        raise RefusedCodeError("an import within the function is not allowed")
    return imported


def _imported_from(node: ast.ImportFrom, alias: ast.alias) -> Any:
    whole = f"{node.module}.{alias.name}"
    if node.level == 0 and whole in MODULES:
        return _module(whole, node)
    if node.level or alias.name == "*":
        raise RefusedCodeError(f"the import of {alias.name} {_where(node)}is not allowed")
    return _member(_module(str(node.module), node), alias.name, node)


def _module(name: str, node: ast.AST) -> ModuleType:
    if name not in (*MODULES, "torchvision"):
        raise RefusedCodeError(f"the import of {name} {_where(node)}is not allowed. Allowed are {', '.join(MODULES)}")
    return importlib.import_module(name)


def _member(owner: ModuleType, name: str, node: ast.AST) -> Any:
    """A member of an allowed module: an allowed module, a type of numbers, a constant, or a function that computes."""
    value = getattr(owner, name, None)
    whole = f"{owner.__name__}.{name}"
    if isinstance(value, ModuleType):
        if value.__name__ in MODULES or any(module.startswith(f"{value.__name__}.") for module in MODULES):
            return value
    elif owner is torch:  # no public list has the functions that compute, and nothing else
        is_function = name in dir(torch._C._VariableFunctions) and callable(value)
        if (is_function or name in OF_TORCH or isinstance(value, torch.dtype)) and name not in NO_TORCH:
            return value
    elif owner.__name__ in MODULES and value is not None:
        is_own = callable(value) and str(getattr(value, "__module__", None) or owner.__name__).startswith(
            (owner.__name__, "torch._C", "torch.nn.functional", "torch._jit_internal", "torchvision.transforms", "math")
        )
        if is_own or isinstance(value, int | float):
            return value
    raise RefusedCodeError(f"{whole} {_where(node)}is not allowed")


def _check_names(function: ast.FunctionDef, imported: dict[str, Any]) -> None:
    """Raise RefusedCodeError for names that are neither parameters, variables, imports nor listed, and for attributes
    that are not listed."""
    arguments = function.args
    known = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    hints = {id(part) for hint in _hints(function) for part in ast.walk(hint)}
    nodes = [node for node in ast.walk(function) if id(node) not in hints]  # which are not evaluated
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    if taken := sorted(stored & {*imported, *BUILTINS, function.name}):
        raise RefusedCodeError(f"{taken[0]} is assigned to, and is the name of something else")
    owners = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        is_module = isinstance(node, ast.expr) and isinstance(_resolved(node, imported, known | stored), ModuleType)
        if is_module and id(node) not in owners:
            raise RefusedCodeError(f"a module {_where(node)}is no value")
        if isinstance(node, ast.Name) and node.id not in {*known, *stored, *imported, *BUILTINS}:
            raise RefusedCodeError(f"{node.id} {_where(node)}is not allowed")
        if isinstance(node, ast.Attribute):
            _check_attribute(node, imported, known | stored)


def _hints(function: ast.FunctionDef) -> list[ast.expr]:
    of_arguments = [node.annotation for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    of_variables = [node.annotation for node in ast.walk(function) if isinstance(node, ast.AnnAssign)]
    return [hint for hint in (function.returns, *of_arguments, *of_variables) if hint is not None]


def _check_attribute(node: ast.Attribute, imported: dict[str, Any], variables: set[str]) -> None:
    if not isinstance(node.ctx, ast.Load):
        raise RefusedCodeError(f"an assignment to .{node.attr} {_where(node)}is not allowed")
    owner = _resolved(node.value, imported, variables)
    if isinstance(owner, ModuleType):
        _member(owner, node.attr, node)
        return
    if node.attr in NO_METHOD or (node.attr not in dir(torch.Tensor) and node.attr not in OTHER_METHODS):
        raise RefusedCodeError(f".{node.attr} {_where(node)}is not allowed")


def _resolved(node: ast.expr, imported: dict[str, Any], variables: set[str]) -> Any:
    """The module that an expression is; None for any other value."""
    if isinstance(node, ast.Name) and node.id not in variables:
        return imported.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolved(node.value, imported, variables)
        return _member(owner, node.attr, node) if isinstance(owner, ModuleType) else None
    return None


def _where(node: ast.AST) -> str:
    line = getattr(node, "lineno", None)
    return f"(line {line}) " if line is not None else ""


def allowed_builtins() -> dict[str, Any]:
    """Map the names of Python's own functions that generated code may call to them."""
    return {name: getattr(builtins, name) for name in BUILTINS}
