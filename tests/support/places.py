"""Where things lie in the checkout, for tests wherever they lie themselves."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CORPUS = ROOT / "tests" / "corpus"
NETS = ROOT / "nets"
