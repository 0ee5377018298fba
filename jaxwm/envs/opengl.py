"""OpenGL for the pictures of MuJoCo, which envpool draws without a screen.

envpool brings an EGL of its own, which needs a driver of the system, and its MuJoCo looks for a library called libEGL
or libOSMesa among those that the process has loaded. Where it misses either it ends the process: there is no exception
to catch. It also ends where Qt, which Procgen needs, brought its libGL before libEGL was there: `load` comes first."""

import ctypes
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LIBRARIES = "libEGL.so.1", "libOSMesa.so.8"
ADVICE = "`apt-get install libegl1` (Debian, Ubuntu) brings the library and a software driver"
_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT


def prepare(name: str) -> None:
    """Load what drawing needs into this process. ImportError for the environment `name` where it is missing."""
    if problem := missing():
        raise ImportError(f"{name}: pixels need OpenGL, and {problem}; or leave pixels out, for the state")


@cache
def load() -> bool:
    """Load one of `LIBRARIES`, for good; whether there is one."""
    return sys.platform == "linux" and any(_loaded(library, ctypes.RTLD_GLOBAL) for library in LIBRARIES)


@cache
def missing() -> str:
    """What drawing misses in this process, in words with the way out, or nothing. What is there is loaded."""
    if sys.platform != "linux":
        return ""
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    if "libQt5Gui" in mapped and "libEGL.so" not in mapped:
        return "Qt has loaded another one first: open this environment before it, or in another process"
    if not load():
        return f"neither {' nor '.join(LIBRARIES)} can be loaded: {ADVICE}"
    return "" if any(_starts(egl) for egl in _egls()) else f"EGL finds no device to draw with: {ADVICE}"


def _loaded(library: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(library, mode)
    except OSError:
        return None


def _egls() -> Iterator[ctypes.CDLL]:
    """The EGL that came with envpool, and the system's."""
    import envpool

    packed = Path(envpool.__file__).parent.parent.joinpath("envpool.libs").glob("libEGL*")
    for library in (*map(str, packed), LIBRARIES[0]):
        if (egl := _loaded(library)) is not None:
            yield egl


def _starts(egl: ctypes.CDLL) -> bool:
    """Whether a device of EGL can be opened, as envpool will do it."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    egl.eglGetProcAddress.restype, egl.eglGetProcAddress.argtypes = pointer, [ctypes.c_char_p]
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    query, display = (egl.eglGetProcAddress(word) for word in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT"))
    if not (query and display):
        return False
    devices, count = (pointer * 16)(), number()
    ctypes.CFUNCTYPE(ctypes.c_uint, number, pointer, pointer)(query)(16, devices, ctypes.byref(count))
    opened = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display)
    return any(egl.eglInitialize(opened(_DEVICE, device, None), None, None) for device in devices[: count.value])
