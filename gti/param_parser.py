"""Every flag of the root scripts, with defaults shown in --help; imports nothing heavy.

Defaults follow the user guide (sections 6 and 7.1); a mistake on the command line is a UsageError of one sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gti import flag_groups
from gti.arguments import Parser, count, number, path
from gti.errors import UsageError
from gti.stage import LEARNED, MSE, Stage, from_flags


def train_parser() -> Parser:
    """Return the flags of train.py."""
    parser = Parser(
        "Train or fine-tune a network in one of four stages: float, --quant_w, --quant_w --quant_act, "
        "--quant_w --quant_act --fuse. Every epoch trains, evaluates, and keeps the last and the best checkpoint."
    )
    flag_groups.net(parser)
    flag_groups.stages(parser)
    group = parser.add_argument_group("data")
    flag_groups.data(group, train=True, val=True)
    group.add_argument("--no_augment", action="store_true", help="train without random crop and flip")
    group = parser.add_argument_group("checkpoints")
    group.add_argument(
        "--resume_from", type=path, metavar="PREFIX", help="checkpoint or folder (its newest that fits) to start"
    )
    group.add_argument(
        "--checkpoint_dir", default="checkpoints", type=path, metavar="DIR", help="folder for checkpoints"
    )
    group.add_argument("--keep", type=count(1), default=5, metavar="N", help="last checkpoints kept beside the best")
    group = parser.add_argument_group("optimization")
    group.add_argument("--learning_rate", type=number(0, above=True), default=1e-4, metavar="RATE", help="first rate")
    group.add_argument("--schedule", choices=("constant", "cosine"), default="constant", help="of the learning rate")
    group.add_argument(
        "--schedule_span",
        nargs=2,
        type=number(0, 1),
        default=[0.0, 1.0],
        metavar=("FROM", "TO"),
        help="part of the cosine that these epochs take; 0 1 is all of it, and stages may share one",
    )
    group.add_argument("--warmup_steps", type=count(0), default=0, metavar="N", help="batches of a rising rate first")
    epochs = group.add_mutually_exclusive_group()
    epochs.add_argument("--num_epochs", type=count(0), default=10, metavar="N", help="epochs of this run; 0 saves only")
    epochs.add_argument(
        "--total_epochs",
        type=count(1),
        metavar="N",
        help="epochs of the stage in all its runs: trains those that are left, on one schedule for all",
    )
    group.add_argument("--steps_per_epoch", type=count(1), metavar="N", help="end epochs after N batches")
    group.add_argument("--optimizer", choices=("sgd", "adam", "muon"), default="sgd", help="update rule")
    group.add_argument("--momentum", type=number(0, 1), default=0.9, metavar="M", help="of sgd and muon")
    group.add_argument("--nesterov", action="store_true", help="Nesterov's momentum in sgd and muon")
    group.add_argument("--weight_decay", type=number(0), default=1e-4, metavar="L2", help="on filters and fc weights")
    group.add_argument(
        "--label_smoothing",
        type=number(0, 0.99),
        default=0.0,
        metavar="SHARE",
        help="of each target that all classes share",
    )
    group.add_argument(
        "--ema",
        type=number(0, 0.999999),
        default=0.0,
        metavar="DECAY",
        help="evaluate and keep an average of the weights, 0.99 to 0.9999; 0: none",
    )
    group.add_argument(
        "--teacher", type=path, metavar="PREFIX", help="float checkpoint of the same net whose answers are learned too"
    )
    group.add_argument(
        "--distill_weight", type=number(0, 1), metavar="W", help="share of the teacher beside the labels; default: 0.5"
    )
    group.add_argument(
        "--distill_temperature", type=number(0, 100, above=True), metavar="T", help="softens the answers; default: 2"
    )
    group.add_argument(
        "--reestimate_batches",
        type=count(0),
        default=100,
        metavar="N",
        help="training batches for batch-norm statistics and biases where the stage --fuse begins; 0: as trained",
    )
    group.add_argument(
        "--compute_dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the chip's convolutions in training steps; bfloat16 is faster where the processor has it",
    )
    group.add_argument("--num_gpus", type=count(0), default=0, metavar="N", help="0: one device; N: replicas on N GPUs")
    group.add_argument("--seed", type=count(0), default=0, metavar="N", help="same seed, same run")
    group.add_argument("--log_dir", type=path, metavar="DIR", help="folder for TensorBoard scalars and histograms")
    flag_groups.report(group)
    for flag in ("--train_size", "--val_size"):
        parser.old(flag, "leave it out: whole sets are counted; --steps_per_epoch ends epochs earlier")
    for flag in ("--best_checkpoint_dir", "--last_checkpoint_dir"):
        parser.old(flag, "pass --checkpoint_dir, which holds the last checkpoints, and the best one in best/")
    parser.alias("--keep_last_n_checkpoints", "--keep")
    return parser


def eval_parser() -> Parser:
    """Return the flags of eval.py."""
    parser = Parser("Evaluate a checkpoint on the whole validation set, with the flags it was trained with.")
    flag_groups.net(parser)
    flag_groups.checkpoint(parser)
    flag_groups.stages(parser, training=False)
    flag_groups.data(parser.add_argument_group("data"), train=False, val=True)
    flag_groups.json_file(parser)
    flag_groups.report(parser)
    parser.old("--data_size", "leave it out: the whole set is evaluated")
    parser.alias("--batch_size", "--val_batch_size")
    return parser


def calibration_parser() -> Parser:
    """Return the flags of set_relu_caps.py."""
    parser = Parser(
        "Calibrate the cap of every ReLU on the chip: the percentile of its outputs, pooled exactly over all batches. "
        "Writes the settings file that --quant_act reads."
    )
    flag_groups.net(parser)
    flag_groups.checkpoint(parser)
    group = parser.add_argument_group("model")
    group.add_argument("--quant_w", action="store_true", help="the checkpoint was trained with --quant_w")
    flag_groups.filter_step(group)
    group.add_argument("--ten_bit_act", action="store_true", help="ten-bit codes out of the last chip layer")
    flag_groups.sizes(group)
    flag_groups.data(parser.add_argument_group("data"), train=True, val=False)
    group = parser.add_argument_group("calibration")
    group.add_argument("--percentile", type=number(0, 100, above=True), default=99.99, metavar="P", help="0 < P <= 100")
    group.add_argument("--num_batches", type=count(1), default=5, metavar="N", help="training batches to look at")
    group.add_argument("--seed", type=count(0), default=0, metavar="N", help="of the choice of batches")
    flag_groups.report(parser)
    parser.old("--data_size", "pass --num_batches, which are of --train_batch_size images")
    parser.alias("--batch_size", "--train_batch_size")
    for flag in ("--quant_act", "--fuse"):
        parser.old(flag, "leave it out: caps are calibrated before activations are quantized", takes=False)
    return parser


def convert_parser() -> Parser:
    """Return the flags of convert_to_chip.py."""
    parser = conversion_parser(
        "Convert a quantized checkpoint to the chip's .DAT and .MODEL files. "
        "GTI_DEBUG_CONVERSION=True logs max|W|, max|B|, gains and shift of every layer."
    )
    parser.add_argument("--ten_bit_act", action="store_true", help="ten-bit codes out of the last chip layer")
    parser.add_argument("--num_chips", type=count(1), metavar="N", help="sticks in a row; default: ChipNumber, or 1")
    parser.add_argument(
        "--update_templates", action="store_true", help="write shifts and names into the net's JSON pair too"
    )
    return parser


def conversion_parser(description: str) -> Parser:
    """Return the flags that every script has which turns a checkpoint into a .MODEL."""
    parser = Parser(description)
    flag_groups.net(parser, caps=False)
    flag_groups.checkpoint(parser)
    parser.add_argument("--fuse", action="store_true", help="the checkpoint was trained with --fuse")
    flag_groups.filter_step(parser)
    parser.add_argument("--output_dir", type=path, metavar="DIR", help="folder for the files; default: --nets_dir's")
    parser.add_argument(
        "--data_dir", type=path, metavar="DIR", help="data set whose crop goes into the .MODEL; default: data/<net>"
    )
    flag_groups.report(parser)
    parser.add_argument("--image_size", type=flag_groups.image_size, metavar="PIXELS", help="default: the checkpoint's")
    return parser


def infer_parser() -> Parser:
    """Return the flags of chip_infer.py."""
    parser = Parser("Classify the validation set on a stick (or the virtual one), host layers in TensorFlow.")
    flag_groups.net(parser, caps=False)
    flag_groups.checkpoint(parser)
    parser.add_argument("--last_relu_cap", metavar="NAME", help="variable of the last cap; default: the net's last one")
    parser.add_argument("--model_file", type=path, metavar="FILE", help="default: <chip>_<net>.model in --nets_dir")
    parser.add_argument("--ten_bit_act", action="store_true", help="ten-bit codes out of the last chip layer")
    parser.add_argument("--device", default="auto", help="auto | usb | usb:<serial or index> | virtual | replay:FILE")
    parser.add_argument("--record", type=path, metavar="FILE", help="write every USB transfer to FILE")
    parser.add_argument(
        "--engine_only",
        action="store_true",
        help="no stick and no USB framing: the emulator alone, in batches; the same codes, faster",
    )
    parser.add_argument("--num_examples", type=count(1), metavar="N", help="images to classify; default: all")
    parser.add_argument(
        "--layer_outputs", type=path, metavar="DIR", help="save every map as .npz and a contact sheet per sublayer"
    )
    flag_groups.json_file(parser)
    flag_groups.report(parser)
    flag_groups.sizes(parser)
    flag_groups.data(parser.add_argument_group("data"), train=False, val=True)
    parser.alias("--data_size", "--num_examples")
    parser.alias("--batch_size", "--val_batch_size")
    return parser


def ptq_parser() -> Parser:
    """Return the flags of scripts/ptq.py."""
    parser = Parser(
        "Quantize a float checkpoint for the chip without training: caps, filters, biases and shifts from some "
        "pictures, without labels. Some pictures are held back, and every figure comes from them."
    )
    flag_groups.net(parser, caps=False)
    flag_groups.checkpoint(parser)
    parser.add_argument(
        "--checkpoint_dir", required=True, type=path, metavar="DIR", help="folder for the fused checkpoint"
    )
    flag_groups.sizes(parser)
    parser.set_defaults(ten_bit_act=False)
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--images", required=True, type=path, metavar="DIR", help="folder of pictures, with or without class folders"
    )
    group.add_argument(
        "--num_images", type=count(1), default=64, metavar="N", help="images in all; crops, where pictures are fewer"
    )
    group.add_argument("--seed", type=count(0), default=0, metavar="N", help="of the choice of pictures and positions")
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        choices=("compensate", "plain"),
        default="compensate",
        help="plain: filters are rounded as they are, to compare with",
    )
    group.add_argument("--filter_step", choices=(MSE,), default=MSE, help="what this writes has this rule")
    parser.add_argument("--json", type=path, metavar="FILE", help="write the figures as JSON")
    flag_groups.report(parser)
    return parser


def search_parser() -> Parser:
    """Return the flags of scripts/search_bits.py."""
    parser = Parser(
        "Find out which major layers may have 1-bit filters: what each costs alone, after quantization without "
        "training, and the frontier of filter rows and accuracy."
    )
    flag_groups.net(parser, caps=False)
    flag_groups.checkpoint(parser)
    flag_groups.sizes(parser)
    parser.set_defaults(ten_bit_act=False)
    group = parser.add_argument_group("pictures and data")
    group.add_argument("--images", required=True, type=path, metavar="DIR", help="pictures to quantize by")
    group.add_argument("--num_images", type=count(1), default=64, metavar="N", help="images in all")
    flag_groups.data(group, train=True, val=True)
    group.add_argument("--seed", type=count(0), default=0, metavar="N", help="of the choice of pictures")
    group = parser.add_argument_group("fine-tuning of each choice")
    group.add_argument("--tune_steps", type=count(0), default=0, metavar="N", help="batches; 0: none")
    group.add_argument("--learning_rate", type=number(0, above=True), default=1e-4, metavar="RATE", help="of Adam")
    group = parser.add_argument_group("choice")
    limits = group.add_mutually_exclusive_group()
    limits.add_argument("--rows", type=count(1), metavar="N", help="the best one of at most N filter rows")
    limits.add_argument(
        "--max_drop", type=number(0, 100), metavar="POINTS", help="the smallest one that is to lose at most POINTS"
    )
    group.add_argument("--out", type=path, metavar="DIR", help="write the JSON pair of the choice")
    flag_groups.json_file(parser)
    return parser


def compare_parser() -> Parser:
    """Return the flags of scripts/compare.py."""
    parser = Parser(
        "Compare every sublayer from stage to stage: float, quant_w, quant_act, fused, emulator, stick. The last three "
        "must agree code for code. Exit status 1 where they do not, or a limit is exceeded."
    )
    flag_groups.net(parser)
    group = parser.add_argument_group("stages")
    group.add_argument(
        "--checkpoint_dir",
        type=path,
        metavar="DIR",
        help="folder whose best checkpoint of a stage is taken; default: checkpoints",
    )
    for stage in Stage:
        group.add_argument(
            f"--{stage.label}_checkpoint",
            type=path,
            metavar="PREFIX",
            help=f"checkpoint of the stage {stage.label}, or its folder",
        )
    group.add_argument(
        "--model_file", type=path, metavar="FILE", help=".model or .dat; default: <chip>_<net>.model in --nets_dir"
    )
    flag_groups.filter_step(group)
    group.add_argument("--device", default="auto", help="auto | usb | usb:<serial or index> | virtual | none")
    group.add_argument(
        "--recorded", type=path, metavar="DIR", help="maps of another run: what chip_infer.py --layer_outputs wrote"
    )
    group.add_argument("--ten_bit_act", action="store_true", help="ten-bit codes out of the last chip layer")
    flag_groups.sizes(group)
    group = parser.add_argument_group("data")
    flag_groups.data(group, train=False, val=True)
    group.set_defaults(val_batch_size=4)
    group.add_argument("--num_batches", type=count(1), default=2, metavar="N", help="batches to compare")
    group = parser.add_argument_group("limits, in codes, for each sublayer of the stages that are not exact")
    group.add_argument("--max_difference", type=number(0), metavar="CODES", help="largest difference; default: any")
    group.add_argument("--mean_difference", type=number(0), metavar="CODES", help="mean difference; default: any")
    group.add_argument("--min_cosine", type=number(-1, 1), metavar="C", help="cosine of the codes; default: any")
    flag_groups.json_file(parser)
    flag_groups.report(parser)
    return parser


def parse(parser: Parser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and complete the command line.

    Fills the data folders (`data/<net>`, `data/<net>/{train,val}`) and the output folder, and adds `stage` where the
    script has quantization flags.
    Raises UsageError.
    """
    args = parser.parse_args(arguments)
    data_dir = getattr(args, "data_dir", None)
    args.data_given = any(getattr(args, name, None) for name in ("data_dir", "train_data_dir", "val_data_dir"))
    for name, folder in (("train_data_dir", "train"), ("val_data_dir", "val")):
        if hasattr(args, name) and getattr(args, name) is None:
            setattr(args, name, _data_folder(data_dir or f"data/{args.net}", folder))
    if hasattr(args, "data_dir") and not any(hasattr(args, name) for name in ("train_data_dir", "val_data_dir")):
        args.data_dir = data_dir or f"data/{args.net}"
    if hasattr(args, "output_dir"):
        args.output_dir = args.output_dir or args.nets_dir
    _take_report_for_json(args)
    if hasattr(args, "quant_act"):
        args.stage = from_flags(args.quant_w, args.quant_act, args.fuse)
        if getattr(args, "train_caps", False) and args.stage is not Stage.QUANT_ACT:
            raise UsageError(
                "--train_caps",
                "caps are trained while activations are quantized and not yet fused",
                expected=Stage.QUANT_ACT.flags,
                received=args.stage.flags,
            )
        if getattr(args, "train_steps", False):
            _take_steps(args)
    if getattr(args, "optimizer", None) is not None:
        _check_optimization(args)
    return args


def _take_steps(args: argparse.Namespace) -> None:
    if args.stage is Stage.FLOAT:
        raise UsageError("--train_steps", "float filters have no steps", expected="--quant_w", received="none")
    if args.filter_step:
        raise UsageError(
            "--train_steps",
            "is a rule of its own",
            expected="no --filter_step",
            received=f"--filter_step {args.filter_step}",
        )
    args.filter_step = LEARNED


def _check_optimization(args: argparse.Namespace) -> None:
    if args.optimizer == "muon" and not args.momentum:
        raise UsageError("--optimizer muon", "is a kind of momentum", expected="--momentum above 0", received="0")
    if args.nesterov and (args.optimizer == "adam" or not args.momentum):
        raise UsageError(
            "--nesterov",
            "is a kind of momentum",
            expected="--optimizer sgd or muon, --momentum above 0",
            received=f"--optimizer {args.optimizer} --momentum {args.momentum:g}",
        )
    for flag in ("distill_weight", "distill_temperature"):
        if getattr(args, flag) is not None and args.teacher is None:
            raise UsageError(f"--{flag}", "there is no teacher", expected="--teacher PREFIX", received="none")
    begin, end = args.schedule_span
    if begin >= end:
        raise UsageError(
            "--schedule_span", "is empty", expected="FROM below TO", received=f"{begin:g} {end:g}", fix="swap them"
        )
    if args.schedule == "constant" and (begin, end) != (0, 1):
        raise UsageError(
            "--schedule_span",
            "is a part of a schedule, and a constant rate has none",
            expected="--schedule cosine",
            received="--schedule constant",
        )


def _data_folder(data_dir: str, part: str) -> str:
    # DATA_DIR/train or DATA_DIR/val, or DATA_DIR where it holds the records, or class folders, itself.
    from gti.data import folders

    inside = Path(data_dir) / part
    return data_dir if not inside.exists() and folders.holds_data(data_dir) else str(inside)


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags say about a model, for `gti.training.restore.build_model`."""
    known = ("settings_file", "nets_dir", "filter_step", "ten_bit_act", "train_caps", "train_steps", "clip_bias")
    return {name: getattr(args, name) for name in known if hasattr(args, name)}


def _take_report_for_json(args: argparse.Namespace) -> None:
    # eval.py and chip_infer.py wrote JSON to --report FILE once; a report is a folder, whose name has no suffix.
    given = getattr(args, "report", None)
    if given is None or not hasattr(args, "json") or args.json is not None or Path(given).is_dir():
        return
    if Path(given).suffix or Path(given).exists():
        args.json, args.report = given, None
        print(f"note: --report is a folder for the HTML page; figures as JSON: --json {given}", file=sys.stderr)
