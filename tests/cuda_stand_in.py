"""Stand-ins for a GPU, so that the CUDA path of the scripts runs where there is none.

CudaOnTheCpu  tensors live on the CPU and claim to be on CUDA. A graph is recorded operation by
              operation at fixed addresses and replayed from them, so that it does not see what
              Python changed meanwhile; a read by the host fails while a graph is recorded, or when
              torch.cuda.set_sync_debug_mode("error") forbids it.
FakeCuda      tensors on CUDA have a shape, a type and a device, but no content (PyTorch's
              FakeTensorMode); those on the CPU are real. Operations on both devices, a generator of
              the other one and operations that have no kernel on CUDA fail as they do on a GPU.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
READ = torch.ops.aten._local_scalar_dense.default  # what .item(), float() and bool() do


def place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Graph:
    """In place of torch.cuda.CUDAGraph: the operations of a step, with the tensors they use."""

    def __init__(self):
        self.calls, self.replays = [], 0

    def replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # kernels: nothing but numbers
            for func, args, kwargs, outputs in self.calls:
                results = tree_leaves(func(*args, **kwargs))
                for old, new in zip(outputs, results, strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


class Recording(TorchDispatchMode):
    """In place of torch.cuda.graph: what happens inside goes to the graph, and is undone after."""

    active = False

    def __enter__(self):
        Recording.active = True
        self.random = torch.get_rng_state()  # on CUDA a recording draws no random numbers
        return super().__enter__()

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph, self.before, self.made = graph, {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is READ:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        args, kwargs = tree_map(lambda x: x, (args, kwargs or {}))  # lists of their own
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for x in read:
            if place(x) not in self.made:
                self.before.setdefault(place(x), (x.untyped_storage(), x.untyped_storage().clone()))
        result, known = func(*args, **kwargs), {place(x) for x in read}
        outputs = [
            x if isinstance(x, Tensor) and place(x) not in known else None
            for x in tree_leaves(result)
        ]
        self.made |= {place(x) for x in outputs if x is not None} - set(self.before)
        if func._schema.is_mutable or any(x is not None for x in outputs):  # else it is a view
            self.graph.calls.append((func, args, kwargs, outputs))
        return result

    def __exit__(self, kind, *rest):
        super().__exit__(kind, *rest)
        Recording.active = False
        for storage, content in self.before.values():
            storage.copy_(content)
        torch.set_rng_state(self.random)
        if kind is not None:  # as the driver, which forgets the cause
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )


class NoReads(TorchDispatchMode):
    def __init__(self, settings: dict):
        super().__init__()
        self.settings = settings

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is READ and self.settings["sync"] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


def moved(x: object) -> object:
    """The CPU in place of the GPU, where a device is named."""
    named = isinstance(x, str | torch.device) and str(x) in ("cuda", "cuda:0")
    return "cpu" if named else x


class CpuForCuda(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:
            return CUDA
        if func is torch.device:
            return func(*args, **kwargs)
        return func(*map(moved, args), **{key: moved(x) for key, x in kwargs.items()})


class CudaOnTheCpu(contextlib.ExitStack):
    """`graphs`: those that were made."""

    def __enter__(self):
        super().__enter__()
        self.graphs, settings, load = [], {"sync": "default"}, torch.load
        stream = mock.Mock(is_capturing=lambda: Recording.active)

        def new_graph() -> Graph:
            self.graphs.append(Graph())
            return self.graphs[-1]

        def set_sync_debug_mode(mode: str) -> None:
            settings["sync"] = mode

        def load_here(file: Path, device: torch.device, **rest) -> object:
            return load(file, "cpu", **rest)

        constants = {
            "is_available": True,
            "device_count": 1,
            "current_device": 0,
            "get_device_name": "stand-in",
            "get_device_capability": (9, 0),
            "get_sync_debug_mode": 0,
            "Stream": stream,
            "current_stream": stream,
        }
        replaced = {name: mock.Mock(return_value=value) for name, value in constants.items()}
        for name in ("set_device", "synchronize", "manual_seed_all"):
            replaced[name] = mock.Mock(return_value=None)
        replaced |= {"CUDAGraph": new_graph, "graph": Recording, "stream": contextlib.nullcontext}
        replaced["is_current_stream_capturing"] = lambda: Recording.active
        replaced["set_sync_debug_mode"] = set_sync_debug_mode
        replaced["get_rng_state"] = torch.get_rng_state
        for name, what in replaced.items():
            self.enter_context(mock.patch.object(torch.cuda, name, what))
        if hasattr(torch, "accelerator"):  # whom optimisers ask
            current = mock.Mock(return_value=stream)
            self.enter_context(mock.patch.object(torch.accelerator, "current_stream", current))
        self.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda x, *_: x))
        self.enter_context(mock.patch.object(torch, "load", load_here))
        self.enter_context(NoReads(settings))
        self.enter_context(CpuForCuda())
        return self


def has_cuda_kernel(func) -> bool:
    """Does the dispatcher lead this operation on CUDA to a kernel, or to a composite of some?"""
    if func.namespace == "prim":
        return True
    return torch._C._dispatch_has_computed_kernel_for_dispatch_key(func.name(), "CUDA")


class FakeCuda(TorchDispatchMode):
    """`operations`: those that ran on CUDA; `reads`: how often a number was read from there."""

    def __enter__(self):
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.operations = set()
        self.reads = 0
        self.stream = mock.patch.object(torch.cuda, "Stream")
        self.stream.__enter__()
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.fake.__exit__(*error)
        self.stream.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        wanted = [x for x in leaves if isinstance(x, torch.device)]
        fakes = [x for x in leaves if isinstance(x, FakeTensor)]
        if not fakes and all(x.type == "cpu" for x in wanted):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        device = (wanted or [fakes[0].fake_device])[0].type
        for x in leaves:
            if isinstance(x, torch.Generator) and x.device.type != device:
                raise RuntimeError(f"a generator of {x.device.type} for tensors of {device}")
        if torch.version.cuda and not has_cuda_kernel(func):
            raise NotImplementedError(f"{func.name()} has no kernel on CUDA")
        self.operations.add(func.name())
        if func is READ:
            return self.read(fakes[0].dtype)
        self.positive = func.name().startswith(("aten::ge", "aten::gt"))
        if "_fused_" in func.name():  # without content an optimiser's step has no kernel
            devices = {x.device.type for x in leaves if isinstance(x, Tensor)}
            if devices != {"cuda"}:
                raise RuntimeError(f"{func.name()}: tensors on {', '.join(sorted(devices))}")
            return None
        return func(*args, **kwargs)

    def read(self, kind: torch.dtype) -> object:
        """A number for the host. A truth is that of the last comparison, of a rate with 0."""
        self.reads += 1
        if kind == torch.bool:
            return self.positive
        return 1.0 if kind.is_floating_point else 1
