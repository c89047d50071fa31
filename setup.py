"""The CPU kernels, compiled where there is a C++ compiler; without them Quire runs on plain torch, slower."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("src/quire/ops/cpu/csrc")


class ParallelBuild(build_ext):
    """Compiles the sources side by side: each instruction set is most of a minute."""

    def build_extension(self, ext: Extension) -> None:
        compile_some = self.compiler.compile

        def compile_all(sources, **settings):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [o for objects in pool.map(lambda s: compile_some([s], **settings), sources) for o in objects]

        self.compiler.compile = compile_all
        super().build_extension(ext)


setup(
    cmdclass={"build_ext": ParallelBuild},
    ext_modules=[
        Extension(
            "quire.ops.cpu._kernels",
            sources=sorted((str(path) for path in CSRC.glob("*.cpp")), reverse=True),  # the longest not last
            depends=sorted(str(path) for pattern in ("*.h", "*.inl") for path in CSRC.glob(pattern)),
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
)
