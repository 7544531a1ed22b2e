"""Name-based checkpoints `<folder>/<net>-<chip>[-qw][-qa][-fs]-epoch-<n>`, written so that a kill never costs one.

A checkpoint is a TensorFlow V2 bundle (`.index` and `.data-*`) of variables under the names of the user guide
(`vgg16/conv1_1/filters`). Beside them it carries `gti/metadata` (JSON: net, stage, epoch, ...) and the optimizer's
variables under `gti/optimizer/`. Checkpoints of the old TF 1 kit have neither and load all the same.

A prefix is never overwritten: a bundle is written in a hidden folder beside, flushed and renamed, the index last.
Which bundles a folder keeps is the matter of `gti.training.checkpoint_folder`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from gti import files, names
from gti.chip.spec import CHIP
from gti.errors import CheckpointError, printable, reason
from gti.stage import Stage
from gti.training.metadata import METADATA_NAME, Metadata

OPTIMIZER_PREFIX = "gti/optimizer/"
SAVING = ".saving-"
MAX_METADATA_BYTES = 64 * 1024
MAX_INDEX_BYTES = 16 * 1024 * 1024
# TensorFlow takes the prefix that it reads for a pattern of file names.
_PATTERN = re.compile(r"[][*?\\]")
# Variables that TF 1 savers add: counters and the slots of its optimizers.
TF1_EXTRAS = re.compile(r"(^|/)(global_step|Momentum|Adam(_1)?|beta[12]_power|ExponentialMovingAverage)$")


def file_name(net: str, stage: Stage, epoch: int) -> str:
    """Return the last part of a prefix, for example `vgg16-2801-qw-epoch-3`."""
    return f"{names.checkpoint_stem(net)}{stage.suffix}-epoch-{epoch}"


def save(
    prefix: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Metadata,
    optimizer: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a checkpoint of `arrays` (by variable name) at `prefix`, whole or not at all.

    Raises CheckpointError when the prefix exists (it is never overwritten), a value is not finite, or the disk refuses;
    older checkpoints stay as they were.
    """
    import tensorflow as tf

    target = Path(prefix)
    refuse_existing(target)
    _refuse_not_finite(arrays, str(target))
    tensors: dict[str, Any] = {METADATA_NAME: metadata.to_json(), **arrays}
    tensors.update({OPTIMIZER_PREFIX + name: value for name, value in (optimizer or {}).items()})
    folder: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{SAVING}{target.name}-", dir=target.parent))
        with tf.device("CPU"):
            tf.raw_ops.SaveV2(
                prefix=os.fsencode(folder / target.name),
                tensor_names=list(tensors),
                shape_and_slices=[""] * len(tensors),
                tensors=[tf.constant(value) for value in tensors.values()],
            )
        written = [*sorted(folder.glob("*.data-*")), folder / index_path(target).name]
        for path in written:
            flush(path)
        for path in written:  # data first: an index says that the bundle is complete
            files.move(path, target.parent / path.name)
        flush(target.parent)
    except (OSError, tf.errors.OpError) as problem:
        raise CheckpointError(
            str(target),
            f"cannot be written ({reason(problem)})",
            fix="free space on the disk or pass another --checkpoint_dir; earlier checkpoints are intact",
        ) from problem
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def refuse_existing(prefix: str | os.PathLike[str]) -> None:
    """Raise CheckpointError where `prefix` is a checkpoint already, which `save` would not overwrite."""
    if index_path(prefix).exists():
        raise CheckpointError(
            os.fspath(prefix),
            "exists already, and a checkpoint is never overwritten",
            fix="pass another --checkpoint_dir, or move the old checkpoint away",
        )


class Variables(dict[str, np.ndarray]):
    """Arrays by name; `tensors` of the same memory where there are, of which variables are made without a copy.

    TensorFlow counts the users of that memory: a variable that changes takes memory of its own then.
    """

    tensors: Mapping[str, Any] = {}


def load(
    prefix: str | os.PathLike[str], wanted: Callable[[str], bool] = lambda name: True
) -> tuple[Variables, Metadata | None]:
    """Return the variables of a checkpoint by name, and its metadata (None for one of the old TF 1 kit).

    Variables whose name is not `wanted` are not read. The old kit's caps of shape [1] are scalars here, and biases that
    it leaves out beside batch norm are zeros. Raises CheckpointError when the checkpoint is missing or damaged
    (every value that is read is checked against its checksum).
    """
    reader = _Reader(prefix)
    metadata = reader.metadata()
    found = [name for name in reader.names if not name.startswith("gti/") and wanted(name)]
    return _normalised(reader.arrays(found)), metadata


def _normalised(arrays: Variables) -> Variables:
    # Once, where a checkpoint is read, so that everything behind sees one form.
    changed = {
        name: array.reshape(())
        for name, array in arrays.items()
        if name.endswith(f"/{names.CAP}") and array.shape == (1,)
    }
    for name, gamma in arrays.items():
        scope, norm, _ = name.rpartition("/batch_normalization/gamma")
        if norm and f"{scope}/filters" in arrays and f"{scope}/biases" not in arrays:
            changed[f"{scope}/biases"] = np.zeros(gamma.shape, np.float32)
    if changed:
        tensors = {name: tensor for name, tensor in arrays.tensors.items() if name not in changed}
        arrays.update(changed)
        arrays.tensors = tensors
    return arrays


def load_optimizer(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the optimizer's variables of a checkpoint by name; empty where it carries none."""
    reader = _Reader(prefix)
    found = [name for name in reader.names if name.startswith(OPTIMIZER_PREFIX)]
    return {name.removeprefix(OPTIMIZER_PREFIX): reader.array(name) for name in found}


def read_metadata(prefix: str | os.PathLike[str]) -> Metadata | None:
    """Return the metadata of a checkpoint without reading its variables; None for one of the old kit."""
    return _Reader(prefix).metadata()


def digest(prefix: str | os.PathLike[str]) -> str:
    """Return 16 hex digits that name a checkpoint's content: the index holds a checksum of every variable."""
    data = files.read_bytes(index_path(prefix), limit=MAX_INDEX_BYTES)
    return hashlib.sha256(data).hexdigest()[:16]


def select(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    prefix: str | os.PathLike[str],
    optional: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Return the array of each variable in `shapes`, float32; names in `optional` may be absent.

    Raises CheckpointError that lists every variable which is missing, of another shape, or left over (the optimizer
    slots and counters of TF 1 aside).
    """
    problems = []
    result = {}
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is None:
            if name not in optional:
                problems.append(f"{name} is missing")
        elif array.shape != shape and not (array.size == 1 and np.prod(shape) == 1):
            problems.append(f"{name} has shape {list(array.shape)}, the net's is {list(shape)}")
        else:
            result[name] = np.asarray(array, np.float32).reshape(shape)
    left_over = [n for n in arrays if n not in shapes and n not in optional and not TF1_EXTRAS.search(n)]
    problems += [f"{name} is no variable of the net" for name in left_over]
    if problems:
        differ = f"{len(problems)} variables differ" if len(problems) > 1 else "1 variable differs"
        raise CheckpointError(
            f"{printable(str(prefix))}: does not fit the net; {differ}: {_some(problems)}. "
            "Fix: pass a checkpoint of this net, stage and number of classes."
        )
    _refuse_not_finite(result, str(prefix))
    return result


def check_net(metadata: Metadata | None, net: str, prefix: str | os.PathLike[str]) -> None:
    """Raise CheckpointError when the checkpoint is one of another net or chip."""
    if metadata and (metadata.net, metadata.chip) != (net, CHIP):
        raise other_net(prefix, net, metadata.net, metadata.chip)


def other_net(prefix: str | os.PathLike[str], wanted: str, net: str, chip: str) -> CheckpointError:
    """Return the error of a checkpoint that is one of `net` for `chip` and not of the `wanted` net."""
    return CheckpointError(
        str(prefix),
        "is a checkpoint of another net",
        expected=f"{wanted} for {CHIP}",
        received=f"{net} for {chip}",
        fix="pass the --net that it was trained as, or another checkpoint",
    )


def damage(prefix: str | os.PathLike[str]) -> str:
    """Return why a checkpoint cannot be read, one sentence; "" where every value is there and matches its checksum."""
    try:
        reader = _Reader(prefix)
        reader.metadata()
        for name in reader.names:
            reader.array(name)
    except CheckpointError as error:
        return str(error)
    return ""


def is_sound(prefix: str | os.PathLike[str]) -> bool:
    """Return whether every value of a checkpoint can be read and matches its checksum."""
    return not damage(prefix)


class _Reader:
    """Reads one bundle; what the C++ reader raises becomes a CheckpointError."""

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        import tensorflow as tf

        self.prefix = os.fspath(prefix)
        # Truncated and altered bundles surface as any of these.
        self._errors = (
            *(tf.errors.OpError, IndexError, ValueError, RuntimeError, KeyError, OverflowError, TypeError),
            MemoryError,  # sizes in the index are believed by the reader, which asks for them before it reads
        )
        if not index_path(self.prefix).is_file():
            raise CheckpointError(self.prefix, "is no checkpoint", fix="check the path")
        try:
            for path in bundle(self.prefix):
                path.open("rb").close()
            self._plain = self._plain_prefix()
        except OSError as problem:
            raise CheckpointError(
                self.prefix, f"cannot be read ({problem.strerror})", fix="check the permissions of its files"
            ) from problem
        with self._noticing_damage():
            self._reader = tf.train.load_checkpoint(self._plain)
            shapes = self._reader.get_variable_to_shape_map()
            self._dtypes = self._reader.get_variable_to_dtype_map()
        self.names = sorted(shapes)
        # Sizes are claims of the index: compare them with the file before anything is allocated.
        claimed = sum(int(np.prod(s, dtype=object)) * max(self._dtypes[n].size or 1, 1) for n, s in shapes.items())
        stored = sum(path.stat().st_size for path in bundle(self.prefix)[:-1])
        if claimed > stored + len(shapes):
            raise self._damaged(f"its variables need {claimed} bytes, its data has {stored}")

    def _plain_prefix(self) -> str:
        # A prefix without the letters of patterns, and in UTF-8, of links where its own is otherwise; they live as long
        # as the reader.
        with suppress(UnicodeEncodeError):
            self.prefix.encode()
            if not _PATTERN.search(self.prefix):
                return self.prefix
        folder = Path(tempfile.mkdtemp(prefix="gti-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for path in bundle(self.prefix):
            (folder / f"link{path.name.removeprefix(Path(self.prefix).name)}").symlink_to(path.resolve())
        return str(folder / "link")

    def array(self, name: str) -> np.ndarray:
        with self._noticing_damage():
            return np.asarray(self._reader.get_tensor(name))

    def arrays(self, names: Sequence[str]) -> Variables:
        import tensorflow as tf

        try:
            with tf.device("CPU"):
                tensors = tf.raw_ops.RestoreV2(
                    prefix=self._plain,
                    tensor_names=names,
                    shape_and_slices=[""] * len(names),
                    dtypes=[self._dtypes[name] for name in names],
                )
            by_name = dict(zip(names, tensors, strict=True))
            result = Variables({name: np.asarray(memoryview(tensor)) for name, tensor in by_name.items()})
            result.tensors = by_name
            return result
        except self._errors:
            # One after the other: this says what is wrong, and reads other types too.
            return Variables({name: self.array(name) for name in names})

    def metadata(self) -> Metadata | None:
        if METADATA_NAME not in self.names:
            return None
        with self._noticing_damage():
            text = self._reader.get_tensor(METADATA_NAME)
        if not isinstance(text, bytes) or len(text) > MAX_METADATA_BYTES:
            raise self._damaged("its metadata is no text")
        return Metadata.from_json(text, self.prefix)

    @contextmanager
    def _noticing_damage(self) -> Iterator[None]:
        try:
            yield
        except self._errors as problem:
            raise self._damaged(reason(problem).replace(self._plain, self.prefix)) from problem

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(
            self.prefix, f"is damaged ({reason})", fix="resume from an earlier or the best checkpoint"
        )


def index_path(prefix: str | os.PathLike[str]) -> Path:
    """Return the path of a prefix's index file."""
    return Path(f"{os.fspath(prefix)}.index")


def bundle(prefix: str | os.PathLike[str]) -> list[Path]:
    """Return the existing files of a checkpoint: data, then the index."""
    base = Path(prefix)
    data = re.compile(re.escape(base.name) + r"\.data-\d{5}-of-\d{5}")
    paths = sorted(p for p in base.parent.iterdir() if data.fullmatch(p.name)) if base.parent.is_dir() else []
    return [*paths, *(p for p in [index_path(base)] if p.exists())]


def flush(path: Path) -> None:
    """Make a file or folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _some(problems: Collection[str], most: int = 40) -> str:
    """Return the first problems as one text; names in them come from a file."""
    shown = [printable(problem) for problem in list(problems)[:most]]
    return "; ".join(shown) + (f"; and {len(problems) - most} more" if len(problems) > most else "")


def _refuse_not_finite(arrays: Mapping[str, np.ndarray], prefix: str) -> None:
    bad = [name for name, value in arrays.items() if not np.all(np.isfinite(value))]
    if bad:
        raise CheckpointError(
            prefix,
            f"values that are not finite in {', '.join(bad[:8])}",
            expected="numbers",
            fix="go back to an earlier checkpoint and lower --learning_rate",
        )
