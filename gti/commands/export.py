"""Write a network as ONNX in integer operators: ONNX Runtime gives every code of the emulator.

    gti export nets/2801_digits.model digits.onnx

Which operators, tensors and outputs: docs/export.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from gti.commands import flags
from gti.files import check_writable, write_atomic


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("export", __doc__)
    result.add_argument("file", type=flags.model_file, metavar="FILE", help=".MODEL or .DAT")
    result.add_argument("onnx", metavar="OUT.onnx")
    result.add_argument(
        "--all_outputs",
        action="store_true",
        help="every sublayer's map is an output (default: what the file's read-out mode delivers)",
    )
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Write the ONNX file."""
    args = parser().parse_args(words)

    from gti.chip.export import onnx_file

    check_writable(args.onnx, args.file)
    made = onnx_file.export(args.file, all_outputs=args.all_outputs)
    write_atomic(args.onnx, made.model.SerializeToString())
    for remark in made.remarks:
        flags.note(f"note: {remark}")
    names = [value.name for value in made.model.graph.output]
    print(f"{args.onnx}: {len(made.model.graph.node)} operators, outputs {', '.join(names)}")
    return 0
