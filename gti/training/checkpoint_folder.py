"""The checkpoints of a folder: which is newest, which are kept, which is best, what a killed run left.

<folder>/checkpoint                     state file: the newest, last moved
<folder>/<net>-<chip>...-epoch-<n>.*    the last ones of each net and stage
<folder>/best/                          the best one of each net and stage, and a state file of its own
<folder>/earlier/                       what a run found under names that it writes itself
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gti import files, names
from gti.chip.spec import CHIP
from gti.errors import CheckpointError, FormatError, listing
from gti.stage import Stage
from gti.training.checkpoint import (
    SAVING,
    bundle,
    damage,
    digest,
    file_name,
    flush,
    index_path,
    is_sound,
    other_net,
    read_metadata,
)

log = logging.getLogger(__name__)

STATE_FILE = "checkpoint"
BEST = "best"
EARLIER = "earlier"
MAX_STATE_BYTES = 1024 * 1024
_EPOCH = re.compile(r"(.*)-epoch-(\d{1,9})")
_OWN_NAME = re.compile(rf"(?P<net>.+)-{CHIP}(?P<stage>|{'|'.join(s.suffix for s in Stage if s)})-epoch-\d{{1,9}}")
_STATE_LINE = re.compile(r'(all_)?model_checkpoint_paths?: "([^"/\\]{1,255})"')


def resolve(
    path: str | os.PathLike[str],
    *,
    net: str,
    stages: Collection[Stage] = tuple(Stage),
    preferred: Stage | None = None,
) -> str:
    """Return the prefix that a user means: a prefix, its .index file, or a folder.

    Of a folder, the newest sound one of `stages`; one of the stage `preferred` comes before all others. Damaged ones
    that would have come first are logged as warnings.

    Raises CheckpointError where there is none.
    """
    given = _given(path, net)
    return str(given) if index_path(given).is_file() else _resolve_folder(given, net, stages, preferred)


def look(
    path: str | os.PathLike[str],
    *,
    net: str,
    stages: Collection[Stage] = tuple(Stage),
    preferred: Stage | None = None,
) -> tuple[str, Stage | None]:
    """Return the prefix that `resolve` will find and its stage, as file names tell it; None where they do not.

    Reads no checkpoint and needs no TensorFlow. Raises CheckpointError where names are enough to know that `resolve`
    will, and for a checkpoint of another net.
    """
    given = _given(path, net)
    if index_path(given).is_file():
        match = _OWN_NAME.fullmatch(given.name)
        if match is None:
            return str(given), None
        if match["net"] != net:
            raise other_net(given, net, match["net"], CHIP)
        return str(given), _stage_of(given.name)
    _check_readable(given)
    found = _candidates(given, net, stages)
    if not found:
        raise _none_fits(given, net, stages)
    if preferred is not None:
        found = [name for name in found if _stage_of(name) is preferred] or found
    # The first one may be damaged, so what they have in common counts.
    alike = len({_stage_of(name) for name in found}) == 1
    return str(given / found[0]), _stage_of(found[0]) if alike else None


def _stage_of(name: str) -> Stage:
    match = _OWN_NAME.fullmatch(name)
    return next(stage for stage in Stage if match and stage.suffix == match["stage"])


def _given(path: str | os.PathLike[str], net: str) -> Path:
    # A folder, or the prefix of a checkpoint that has an index.
    given = Path(path)
    if given.name.endswith(".index"):
        given = given.with_name(given.name.removesuffix(".index"))
    if index_path(given).is_file() or given.is_dir():
        return given
    raise CheckpointError(
        str(path),
        "is no checkpoint",
        expected=f"a prefix such as checkpoints/{file_name(net, Stage.FLOAT, 10)}, or a folder",
        fix="check the path",
    )


def latest(folder: str | os.PathLike[str], *, net: str, stages: Collection[Stage] = tuple(Stage)) -> str | None:
    """Return the prefix of the newest sound checkpoint of net and stages in `folder`, or None.

    The state file decides what is newest, then stage and epoch; but one that grew out of another, as digest of the
    parent and epoch tell, is newer than that one, also where a copy has an older state file. Times of files never
    decide, as copies change them. Damaged ones that would have come first are logged as warnings.
    """
    unsound: dict[str, str] = {}
    prefix = _newest(Path(folder), net, stages, unsound)
    _tell(unsound)
    return prefix


def publish(prefix: str | os.PathLike[str], keep: int) -> None:
    """Make `prefix` the newest of its folder and delete the oldest of its net and stage beyond `keep`."""
    target = Path(prefix)
    names = [n for n in _family(target) if n != target.name] + [target.name]
    old, kept = names[:-keep], names[-keep:]
    others = [n for n in _read_state(target.parent) if n not in names and index_path(target.parent / n).exists()]
    _write_state(target.parent, others + kept)
    for name in old:
        delete(target.parent / name)


def publish_best(prefix: str | os.PathLike[str]) -> str:
    """Make `prefix` the only one of its net and stage in `<folder>/best/`; return its prefix there."""
    source = Path(prefix)
    folder = source.parent / BEST
    folder.mkdir(exist_ok=True)
    target = folder / source.name
    if not index_path(target).exists():
        _sweep_orphans(folder, source.name)
        for path in bundle(source):
            _link(path, folder / path.name)
    family = _family(target)
    others = [n for n in _read_state(folder) if n not in family and index_path(folder / n).exists()]
    unlisted = [n for n in _candidates_by_name(folder) if n not in family and n not in others]
    _write_state(folder, [*unlisted, *others, target.name])
    for name in family:
        if name != target.name:
            delete(folder / name)
    return str(target)


def best_accuracy(folder: str | os.PathLike[str], net: str, stage: Stage) -> float | None:
    """Return the accuracy 0..1 of the stage's checkpoint in `<folder>/best/`, None where there is none.

    Where best/ lacks the stage, the most accurate sound checkpoint that `folder` still has becomes its best one.
    """
    base = Path(folder)
    any_epoch = file_name(net, stage, 0)
    published = _family(base / BEST / any_epoch)
    if published:
        return _accuracy(base / BEST / published[-1])
    found = [(accuracy, name) for name in _family(base / any_epoch) if (accuracy := _accuracy(base / name)) is not None]
    for accuracy, name in sorted(found, reverse=True, key=lambda one: one[0]):
        if is_sound(base / name):
            publish_best(base / name)
            return accuracy
    return None


def best_loss(folder: str | os.PathLike[str], net: str, stage: Stage) -> float | None:
    """Return the validation loss of the stage's checkpoint in `<folder>/best/`, None where none tells it."""
    base = Path(folder) / BEST
    published = _family(base / file_name(net, stage, 0))
    try:
        metadata = read_metadata(base / published[-1]) if published else None
    except CheckpointError:
        return None
    return metadata.loss if metadata else None


def set_aside(folder: str | os.PathLike[str], net: str, stage: Stage, from_epoch: int) -> list[str]:
    """Move checkpoints of an earlier run from epoch `from_epoch` on to `<folder>/earlier/`; return their names.

    A run that begins a stage anew, or goes on from an epoch before the last, would write these names itself.
    """
    base = Path(folder)
    moved = []
    for home in (base, base / BEST):
        for name in _family(home / file_name(net, stage, 0)):
            if _epoch(name) >= from_epoch:
                (base / EARLIER).mkdir(exist_ok=True)
                delete(base / EARLIER / name)
                for path in bundle(home / name):
                    files.move(path, base / EARLIER / path.name)
                moved.append(name)
    return list(dict.fromkeys(moved))


def sweep(folder: str | os.PathLike[str], net: str) -> None:
    """Delete what a killed run of this net left half-written in `folder` and its best/."""
    base, stem = Path(folder), names.checkpoint_stem(net)
    for home in (base, base / BEST):
        if home.is_dir():
            for path in home.glob(f"{SAVING}{stem}-*"):
                shutil.rmtree(path, ignore_errors=True)
            for path in home.glob(f"{stem}-*.tempstate*"):
                path.unlink(missing_ok=True)
            _sweep_orphans(home, f"{stem}-")


def delete(prefix: str | os.PathLike[str]) -> None:
    """Delete a checkpoint; the index goes first, so that half a deletion leaves none."""
    for path in reversed(bundle(prefix)):
        path.unlink(missing_ok=True)


def _resolve_folder(folder: Path, net: str, stages: Collection[Stage], preferred: Stage | None) -> str:
    _check_readable(folder)
    unsound: dict[str, str] = {}
    prefix = preferred is not None and _newest(folder, net, (preferred,), unsound)
    prefix = prefix or _newest(folder, net, stages, unsound)
    if prefix:
        _tell(unsound)
        return prefix
    if unsound:
        raise CheckpointError(listing(f"{folder}, {_wanted(net, stages)}", list(unsound.values())))
    raise _none_fits(folder, net, stages)


def _check_readable(folder: Path) -> None:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CheckpointError(str(folder), "cannot be read", fix="check the permissions of the folder")


def _wanted(net: str, stages: Collection[Stage]) -> str:
    return f"{names.checkpoint_stem(net)}, {' or '.join(stage.label for stage in stages)}"


def _none_fits(folder: Path, net: str, stages: Collection[Stage]) -> CheckpointError:
    found = ", ".join(sorted(p.name.removesuffix(".index") for p in folder.glob("*.index"))[:8]) or "none"
    return CheckpointError(
        str(folder),
        "holds no checkpoint that fits",
        expected=_wanted(net, stages),
        received=found,
        fix="train that stage first, or pass another folder",
    )


def _newest(base: Path, net: str, stages: Collection[Stage], unsound: dict[str, str]) -> str | None:
    # The newest sound one; those before it go to `unsound`, with what is wrong with them.
    for name in _descendants_first(base, _candidates(base, net, stages)):
        if name not in unsound:
            reason = damage(base / name)
            if not reason:
                return str(base / name)
            unsound[name] = reason
    return None


def _candidates(base: Path, net: str, stages: Collection[Stage]) -> list[str]:
    # Names of the checkpoints of the net and stages, the newest first.
    suffixes = "|".join(re.escape(stage.suffix) for stage in stages)
    pattern = re.compile(rf"{re.escape(names.checkpoint_stem(net))}({suffixes})-epoch-\d{{1,9}}")
    in_order = dict.fromkeys([*reversed(_read_state(base)), *reversed(_candidates_by_name(base))])
    return [name for name in in_order if pattern.fullmatch(name) and index_path(base / name).is_file()]


def _descendants_first(base: Path, names: Sequence[str]) -> list[str]:
    # `names`, the newest first, but none in front of one that grew out of it.
    parents, digests = {}, {}
    for name in names if len(names) > 1 else ():
        with contextlib.suppress(CheckpointError, FormatError):
            metadata = read_metadata(base / name)
            parents[name], digests[name] = metadata.parent if metadata else "", digest(base / name)

    def grew(name: str, origin: str) -> bool:
        stage = _rank(name) - _rank(origin)
        if not stage:  # a run that began the stage anew would have moved the later epochs away
            return parents[name] == parents[origin] and _epoch(name) > _epoch(origin)
        return stage > 0 and parents[name] == digests[origin]

    left, result = list(names), []
    while left:
        known = [name for name in left if name in parents]
        newest = next(one for one in left if one not in parents or not any(grew(name, one) for name in known))
        left.remove(newest)
        result.append(newest)
    return result


def _candidates_by_name(base: Path) -> list[str]:
    # Names of the checkpoints of all nets, the latest stage and epoch last.
    found = [index.name.removesuffix(".index") for index in base.glob("*.index")]
    return sorted(found, key=lambda name: (_rank(name), _epoch(name), name))


def _rank(name: str) -> int:
    return int(_stage_of(name)) if _OWN_NAME.fullmatch(name) else -1


def _tell(unsound: Mapping[str, str]) -> None:
    for reason in unsound.values():
        log.warning("skipped %s", reason)


def _accuracy(prefix: Path) -> float | None:
    try:
        metadata = read_metadata(prefix)
    except CheckpointError:
        return None
    return metadata.accuracy if metadata else None


def _epoch(name: str) -> int:
    match = _EPOCH.fullmatch(name)
    return int(match[2]) if match else -1


def _family(prefix: Path) -> list[str]:
    # Names beside `prefix` that differ from it in the epoch alone, oldest epoch first.
    match = _EPOCH.fullmatch(prefix.name)
    names = [path.name.removesuffix(".index") for path in prefix.parent.glob("*.index")]
    same = [n for n in names if match and (other := _EPOCH.fullmatch(n)) and other[1] == match[1]]
    return sorted(same, key=_epoch)


def _read_state(folder: Path) -> list[str]:
    # Names in the state file, oldest first, the newest last; what cannot be understood is left out.
    try:
        text = files.read_bytes(folder / STATE_FILE, limit=MAX_STATE_BYTES).decode("utf-8", "replace")
    except FormatError:
        return []
    matches = [m for line in text.splitlines() if (m := _STATE_LINE.fullmatch(line.strip()))]
    newest = [m[2] for m in matches if not m[1]]
    return [name for name in dict.fromkeys(m[2] for m in matches if m[1]) if name not in newest] + newest


def _write_state(folder: Path, listed: Sequence[str]) -> None:
    # `listed`: oldest first, the newest last.
    lines = [f'model_checkpoint_path: "{listed[-1]}"']
    lines += [f'all_model_checkpoint_paths: "{name}"' for name in listed]
    files.write_atomic(folder / STATE_FILE, "".join(f"{line}\n" for line in lines).encode())


def _link(source: Path, target: Path) -> None:
    # A hard link costs no space; where the file system has none, a copy beside is renamed.
    try:
        os.link(source, target)
    except OSError:
        copy = target.with_name(f"{SAVING}{target.name}")
        shutil.copyfile(source, copy)
        flush(copy)
        files.move(copy, target)


def _sweep_orphans(folder: Path, start: str) -> None:
    # Data without an index: a kill came between the two renames, or between the two deletions.
    for path in folder.glob(f"{start}*.data-*"):
        if not index_path(folder / path.name.split(".data-")[0]).exists():
            path.unlink(missing_ok=True)
