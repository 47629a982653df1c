"""The package's front door: a few names, loaded when they are used."""

import subprocess
import sys

import pytest

import sfumato


@pytest.mark.parametrize("name", sfumato.__all__)
def test_public_name_exists(name: str) -> None:
    assert getattr(sfumato, name) is not None
    assert name in dir(sfumato)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sfumato.no_such_name


def test_import_does_not_load_torch() -> None:
    code = "import sys, sfumato; sfumato.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
