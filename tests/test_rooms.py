"""Which room may import which (docs/design.md): a table, and that the source keeps to it.

Every import counts, wherever it stands: in functions and under TYPE_CHECKING too. What is imported by its name as text
(the back ends of `gti/chip/usb/devices.py`, so that a transport is one file and one row) is not an arrow.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHIP = "gti.chip."
# Room -> rooms that its modules may import, without the leading "gti."; gti/errors.py is open to all.
# A new arrow is a decision: give it a row here only if it points down, and mend docs/design.md with it.
TABLE = {
    "files": "",
    "old_kit": "",
    "cli": "old_kit",
    "progress": "",
    "quiet": "",
    "arguments": "",
    "chip.spec": "",
    "chip.wire": "chip.spec",
    "chip.network": "chip.spec chip.wire files",
    "chip.formats": "chip.network chip.spec chip.wire files",
    "chip.emulator": "chip.network chip.spec chip.wire",
    "chip.usb": "chip.wire files",
    "chip.virtual": "chip.emulator chip.formats chip.network chip.spec chip.usb chip.wire",
    "chip.host": "chip.formats chip.spec chip.wire files",
    "chip.loaded_model": "chip.formats chip.host chip.wire files",
    "chip.driver": "chip.emulator chip.loaded_model chip.spec chip.usb chip.virtual chip.wire",
    "chip.identify": "chip.emulator chip.formats chip.network chip.spec chip.usb chip.virtual chip.wire files",
    "chip.runtime": "chip.driver chip.emulator chip.formats chip.host chip.loaded_model chip.network chip.spec"
    " chip.usb chip.virtual chip.wire files",
    "chip.export": "chip.emulator chip.formats chip.host chip.loaded_model chip.network chip.runtime chip.spec"
    " chip.wire",
    "__main__": "cli",
    "serve": "chip.host chip.loaded_model chip.runtime chip.usb",
    "commands": "arguments chip.driver chip.emulator chip.export chip.formats chip.host chip.identify"
    " chip.loaded_model chip.network chip.runtime chip.usb chip.wire files progress serve",
    "stage": "",
    "names": "chip.spec",
    "nets": "chip.network chip.spec names",
    "host_module": "nets old_kit",
    "caps": "chip.network chip.spec files names",
    "flag_groups": "arguments chip.spec stage",
    "param_parser": "arguments data flag_groups stage",
    "quantize": "chip.spec stage",
    "fusion": "chip.network chip.spec names",
    "layers": "caps chip.spec old_kit quantize stage",
    "data": "chip.host files",
    "data_utils": "chip.emulator chip.host chip.spec data files",
    "converter": "caps chip.formats chip.network fusion names old_kit quantize stage",
    "packing": "chip.formats chip.host chip.network chip.runtime chip.spec chip.wire converter data_utils"
    " files names nets",
    "model": "caps chip.network chip.spec layers names nets quantize stage",
    "training": "caps chip.network chip.spec data files fusion layers model names nets progress stage",
    "importing": "chip.formats chip.network chip.spec chip.wire data files layers model names nets quiet stage"
    " training",
    "compare": "chip.emulator chip.formats chip.network chip.runtime chip.spec chip.wire data_utils files"
    " model names training",
    "report": "caps chip.emulator chip.network chip.spec converter files fusion model names progress quantize"
    " stage training",
    "looks": "arguments caps chip.formats chip.loaded_model chip.network chip.usb data files host_module nets"
    " packing stage training",
    "ptq": "chip.emulator chip.host chip.network chip.spec data data_utils fusion layers names progress quantize stage",
    "edges": "chip.emulator chip.formats chip.host chip.network chip.runtime chip.wire converter importing ptq",
}
MAY_STAND_BESIDE_THE_ROOMS = 3  # modules of gti/chip: driver, loaded_model, spec


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Return the room of a module, without "gti."; "" for the package itself."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["chip"] else parts[:1])


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Return the modules that a source file imports, of this project and of others."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            for alias in node.names:
                inner = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else str(node.module))
    return found


SOURCES = sorted((ROOT / "gti").rglob("*.py"))


@functools.cache
def arrows() -> dict[tuple[str, str], list[str]]:
    """Return (room, imported room) -> the files that do it."""
    found = defaultdict(list)
    for path in SOURCES:
        room = room_of(module_name(path))
        for module in imports_of(path):
            other = room_of(module)
            if module.split(".")[0] == "gti" and other not in ("", "errors", "chip", room) and room:
                found[room, other].append(str(path.relative_to(ROOT)))
    return found


def test_every_import_is_in_the_table():
    wrong = {arrow: files for arrow, files in arrows().items() if arrow[1] not in TABLE.get(arrow[0], "").split()}
    assert not wrong, f"imports that tests/test_rooms.py does not allow: {wrong}"


def test_every_room_has_a_row():
    rooms = {room_of(module_name(path)) for path in SOURCES} - {"", "chip", "errors"}
    assert rooms == set(TABLE)


def test_every_arrow_of_the_table_is_used():
    unused = [
        (room, other) for room, others in TABLE.items() for other in others.split() if (room, other) not in arrows()
    ]
    assert not unused, f"arrows that nothing uses any more; take them out of the table: {unused}"


def test_the_table_has_no_circle():
    # Raises CycleError naming the circle.
    tuple(TopologicalSorter({room: others.split() for room, others in TABLE.items()}).static_order())


def test_few_modules_stand_beside_the_rooms_of_the_chip():
    beside = sorted(path.name for path in (ROOT / "gti" / "chip").glob("*.py") if path.name != "__init__.py")
    assert len(beside) <= MAY_STAND_BESIDE_THE_ROOMS, beside


def test_errors_imports_nothing_of_the_project():
    assert not {module for module in imports_of(ROOT / "gti" / "errors.py") if module.startswith("gti")}


@pytest.mark.parametrize("path", [path for path in SOURCES if module_name(path).startswith(CHIP)], ids=module_name)
def test_the_chip_knows_neither_tensorflow_nor_the_rest_of_the_project(path: Path):
    modules = imports_of(path)
    assert not {module.split(".")[0] for module in modules} & {"tensorflow", "keras", "tf_keras", "jax", "torch"}
    outside = {m for m in modules if m.startswith("gti.") and not m.startswith(CHIP)}
    assert outside <= {"gti.errors", "gti.files"}


@pytest.mark.parametrize("package", sorted((ROOT / "gti").rglob("__init__.py")), ids=module_name)
def test_a_room_says_what_it_is_for(package: Path):
    text = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8")))
    assert text
    assert len(text) > 20


def test_imports_are_found_wherever_they_stand(tmp_path: Path):
    source = tmp_path / "example.py"
    source.write_text(
        "import os\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from gti.chip.driver import GtiModel\n"
        "def late():\n"
        "    from gti.chip.usb import ft60x\n"
        "    import gti.files as f\n"
    )
    assert imports_of(source) == {"os", "typing", "gti.chip.driver", "gti.chip.usb.ft60x", "gti.files"}
    assert [room_of(m) for m in ("gti.chip.usb.ft60x", "gti.chip.spec", "gti.files", "gti.training.loop", "gti")] == [
        "chip.usb",
        "chip.spec",
        "files",
        "training",
        "",
    ]
