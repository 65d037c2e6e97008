"""The public names of `interp` and `figures`."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["interp", "figures"])
def test_every_name_is_there_and_none_is_hidden_by_a_module(package: str) -> None:
    module = import_module(package)
    assert module.__doc__ is not None and len(module.__all__) <= 18
    for name in module.__all__:
        assert getattr(module, name) is not None and f"`{name}`" in module.__doc__, name
        assert not (ROOT / package / name).exists(), name
        assert not (ROOT / package / f"{name}.py").exists(), name
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("package", ["interp", "figures"])
def test_importing_loads_nothing_else(package: str) -> None:
    code = (
        f"import sys, {package}\n"
        "assert not {'torch', 'numpy', 'pydantic', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
