"""Install the kit: the base runs networks; `[train]` adds TensorFlow, `[gpu]` CUDA, `[import]` model files."""

from pathlib import Path

from setuptools import find_packages, setup

version = next(
    line.split('"')[1] for line in Path("gti/__init__.py").read_text().splitlines() if line.startswith("__version__")
)

train = ["tensorflow>=2.18", "scipy>=1.11", "keras>=3.6", "pillow>=10", "jinja2>=3.1", "scikit-learn>=1.4"]
# Makes the emulator fast and nothing else: where numba has no wheels (32-bit ARM), NumPy computes the same.
numba = 'numba>=0.59; platform_machine in "x86_64 AMD64 aarch64 arm64 ARM64"'
serve = ["starlette>=0.37", "uvicorn>=0.29", "python-multipart>=0.0.9", "pillow>=10"]

setup(
    name="gti-mdk",
    version=version,
    description="Open Model Development Kit for the Gyrfalcon GTI 2801",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["gti", "gti.*"]),
    package_data={
        "gti": ["**/*.json", "**/*.html", "**/*.j2", "**/*.rules", "**/*.model", "zoo/*.md", "py.typed"],
    },
    entry_points={"console_scripts": ["gti = gti.__main__:start"]},
    install_requires=["numpy>=1.26", "pyusb>=1.2.1", "tqdm>=4.60", numba],
    extras_require={
        "images": ["pillow>=10"],
        "serve": serve,
        "train": train,
        "import": ["onnx>=1.15", "safetensors>=0.4"],
        "gpu": [*train, "tensorflow[and-cuda]>=2.18"],
        "peers": ["onnx>=1.16", "onnxruntime>=1.18", "ai-edge-litert>=1.2", "openvino>=2024.4"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "httpx>=0.27",
            "onnx>=1.15",
            "onnxruntime>=1.17",
            "ruff",
            "mypy",
            *serve,
        ],
    },
)
