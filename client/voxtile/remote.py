"""Makes a served network a callable that MONAI's `sliding_window_inference` takes as its predictor.

Knows nothing of scans, files or stitching.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.card import Card
from voxtile.chains.monai.encoding import SCALED_TO
from voxtile.errors import InputError
from voxtile.options import check_count
from voxtile.tensor_types import NUMPY_TYPES
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.grpc_transport import connect_transport
from voxtile.triton.retry import RetryPolicy
from voxtile.triton.transport import DEFAULT_IN_FLIGHT, Transport
from voxtile.triton.types import Request


class RemoteNetwork:
    """`network(x)` runs x [batch, channel, *roi] on the server and returns scores [batch, score, *roi].

    A model that takes slices of any size (`card.multiple`) takes x of any height and width that are multiples of it.

    x is a NumPy array or a torch tensor with values as the model's `roi` takes them; the scores are float32 and of the
    same kind, on x's device. Any batch size is possible: x is cut into requests that the server takes.

    A model whose intensity rule needs statistics of the whole scan (z-score, percentile) takes x as already normalised,
    as MONAI's transforms give it, unless `statistics` are given.

    Args:
        url: HOST:PORT of the gRPC service of a Triton server, or several of them.
        model: the model's public name.
        statistics: [channel, 2], what to subtract and to divide by.
        connection: how to reach the servers.
        retry_policy: retry limits.
        in_flight: the most requests in flight to one server.
        transport: what to send tiles through, in place of `url` and `model`; closed with the network.

    Raises:
        InputError: `in_flight` is no count, the statistics do not fit the model, or neither a server with a model nor a
            transport is given. Also for x of a shape or with values that the model does not take.
        ServerUnavailable: no server answers.
        ModelError: the servers do not offer the model, or offer different builds of it.
        TileError: the servers refused a request too often.
        NoResponseError: no server has answered for too long.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        model: str | None = None,
        *,
        statistics: NDArray[np.floating] | None = None,
        connection: ConnectionConfig = ConnectionConfig(),  # noqa: B008 - frozen
        retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        in_flight: int = DEFAULT_IN_FLIGHT,
        transport: Transport | None = None,
    ) -> None:
        check_count("in_flight", in_flight, least=1)
        self.transport: Transport = transport or connect_transport(url, model, connection, retry_policy)
        self.in_flight = in_flight
        try:
            self._check_network()
            self._statistics = self._checked_statistics(statistics)
        except InputError:
            self.close()
            raise

    @property
    def card(self) -> Card:
        """The model's card."""
        return self.transport.model.card

    def _check_network(self) -> None:
        if self.card.parts:
            names = ", ".join(part.model for part in self.card.parts.models)
            raise InputError(f"model {self.card.name!r} is a set of models; give one of its networks: {names}")

    def __call__(self, x: Any) -> Any:
        values = _to_numpy(x)
        self._check(values.shape)
        self._check_numbers(values)
        scores = list(self.transport.infer(self._requests(values), self.in_flight))
        joined = np.concatenate(scores) if scores else np.empty((0, self.card.output.scores, *values.shape[2:]))
        return _like(x, joined.astype(np.float32) / np.float32(self.card.output.scale))

    def _check(self, shape: tuple[int, ...]) -> None:
        """Raises InputError where the model does not take x of `shape`."""
        card = self.card
        if shape[1:2] == (len(card.channels),) and card.takes(shape[2:]):
            return
        if card.multiple is None:
            sizes, advice = ", ".join(map(str, card.roi_size)), "call it with the model's ROI and channels"
        else:
            sizes = "height, width"
            advice = f"call it with the model's channels, and pad height and width to multiples of {card.multiple}"
        raise InputError(
            f"model {card.name!r} takes [batch, {len(card.channels)}, {sizes}], found {list(shape)}; {advice}"
        )

    def _check_numbers(self, values: NDArray[Any]) -> None:
        """Raises InputError for values that are no finite numbers in the type in which they are sent."""
        if values.dtype.kind not in "biuf":
            raise InputError(f"model {self.card.name!r} takes real numbers, found {values.dtype} numbers")
        sent = np.dtype(NUMPY_TYPES[self.card.input.dtype])
        wide = sent if sent.kind == "f" else np.dtype(np.float32)  # whole numbers are scaled from float32's range
        for one in values:  # a sample at a time, for the sake of memory
            with np.errstate(over="ignore"):
                bad = np.size(one) - np.count_nonzero(np.isfinite(one.astype(wide, copy=False)))
            if bad:
                raise InputError(
                    f"model {self.card.name!r} takes finite values, found {bad} that are NaN, infinite or beyond {wide}"
                )

    def _requests(self, values: NDArray[Any]) -> Iterator[Request]:
        size = self.transport.model.max_batch_size
        for index, first in enumerate(range(0, len(values), size)):
            yield Request(index, *self._as_input(values[first : first + size]))

    def _as_input(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """`values` in the model's input type, and the statistics that belong to them."""
        dtype = np.dtype(NUMPY_TYPES[self.card.input.dtype])
        if dtype.kind != "i" or values.dtype == dtype:
            return np.ascontiguousarray(values, dtype), self._statistics
        limits, whole = np.iinfo(dtype), np.rint(values)
        if np.array_equal(whole, values) and whole.min() >= limits.min and whole.max() <= limits.max:
            return np.ascontiguousarray(whole, dtype), self._statistics
        if self._statistics is None:
            raise InputError(
                f"model {self.card.name!r} takes {self.card.input.dtype}, and these values are not whole numbers in "
                'its range; give the scan\'s own values, or build the model with dtype = "fp32"'
            )
        return self._scaled(values, self._statistics, dtype)

    def _scaled(
        self, values: NDArray[Any], statistics: NDArray[np.float32], dtype: np.dtype[Any]
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Values spread over the type's range, with statistics that undo it: `(x·s - a·s) / (b·s)` is `(x - a) / b`.

        Each value is off by at most 1/64,000 of the largest one.
        """
        outside = values == self.card.input.padding
        largest = float(np.abs(values, where=~outside, out=np.zeros_like(values)).max())
        scale = SCALED_TO[self.card.input.dtype] / largest
        scaled = np.where(outside, self.card.input.padding, np.rint(values * scale))
        return np.ascontiguousarray(scaled, dtype), (statistics * scale).astype(np.float32)

    def _checked_statistics(self, statistics: NDArray[np.floating] | None) -> NDArray[np.float32] | None:
        channels = len(self.card.channels)
        if not self.card.whole_scan_intensity:
            if statistics is not None:
                raise InputError(f"model {self.card.name!r} normalises by itself and takes no statistics of the scan")
            return None
        if statistics is None:
            return np.tile(np.array([0, 1], np.float32), (channels, 1))
        checked = np.asarray(statistics, np.float32)
        if checked.shape != (channels, 2):
            raise InputError(f"statistics should be [{channels}, 2] (subtract, divide), found {list(checked.shape)}")
        if not np.isfinite(checked).all():
            raise InputError(f"statistics should be finite numbers (subtract, divide), found {checked.tolist()}")
        return checked

    def close(self) -> None:
        """Ends all connections."""
        self.transport.close()

    def __enter__(self) -> RemoteNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _to_numpy(x: Any) -> NDArray[Any]:
    """The values of x. torch is not imported: only a process that has imported it can have a tensor."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return np.asarray(x.detach().cpu().numpy())
    return np.asarray(x)


def _like(x: Any, values: NDArray[np.float32]) -> Any:
    """`values` as a tensor on x's device where x is a tensor, else as they are."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return torch.from_numpy(values).to(x.device)
    return values
