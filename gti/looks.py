"""What flags, files and their names tell of a mistake, for every script, before any of them imports TensorFlow.

Each look raises the error that the work itself would end with. What only the content of a checkpoint or of an image
tells is found later.
"""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

from gti import arguments, caps, files, host_module, nets, packing, stage
from gti.chip import loaded_model
from gti.chip.formats import splitting
from gti.chip.network.types import Network
from gti.chip.usb import devices, trace
from gti.data import folders
from gti.stage import Stage
from gti.training import checkpoint_folder

log = logging.getLogger(__name__)


def network(args: Namespace) -> Network:
    """Return the Network of --net, read and checked, at --image_size (None: as its dat.json says), to build a model of.

    Raises UsageError, FormatError and NetworkError as `nets.load` and `nets.check_trainable` do, UsageError for
    --ten_bit_act without ten bits, and ModuleNotFoundError where a package that --report needs is missing.
    """
    found = _network(args)
    nets.check_trainable(args.net, found)
    return found


def _network(args: Namespace) -> Network:
    if getattr(args, "report", None):
        import jinja2  # noqa: F401  (where it is missing, that is said before the work)
    found = nets.load(args.net, image_size=args.image_size, nets_dir=args.nets_dir)
    if getattr(args, "ten_bit_act", False):
        nets.check_ten_bit(args.net, found)
    chain(args.net, found, args.nets_dir)
    return found


def chain(net: str, network: Network, nets_dir: str | Path | None) -> None:
    """Look at the files that later steps need of a net, beside its `network`: the host's module and the model.json.

    Warns where there is no model.json. Raises UsageError and FormatError where one contradicts the network or would end
    a later step, as a "ChipNumber" that cannot be does.
    """
    host_module.check(net, nets_dir)
    splitting.check_number(network, splitting.chip_number(network))
    path = nets.model_json(net, nets_dir)
    if path.exists():
        packing.read_templates(network, net=net, nets_dir=nets_dir or nets.NETS_DIR)
    else:  # conversion is the first to need it
        log.warning("%s: no such file, and conversion needs it: copy that of another net and leave its sizes out", path)


def checkpoint(
    args: Namespace, path: str, stages: Collection[Stage] = tuple(Stage), preferred: Stage | None = None
) -> tuple[str, Stage | None]:
    """Return the prefix that `path` means and the stage that its name tells. Raises CheckpointError."""
    return checkpoint_folder.look(path, net=args.net, stages=stages, preferred=preferred)


def conversion(args: Namespace) -> Network:
    """Look at all that turning a checkpoint into files needs, and make their folders; return the Network.

    Raises as the other looks do, CheckpointError for a stage that does not fit --fuse, and FormatError for a model.json
    that cannot serve.
    """
    found = _network(args)
    packing.read_templates(found, net=args.net, nets_dir=args.nets_dir)
    if getattr(args, "num_chips", None):
        splitting.check_number(found, args.num_chips)
    prefix, known = checkpoint(args, args.checkpoint, preferred=stage.converted(args.fuse))
    stage.check_convert(known, args.fuse, prefix)
    outputs(args, args.output_dir)
    return found


def settings(args: Namespace, network: Network, found: Stage | None) -> None:
    """Look at the settings file where `args.stage` takes its caps from it; `found` is the stage of the checkpoint.

    Raises UsageError where no caps are calibrated yet, FormatError for a file that cannot be read, QuantizationError
    for one without the cap of a sublayer.
    """
    if args.stage < Stage.QUANT_ACT:
        return
    if found is not None and found < Stage.QUANT_ACT:
        path = str(caps.settings_file(args.net, args.settings_file))
        caps.check_complete(caps.calibrated(args.net, args.settings_file), args.net, network, path)
    elif args.settings_file is not None and (found is not None or os.path.exists(args.settings_file)):
        caps.load(args.settings_file, args.net)


def data(args: Namespace, *data_dirs: str) -> None:
    """Look at data folders and their label files. Raises DataError as the functions of `gti.data.folders` do.

    Where neither a flag nor `data/<net>` is the data set, the checkpoint that the script reads may tell it later.
    """
    if not args.data_given and _starts_from(args) and not all(map(os.path.isdir, data_dirs)):
        return
    for folder in data_dirs:
        folders.look(folder)
    if not _starts_from(args):  # the labels of a checkpoint number class folders
        folders.check_same_classes(*data_dirs)


def _starts_from(args: Namespace) -> str | None:
    return getattr(args, "checkpoint", None) or getattr(args, "resume_from", None)


def device(args: Namespace) -> None:
    """Look at --device, the recording that it plays back, and --record.

    Raises UsageError for a device that is not understood or a file that cannot be written, FormatError for a recording
    that is not there, or none.
    """
    selected = devices.parse_device(args.device)
    replayed = [selected.key] if selected.kind == "replay" else []
    for path in replayed:
        next(trace.read(path))
    if getattr(args, "record", None):
        output_file(args, "record")
        trace.check_target(args.record)


def converted_file(path: str) -> None:
    """Look at a .model or .dat that will be run. Raises FormatError and its kin for a file that is none."""
    loaded_model.load_chips(Path(path))


def output_file(args: Namespace, flag: str, path: str | Path | None = None) -> None:
    """Try the file of a flag, or `path` in its place.

    Raises UsageError where it cannot be written, or is one of the net's files or of those that other flags name.
    """
    of_net = (where(args.net, args.nets_dir) for where in (nets.dat_json, nets.model_json, nets.model_file))
    files.check_writable(path or getattr(args, flag), *of_net, *arguments.others_named(args, flag))


def outputs(args: Namespace, *made: str | None) -> None:
    """Try the files of --json and --report, and make the folders `made`. Raises UsageError where that is impossible."""
    if getattr(args, "json", None):
        output_file(args, "json")
    for folder in filter(None, (*made, getattr(args, "report", None))):
        files.make_writable_folder(folder)
