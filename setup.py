"""The CPU kernels, compiled where there is a C++ compiler; without them Quire runs on plain torch, slower."""

from pathlib import Path

from setuptools import Extension, setup

CSRC = Path("src/quire/ops/cpu/csrc")

setup(
    ext_modules=[
        Extension(
            "quire.ops.cpu._kernels",
            sources=sorted(str(path) for path in CSRC.glob("*.cpp")),
            depends=sorted(str(path) for pattern in ("*.h", "*.inl") for path in CSRC.glob(pattern)),
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
