"""Stand-ins for a GPU, so that the CUDA path of the scripts runs where there is none.

CudaOnTheCpu  tensors live on the CPU and claim to be on CUDA. A graph is recorded operation by operation at fixed
              addresses and replayed from them, so that it does not see what Python changed meanwhile; a read by the
              host fails while a graph is recorded, or when torch.cuda.set_sync_debug_mode("error") forbids it.
FakeCuda      tensors on CUDA have a shape, a type and a device, but no content (PyTorch's FakeTensorMode); those on the
              CPU are real. Operations on both devices, a generator of the other one and operations that have no kernel
              on CUDA fail as they do on a GPU.
"""

from __future__ import annotations

import contextlib
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
    """In place of torch.cuda.CUDAGraph: the operations of a step, with the tensors that they read and write."""

    def __init__(self):
        self.calls, self.replays = [], 0

    def replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():  # kernels: nothing but numbers
            for func, args, kwargs, outputs in self.calls:
                for old, new in zip(outputs, tree_leaves(func(*args, **kwargs))):
                    if isinstance(old, Tensor):
                        old.copy_(new)


class Recording(TorchDispatchMode):
    """In place of torch.cuda.graph: what happens inside goes to the graph, and nothing of it has happened after it."""

    active = False

    def __enter__(self):
        Recording.active = True
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
        outputs = [x if isinstance(x, Tensor) and place(x) not in known else None for x in tree_leaves(result)]
        self.made |= {place(x) for x in outputs if x is not None} - set(self.before)
        if func._schema.is_mutable or any(x is not None for x in outputs):  # else it is a view
            self.graph.calls.append((func, args, kwargs, outputs))
        return result

    def __exit__(self, kind, *rest):
        super().__exit__(kind, *rest)
        Recording.active = False
        for storage, content in self.before.values():
            storage.copy_(content)
        if kind is not None:  # as the driver, which forgets the cause
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


class NoReads(TorchDispatchMode):
    def __init__(self, settings: dict):
        super().__init__()
        self.settings = settings

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is READ and self.settings["sync"] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


class CpuForCuda(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.device.__get__:
            return CUDA
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        there = lambda x: "cpu" if isinstance(x, (str, torch.device)) and str(x) in ("cuda", "cuda:0") else x
        return func(*map(there, args), **{key: there(x) for key, x in (kwargs or {}).items()})


class CudaOnTheCpu(contextlib.ExitStack):
    """`graphs`: those that were made."""

    def __enter__(self):
        super().__enter__()
        self.graphs, settings, load = [], {"sync": "default"}, torch.load

        def new_graph() -> Graph:
            self.graphs.append(Graph())
            return self.graphs[-1]

        stream = mock.Mock(is_capturing=lambda: Recording.active)
        if hasattr(torch, "accelerator"):  # whom optimisers ask
            self.enter_context(mock.patch.object(torch.accelerator, "current_stream", lambda *_: stream))
        for name, what in dict(
            is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, set_device=lambda device: None,
            get_device_name=lambda *_: "stand-in", get_device_capability=lambda *_: (9, 0), synchronize=lambda *_: None,
            Stream=lambda *_: stream, current_stream=lambda *_: stream, stream=lambda _: contextlib.nullcontext(),
            CUDAGraph=new_graph, graph=Recording, is_current_stream_capturing=lambda: Recording.active,
            get_rng_state=lambda *_: torch.get_rng_state(), set_rng_state=lambda x, *_: torch.set_rng_state(x),
            set_sync_debug_mode=lambda x: settings.update(sync=x), get_sync_debug_mode=lambda: 0,
            manual_seed_all=lambda seed: None,
        ).items():  # fmt: skip
            self.enter_context(mock.patch.object(torch.cuda, name, what))
        self.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda x, *_: x))
        self.enter_context(mock.patch.object(torch, "load", lambda file, device, **rest: load(file, "cpu", **rest)))
        self.enter_context(NoReads(settings))
        self.enter_context(CpuForCuda())
        return self


def has_cuda_kernel(func) -> bool:
    """Whether the dispatcher leads an operation on CUDA to a kernel, its own or a composite of others."""
    if func.namespace == "prim":
        return True
    return torch._C._dispatch_has_computed_kernel_for_dispatch_key(func.name(), "CUDA")


class FakeCuda(TorchDispatchMode):
    """`operations`: those that ran on CUDA; `reads`: how often the host read a number from there."""

    def __enter__(self):
        self.fake, self.operations, self.reads = FakeTensorMode(allow_non_fake_inputs=True), set(), 0
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.fake.__exit__(*error)

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
                raise RuntimeError(f"Expected a '{device}' device type for generator but found '{x.device.type}'")
        if torch.version.cuda and not has_cuda_kernel(func):
            raise NotImplementedError(f"{func.name()} has no kernel on CUDA")
        self.operations.add(func.name())
        if func is READ:
            self.reads += 1
            kind = fakes[0].dtype  # a truth is that of the last comparison, of a positive rate with 0
            return self.positive if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        self.positive = func.name().startswith(("aten::ge", "aten::gt"))
        if "_fused_" in func.name():  # the optimisers' steps have no kernel without content: only the devices
            devices = {x.device.type for x in leaves if isinstance(x, Tensor)}
            if devices != {"cuda"}:
                raise RuntimeError(f"{func.name()}: tensors on {', '.join(sorted(devices))}")
            return None
        return func(*args, **kwargs)
