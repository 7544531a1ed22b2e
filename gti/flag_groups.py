"""Flags that several scripts share, group by group; imports nothing heavy."""

from __future__ import annotations

import argparse

from gti.arguments import count, net_name, path
from gti.chip.spec import CHIP
from gti.stage import MEAN, MSE

MAX_IMAGE_SIZE = 448  # the chip's largest map (docs/dat_format.md section 6)


def _chip(text: str) -> str:
    if text != CHIP:
        raise argparse.ArgumentTypeError(f"expected {CHIP}, the chip of this kit, received {text!r}")
    return text


def net(parser: argparse.ArgumentParser, *, caps: bool = True) -> None:
    """Add --net, --chip, --nets_dir and, with `caps`, --settings_file."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--net", required=True, type=net_name, help="model name: gti/model/<net>.py, or <net>.py in --nets_dir"
    )
    group.add_argument("--chip", required=True, type=_chip, help=f"target chip: {CHIP}")
    group.add_argument("--nets_dir", default="nets", type=path, metavar="DIR", help="folder of <chip>_<net>_dat.json")
    if caps:
        group.add_argument(
            "--settings_file", type=path, metavar="FILE", help="calibrated caps; default: gti/model/<net>_settings.json"
        )


def checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint."""
    parser.add_argument(
        "--checkpoint", required=True, type=path, metavar="PREFIX", help="checkpoint, or folder (its newest)"
    )


def stages(parser: argparse.ArgumentParser, *, training: bool = True) -> None:
    """Add the flags of the four stages, and with `training` those of quantizers that are trained."""
    group = parser.add_argument_group("model")
    group.add_argument("--quant_w", action="store_true", help="quantize filters and biases")
    group.add_argument("--quant_act", action="store_true", help="quantize activations; needs --quant_w and caps")
    group.add_argument("--fuse", action="store_true", help="fold batch norm and caps into filters and biases")
    filter_step(group)
    group.add_argument("--ten_bit_act", action="store_true", help="ten-bit codes out of the last chip layer")
    if training:
        group.add_argument("--train_caps", action="store_true", help="train the caps with the weights")
        group.add_argument(
            "--train_steps",
            action="store_true",
            help="train the steps of 3-bit filters too, which begin as mse has them",
        )
        group.add_argument("--clip_bias", action="store_true", help="keep biases within [-max|W|, max|W|]")
    sizes(group)


def json_file(parser: argparse.ArgumentParser) -> None:
    """Add --json FILE."""
    parser.add_argument("--json", type=path, metavar="FILE", help="write the figures as JSON")


def report(parser: argparse._ActionsContainer) -> None:
    """Add --report DIR."""
    parser.add_argument(
        "--report", type=path, metavar="DIR", help="add this step's figures to the HTML report in this folder"
    )


def labels_format(group: argparse._ActionsContainer) -> None:
    """Add --labels_format, for scripts with a label file."""
    group.add_argument(
        "--labels_format",
        choices=("auto", "names", "numbered"),
        default="auto",
        help="names: a class name a line; numbered: LABEL_ID LABEL_NAME; auto: numbered where all lines are",
    )


def filter_step(group: argparse._ActionsContainer) -> None:
    """Add --filter_step, which is None where the checkpoint is to say."""
    group.add_argument(
        "--filter_step",
        choices=(MEAN, MSE),
        help="step of 3-bit filters: mean|W| / 4, or that of least squared error; default: the checkpoint's, or mean",
    )


def sizes(group: argparse._ActionsContainer) -> None:
    """Add --classes and --image_size."""
    group.add_argument(
        "--classes", type=count(2), metavar="N", help="with background; default: the checkpoint's or the net's"
    )
    group.add_argument("--image_size", type=image_size, metavar="PIXELS", help="default: the net's")


def image_size(text: str) -> int:
    """Return the size of images; an argument type."""
    value = count(1)(text)
    if value > MAX_IMAGE_SIZE:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_IMAGE_SIZE} pixels, received {text!r}")
    return value


def data(group: argparse._ActionsContainer, *, train: bool, val: bool) -> None:
    """Add --data_dir, and the folders and batch sizes of training and validation data."""
    group.add_argument("--data_dir", type=path, metavar="DIR", help="folder with train/ and val/; default: data/<net>")
    if train:
        group.add_argument(
            "--train_data_dir", type=path, metavar="DIR", help="TFRecords or class folders; default: DATA_DIR/train"
        )
        group.add_argument("--train_batch_size", type=count(1), default=32, metavar="N", help="over all replicas")
    if val:
        group.add_argument(
            "--val_data_dir", type=path, metavar="DIR", help="TFRecords or class folders; default: DATA_DIR/val"
        )
        group.add_argument("--val_batch_size", type=count(1), default=32, metavar="N", help="over all replicas")
