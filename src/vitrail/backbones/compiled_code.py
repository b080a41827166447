"""Compiled code of a denoising network, beside the network, which stays as it is.

``torch.compile`` makes one graph for every shape of the input. Code is made under a lock: a hook that another thread
has on the network meanwhile, to read attention maps, would become a part of it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen

from vitrail.backbones.loading.turns import oddity
from vitrail.core.engine.compiling import LEAVE_OUT, MOST_GRAPHS
from vitrail.core.engine.memory_backoff import is_out_of_memory
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from vitrail.core.method.inputs import Inputs

BACKEND = "inductor"  # of torch.compile
COMPILERS = ("torch._dynamo", "torch._inductor")  # whose errors tell what cannot be compiled


@frozen(eq=False)
class _Code:
    """The compiled code of one network.

    Attributes:
        network: The network.
        forward: Its forward as compiled code.
        shapes: Shapes of the input that there is code for.
    """

    network: torch.nn.Module
    forward: Callable[..., Any]
    shapes: set[torch.Size] = field(factory=set)


class CompiledCode:
    """The compiled code of a pipeline's denoising network, made at the first forward of each shape."""

    def __init__(self) -> None:
        self._code: _Code | None = None
        self._lock = threading.RLock()  # held while code is made, and while hooks are on the network

    def of(self, network: torch.nn.Module) -> Callable[..., tuple[torch.Tensor, ...]]:
        """Return what runs a network as compiled code; code of another network is dropped.

        Args:
            network: The denoising network, as the pipeline has it now.
        """
        code = self._code
        if code is None or code.network is not network:
            with self._lock:
                code = self._code
                if code is None or code.network is not network:
                    forward = torch.compile(network, fullgraph=True, dynamic=False, backend=BACKEND)
                    self._code = code = _Code(network, forward)
        return functools.partial(self._run, code)

    def without_making(self) -> AbstractContextManager[object]:
        """Return a context in which no code is made, for a forward with hooks on the network."""
        return self._lock

    def _run(self, code: _Code, latents: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """Run one forward; the first one of a shape makes its code."""
        is_first = latents.shape not in code.shapes
        with self._making() if is_first else nullcontext(), _told():
            output: tuple[torch.Tensor, ...] = code.forward(latents, *args, **kwargs)
            code.shapes.add(latents.shape)
            return output

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Make code alone, as many graphs as a plan may have; torch's own limit counts all of a class of networks."""
        with self._lock, torch._dynamo.config.patch(cache_size_limit=MOST_GRAPHS):
            yield


@contextmanager
def _told() -> Iterator[None]:
    """Tell what torch's compiler cannot do in one message; shortage of memory stays what it is.

    Raises:
        CapabilityError: With the compiler's reason.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(COMPILERS) or is_out_of_memory(error):
            raise
        raise CapabilityError(
            f"torch.compile cannot make code of the network: {_reason(error)}; {LEAVE_OUT}"
        ) from error


def check_compilable(network: torch.nn.Module, device: torch.device, inputs: Inputs) -> None:
    """Refuse a network that cannot be compiled, inputs that change its graph on the way, and a lack of a compiler.

    Args:
        network: The denoising network.
        device: Device on which it runs.
        inputs: Conditioning of the run.

    Raises:
        CapabilityError: Naming the part or input.
    """
    found = oddity(network)
    if found is not None:
        raise CapabilityError(
            f"compile wants a network of torch's and diffusers' layers alone, without hooks, but {found}; undo that "
            "(for a LoRA pipe.fuse_lora() and pipe.unload_lora_weights(); for offload, weights that stay on the "
            f"device), or {LEAVE_OUT}"
        )
    if inputs.extras.control_image is not None:
        raise CapabilityError(
            f"compile makes the code of a forward once, and what control_image adds is not the same at every step; "
            f"leave control_image out, or {LEAVE_OUT}"
        )
    check_compiler(str(device))


@functools.cache
def check_compiler(device: str) -> None:
    """Refuse a machine on which torch.compile does not work, by compiling a sum; remembered if it works.

    Args:
        device: A torch device.

    Raises:
        CapabilityError: With the compiler's reason and what to install.
    """
    try:
        torch.compile(_sum, fullgraph=True, dynamic=False, backend=BACKEND)(
            torch.ones(2, dtype=torch.float32, device=device)
        )
    except Exception as error:
        raise CapabilityError(
            f"compile: torch.compile does not work here on {device!r}: {_reason(error)}; install what it needs (a C++ "
            f"compiler such as g++, named by CXX if it is another one, with the headers of Python; for a GPU triton, "
            f"too), or {LEAVE_OUT}"
        ) from error


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values + values


def _reason(error: BaseException) -> str:
    """Return the first line of the error at the bottom, which torch wraps in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason'}"
