"""OpenVINO as the engine: faster than PyTorch on Intel's and other x86 processors. Needs the extra `openvino`."""

from __future__ import annotations

import hashlib
import sys
import threading
import warnings
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from thorad.diffusion.engine import fast_precision
from thorad.errors import ThoradError


class OpenVinoEngine:
    """A network compiled for the processor, one image a call, one thread a call.

    Args:
        network: called as `network(x_t, t, kind)` with one image.
        size: side S of its images, px.
        dtype: what it computes in, torch.bfloat16 or torch.float32.
    """

    def __init__(self, network: nn.Module, size: int, dtype: torch.dtype) -> None:
        self.precision = str(dtype).removeprefix("torch.")
        self._compiled = _compiled(network, size, dtype)
        # How many of its inputs the network uses: one that knows a single kind of noise is not told the kind.
        self._inputs = len(self._compiled.inputs)
        self._of_thread = threading.local()

    def __call__(self, x_t: Tensor, t: Tensor, kind: Tensor) -> Tensor:
        """What the network predicts."""
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        inputs = (x_t.numpy(), t.numpy(), kind.numpy())[: self._inputs]
        predicted = [np.array(request.infer([values[i : i + 1] for values in inputs])[0]) for i in range(len(x_t))]
        return torch.from_numpy(np.concatenate(predicted)).float()


_LAST: Final[dict[str, Any]] = {}
"""The networks that were compiled last, as compiling takes seconds and a comparison has many detectors of a model."""


def _compiled(network: nn.Module, size: int, dtype: torch.dtype) -> Any:
    """The network as OpenVINO runs it, compiled once as long as it has the same weights."""
    openvino = _import_openvino()
    weights = hashlib.sha256(f"{network} {size} {dtype}".encode())
    for name, tensor in network.state_dict().items():
        weights.update(name.encode() + tensor.numpy().tobytes())
    key = weights.hexdigest()
    if key not in _LAST:
        example = (torch.zeros(1, 1, size, size), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
        with torch.inference_mode(), warnings.catch_warnings():
            # Of the tracer: that it is deprecated (export takes three times as long), and that checks of shapes inside
            # the network hold for the traced shape only, the one that this engine is for.
            warnings.simplefilter("ignore")
            model = openvino.convert_model(network.eval(), example_input=example, input=[x.shape for x in example])
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": 1,  # images run side by side, each on a thread of its own
            "NUM_STREAMS": 1,
        }
        while len(_LAST) > 2:
            del _LAST[next(iter(_LAST))]
        _LAST[key] = openvino.Core().compile_model(model, "CPU", settings)
    return _LAST[key]


def openvino_engine(network: nn.Module, *, size: int, device: torch.device, full_precision: bool) -> OpenVinoEngine:
    """Run a network with OpenVINO on the processor.

    Args:
        network: called as `network(x_t, t, kind)`.
        size: side S of its images, px.
        device: must be the CPU.
        full_precision: float32 even where the processor is faster at bfloat16.

    Raises:
        ThoradError: OpenVINO isn't installed, or the device is not the CPU.
    """
    if device.type != "cpu":
        raise ThoradError(f"engine 'openvino' runs on the CPU, but the device is {str(device)!r}. Give --device cpu.")
    return OpenVinoEngine(network, size, torch.float32 if full_precision else fast_precision(device))


def _import_openvino() -> Any:
    # OpenVINO reports its import to its makers over the network where this package is there. Without it, it is silent.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's own way to forbid an import
    try:
        import openvino
    except ImportError as error:
        raise ThoradError("engine 'openvino' is not installed. pip install 'thorad[openvino]'") from error
    return openvino
