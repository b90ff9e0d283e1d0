"""A served network as a callable that drops into MONAI's `sliding_window_inference` as its predictor."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtile.chains.monai.encoding import SCALED_TO
from voxtile.errors import InputError
from voxtile.triton.endpoint import DTYPES, ConnectionConfig, Request
from voxtile.triton.transport import RetryPolicy, Transport


class RemoteNetwork:
    """`network(x)` runs x [batch, channel, *roi] on the server and returns scores [batch, score, *roi].

    A model that takes slices of any size (`card.multiple`) takes x of any height and width that are multiples of that.

    x is a NumPy array or a torch tensor, and the scores are what x was (float32; on x's device). It holds what the
    model's `roi` takes. A model whose rule needs figures of the whole scan (z-score, percentile) takes x as already
    normalised, which is what MONAI's transforms give, unless `figures` [channel, 2] (subtract, divide) are given.
    Any batch goes: it is cut into requests that the server takes.

    Raises ServerUnavailable, ModelError, InputError for x of another shape, TileError.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        model: str,
        *,
        statistics: NDArray[np.floating] | None = None,
        connection: ConnectionConfig = ConnectionConfig(),  # noqa: B008 - frozen
        retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        in_flight: int = 8,
    ) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        self.transport = Transport(urls, model, connection, retry_policy, in_flight)
        self.card = self.transport.model.card
        self._statistics = self._checked_statistics(statistics)

    def __call__(self, x: Any) -> Any:
        values = _to_numpy(x)
        self._check(values.shape)
        scores = list(self.transport.infer(self._requests(values)))
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
            advice = f"call it with the model's channels, and pad height and width up to multiples of {card.multiple}"
        raise InputError(
            f"model {card.name!r} takes [batch, {len(card.channels)}, {sizes}], found {list(shape)}; {advice}"
        )

    def _requests(self, values: NDArray[Any]) -> Iterator[Request]:
        size = self.transport.model.max_batch_size
        for index, first in enumerate(range(0, len(values), size)):
            yield Request(index, *self._as_input(values[first : first + size]))

    def _as_input(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """`values` in the model's input type, and the figures that go with them."""
        dtype = np.dtype(DTYPES[self.card.input.dtype][1])
        if dtype.kind != "i" or values.dtype == dtype:
            return np.ascontiguousarray(values, dtype), self._statistics
        range_, whole = np.iinfo(dtype), np.rint(values)
        if np.array_equal(whole, values) and whole.min() >= range_.min and whole.max() <= range_.max:
            return np.ascontiguousarray(whole, dtype), self._statistics
        if self._statistics is None:
            raise InputError(
                f"model {self.card.name!r} takes {self.card.input.dtype}, and these values are not whole numbers in "
                'its range; give the scan\'s own values, or build the model with dtype = "fp32"'
            )
        return self._scaled(values, dtype)

    def _scaled(self, values: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Values spread over the type's range, with figures that undo it: `(x·s - a·s) / (b·s)` is `(x - a) / b`.

        Each value is off by at most 1/64,000 of the largest one.
        """
        assert self._statistics is not None
        outside = values == self.card.input.padding
        largest = float(np.abs(values, where=~outside, out=np.zeros_like(values)).max())
        scale = SCALED_TO[self.card.input.dtype] / largest
        scaled = np.where(outside, self.card.input.padding, np.rint(values * scale))
        return np.ascontiguousarray(scaled, dtype), (self._statistics * scale).astype(np.float32)

    def _checked_statistics(self, statistics: NDArray[np.floating] | None) -> NDArray[np.float32] | None:
        channels = len(self.card.channels)
        if not self.card.whole_scan_intensity:
            if statistics is not None:
                raise InputError(f"model {self.card.name!r} normalises by itself and takes no figures of the scan")
            return None
        if statistics is None:
            return np.tile(np.array([0, 1], np.float32), (channels, 1))
        checked = np.asarray(statistics, np.float32)
        if checked.shape != (channels, 2):
            raise InputError(f"figures should be [{channels}, 2] (subtract, divide), found {list(checked.shape)}")
        return checked

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> RemoteNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _to_numpy(x: Any) -> NDArray[Any]:
    """The values of x, without importing torch: a tensor can only come from a process that has."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return np.asarray(x.detach().cpu().numpy())
    return np.asarray(x)


def _like(x: Any, values: NDArray[np.float32]) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return torch.from_numpy(values).to(x.device)
    return values
