"""The tables [network] and [weights]: which network is served, and the file with its weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from voxtile_build.spec.table import AnyPath, Sha256, Table, from_json


class Network(Table):
    """A network by its name and arguments, or a file that holds the network together with its weights."""

    name: str = Field(default="", description="name of the network; `voxtile-build networks` lists them")
    args: Annotated[dict[str, Any], BeforeValidator(from_json)] = Field(
        default={},
        description="arguments of the network's constructor, by name; as JSON text where one of them is null",
    )
    file: AnyPath | None = Field(
        default=None,
        description="in place of name and weights, a file that holds both, relative to the spec: .onnx, .pt "
        "(TorchScript) or .pt2 (torch.export)",
    )
    sha256: Sha256 | None = Field(
        default=None, description="SHA-256 of the network's file, in hexadecimal; another file is refused"
    )
    source: str = Field(default="", description="where the network's file comes from, for the card")
    licence: str = Field(default="", description="the terms of its use, for the card")
    head: int | None = Field(
        default=None, description="which of several outputs holds the scores, 0 the first, -1 the last"
    )
    output: Literal["logits", "probabilities"] = Field(
        default="logits",
        description="what the network gives: logits, or probabilities where it ends in softmax or sigmoid itself",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Network:
        if bool(self.name) == (self.file is not None):
            found = "both" if self.name else "neither"
            raise ValueError(f"expected either name, with args, or file, with sha256, found {found}")
        if (self.file is None) != (self.sha256 is None):
            raise ValueError("file and sha256 go together; `sha256sum FILE` gives it")
        if self.file is None and (self.source or self.licence):
            raise ValueError("source and licence are those of a network's file; of weights, they stand in [weights]")
        if self.file is not None and self.args:
            raise ValueError(f"args {list(self.args)} are those of a network by name; a file has its own")
        return self

    @property
    def title(self) -> str:
        """The network's name, or that of its file."""
        return self.file.name if self.file is not None else self.name


class Weights(Table):
    """The weights of a network by name."""

    file: AnyPath = Field(description="weights file, relative to the spec: safetensors or a state dict")
    sha256: Sha256 = Field(description="SHA-256 of the weights file, in hexadecimal; another file is refused")
    source: str = Field(default="", description="where the weights come from, for the card")
    licence: str = Field(default="", description="the terms of their use, for the card")
