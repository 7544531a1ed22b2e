#!/usr/bin/env python
"""From handwritten digits to classes over the USB path, in the steps of the user guide (section 6).

    python scripts/demo.py        (or: make demo)

Types the commands of the README one after the other, then compares every 5-bit code of every sublayer between the
fused Keras model and the stick (LEARN mode), prints one table and writes reports/demo.json. Exit status 1 when
the chip loses more than 0.01 of the float accuracy or a single code differs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gti import cli, files
from gti.chip.spec import CHIP
from gti.errors import UsageError
from gti.stage import Stage

if TYPE_CHECKING:
    import keras

    from gti.training.restore import Source

ROOT = Path(__file__).resolve().parent.parent
NET = "digits"
COMMON = ("--net", NET, "--chip", CHIP)
LARGEST_LOSS = 0.01  # of accuracy, from float to chip
STAGES = ("float", "quant_w", "quant_act", "fused")
FLAGS = {"float": (), "quant_w": ("--quant_w",), "quant_act": ("--quant_w", "--quant_act")}
FLAGS["fused"] = (*FLAGS["quant_act"], "--fuse")
# Adam's rate of each stage: fine-tuning takes smaller steps.
LEARNING_RATES = ("1e-3", "5e-4", "5e-4", "2e-4")


@dataclass(frozen=True)
class Folders:
    """Where the demo reads and writes, and the flags that say so; none for the scripts' own defaults."""

    data: Path
    checkpoints: Path
    nets: Path
    reports: Path
    page: Path  # folder of the HTML report
    data_flags: tuple[str | Path, ...] = ()
    caps_flags: tuple[str | Path, ...] = ()
    nets_flags: tuple[str | Path, ...] = ()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train, quantize, convert and classify handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", default="auto", help="auto | usb | usb:<serial or index> | virtual")
    parser.add_argument("--epochs", type=int, nargs=4, default=(10, 4, 4, 4), metavar="N", help="of each stage")
    parser.add_argument("--images", type=int, default=100, help="validation images whose codes are compared")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--report", metavar="DIR", help="folder of the HTML report; default: reports/demo")
    parser.add_argument("--work_dir", help="keep everything in this folder instead of data/, checkpoints/, nets/, ...")
    return parser.parse_args()


def folders(work_dir: str | None, page: str | None = None) -> Folders:
    """Return the folders of the project, or those inside `work_dir` (made if absent, with a copy of the net's JSON).

    `page` is the folder of the HTML report, None for `demo` beside the other reports.
    """
    base = Path(work_dir).resolve() if work_dir else ROOT
    reports = base / "reports"
    report_folder = Path(page).resolve() if page else reports / "demo"
    if work_dir is None:
        return Folders(ROOT / "data" / NET, ROOT / "checkpoints" / "demo", ROOT / "nets", reports, report_folder)
    data, nets = base / "data" / NET, base / "nets"
    nets.mkdir(parents=True, exist_ok=True)
    for kind in ("dat", "model"):
        shutil.copy(ROOT / "nets" / f"{CHIP}_{NET}_{kind}.json", nets)
    flags = (("--data_dir", data), ("--settings_file", base / "caps.json"), ("--nets_dir", nets))
    return Folders(data, base / "checkpoints", nets, reports, report_folder, *flags)


def run(*words: object, allowed: Collection[int] = (0,)) -> None:
    """Run one command of the kit as a user types it. Raises UsageError with its exit status when it fails."""
    shown = [
        str(word.relative_to(ROOT) if isinstance(word, Path) and word.is_relative_to(ROOT) else word) for word in words
    ]
    print(f"\n$ python {shlex.join(shown)}", flush=True)
    result = subprocess.run([sys.executable, *shown], cwd=ROOT, check=False)
    if result.returncode not in allowed:
        raise UsageError(shown[0], f"failed with exit status {result.returncode}")


def train(where: Folders, args: argparse.Namespace) -> dict[str, float]:
    """Run the training stages of the user guide; return the accuracy of each one's best checkpoint."""
    best = where.checkpoints / "best"
    accuracies = {}
    for stage, epochs, rate in zip(STAGES, args.epochs, LEARNING_RATES, strict=True):
        if stage == "quant_act":
            flags = ("--checkpoint", best, "--quant_w", "--report", where.page)
            run("set_relu_caps.py", *COMMON, *where.data_flags, *where.caps_flags, *flags)
        run(
            *("train.py", *COMMON, *where.data_flags, *where.caps_flags, "--checkpoint_dir", where.checkpoints),
            *(() if stage == "float" else ("--resume_from", best, *FLAGS[stage])),
            *("--optimizer", "adam", "--learning_rate", rate, "--num_epochs", epochs, "--seed", args.seed),
        )
        report = where.reports / f"demo_{stage}.json"
        run("eval.py", *COMMON, *where.data_flags, *FLAGS[stage], "--checkpoint", best, "--json", report)
        accuracies[stage] = accuracy(report)
    return accuracies


def accuracy(report: Path) -> float:
    return float(json.loads(report.read_text(encoding="utf-8"))["accuracy"])


def compare_codes(where: Folders, device: str, images: int) -> tuple[int, int, str]:
    """Return how many codes of how many images' sublayers were compared, how many are equal, and the stick's name.

    The fused Keras model, the emulator and the stick in LEARN mode see the same 8-bit pixels.
    """
    figures = where.reports / "demo_compare.json"
    run(
        *("scripts/compare.py", *COMMON, *where.data_flags, *where.caps_flags, *where.nets_flags),
        *("--checkpoint_dir", where.checkpoints, "--num_batches", 1, "--val_batch_size", images, "--device", device),
        *("--json", figures, "--report", where.page),
        allowed=(0, 1),  # 1: codes differ
    )
    result = json.loads(figures.read_text(encoding="utf-8"))
    exact = [pair["layers"] for pair in result["pairs"] if pair["exact"]]  # fused -> emulator -> stick
    compared = sum(layer["values"] for layer in exact[-1])
    wrong = sum(layer["different"] for layers in exact for layer in layers)
    return compared, max(0, compared - wrong), result["stages"][-1]["origin"]


def restored(source: Source, stage: Stage, where: Folders) -> keras.Model:
    """Return the model of a checkpoint of the demo in `stage`."""
    from gti import nets
    from gti.training import restore

    network = restore.network_for(nets.load(NET, nets_dir=where.nets), NET, source, None)
    return restore.build_model(
        NET, network, stage, source, restore.number_of_classes(None, source), nets_dir=where.nets
    )


def finish_report(checkpoint: Path, where: Folders, report: dict[str, Any]) -> Path:
    """Add what the commands could not know to the HTML report: accuracies of all stages, sensitivity of each layer.

    Returns the page.
    """
    from gti.quiet import import_tensorflow

    import_tensorflow()
    from gti import data_utils
    from gti.report import steps
    from gti.training import restore

    source = restore.open_checkpoint(checkpoint, net=NET, stages=(Stage.QUANT_ACT,))
    model = restored(source, Stage.QUANT_ACT, where)
    size, _, channels = model.network.input_shape
    dataset = data_utils.load(where.data / "val", image_size=size, channels=channels, batch_size=64, classes=None)
    steps.add_sensitivity(where.page, model, dataset, progress=True)
    facts = {
        "stick": report["device"],
        "codes": f"{report['codes_equal']:,} of {report['codes_compared']:,} equal (fused Keras model, stick)",
    }
    return steps.add_stages(where.page, {stage: report[stage] for stage in (*STAGES, "chip")}, facts)


def table(report: dict) -> str:
    """Return the figures as the table of the README."""
    rows = [("stage", "accuracy")]
    rows += [(stage, f"{report[stage]:.4f}") for stage in (*STAGES, "chip")]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value:>8}" for name, value in rows]
    lines.insert(1, "-" * (width + 10))
    lines += [
        f"chip: {report['device']}",
        f"{report['codes_equal']:,} of {report['codes_compared']:,} codes equal (fused Keras model, stick)",
        f"{report['seconds']:.0f} seconds",
    ]
    return "\n".join(lines)


def main() -> int:
    args = parse()
    started = time.monotonic()
    where = folders(args.work_dir, args.report)
    if not (where.data / "val").is_dir():
        run("scripts/make_digits.py", "--output_directory", where.data.parent)
    shutil.rmtree(where.checkpoints, ignore_errors=True)  # the demo begins from nothing
    where.reports.mkdir(parents=True, exist_ok=True)

    report: dict[str, Any] = dict(train(where, args))
    best = where.checkpoints / "best"
    output = ("--output_dir", where.nets) if where.nets_flags else ()
    run(
        *("convert_to_chip.py", *COMMON, *where.data_flags, *where.nets_flags, *output),
        *("--checkpoint", best, "--fuse", "--report", where.page),
    )
    on_chip = where.reports / "demo_chip.json"
    device = ("--device", args.device)
    run(
        *("chip_infer.py", *COMMON, *where.data_flags, *where.nets_flags, "--checkpoint", best),
        *("--last_relu_cap", f"{NET}/conv2_2/relu_cap", *device, "--json", on_chip),
    )
    report["chip"] = accuracy(on_chip)

    print(f"\nevery code of every sublayer, {args.images} images: fused Keras model against the stick", flush=True)
    compared, equal, name = compare_codes(where, args.device, args.images)
    report |= {"device": name, "codes_compared": compared, "codes_equal": equal}
    report["seconds"] = round(time.monotonic() - started, 1)
    files.write_json(where.reports / "demo.json", report)
    page = finish_report(best, where, report)
    print(f"\n{table(report)}\nreport: {page}")

    passed = True
    if report["chip"] < report["float"] - LARGEST_LOSS:
        print(f"FAILED: the chip loses more than {LARGEST_LOSS} of the float accuracy")
        passed = False
    if not compared or equal != compared:
        print(f"FAILED: {compared - equal} of {compared} codes differ")
        passed = False
    return 0 if passed else 1


if __name__ == "__main__":
    cli.run(main)
