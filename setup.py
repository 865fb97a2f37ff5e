"""The compiled kernels, an optional extension: without a compiler, or with VISMOE_BUILD_KERNELS=0, all is Python.

The sources need neither PyTorch nor NumPy. VISMOE_SANITIZE=1 builds them with AddressSanitizer and UBSan.
"""

import os
from glob import glob

from setuptools import Extension, setup

FLAGS = ["-std=c++20", "-O2", "-g0", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-Wno-psabi"]
SANITIZER = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]

sanitizer = SANITIZER if os.environ.get("VISMOE_SANITIZE") == "1" else []
kernels = Extension(
    "vismoe.kernels._native",
    sorted(glob("src/vismoe/kernels/native/**/*.cpp", recursive=True)),
    depends=sorted(glob("src/vismoe/kernels/native/**/*.h", recursive=True)),
    extra_compile_args=FLAGS + sanitizer,
    extra_link_args=sanitizer,
    py_limited_api=True,
    optional=True,
)
pure = os.environ.get("VISMOE_BUILD_KERNELS") == "0"
setup(
    ext_modules=[] if pure else [kernels],
    options={} if pure else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
