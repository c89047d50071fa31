"""The CPU kernels, compiled where there is a C++ compiler; without them Quire runs on plain torch, slower."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("src/quire/ops/cpu/csrc")


class KernelBuild(build_ext):
    """Compiles the sources side by side, for each instruction set is most of a minute; and only once.

    An editable install starts from empty folders, so that each further one (``make test`` after ``make demo``) would
    compile again what the one before left beside its sources.
    """

    def build_extension(self, ext: Extension) -> None:
        built, target = Path("src", self.get_ext_filename(ext.name)), Path(self.get_ext_fullpath(ext.name))
        if self.editable_mode and is_newer(built, [__file__, *ext.sources, *ext.depends]):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, target)
            return
        compile_some = self.compiler.compile

        def compile_all(sources, **settings):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [o for objects in pool.map(lambda s: compile_some([s], **settings), sources) for o in objects]

        self.compiler.compile = compile_all
        super().build_extension(ext)


def is_newer(built: Path, inputs: list[str]) -> bool:
    return built.exists() and built.stat().st_mtime > max(Path(file).stat().st_mtime for file in inputs)


setup(
    cmdclass={"build_ext": KernelBuild},
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
