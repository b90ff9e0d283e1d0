"""The versions of a public model. Each is a model of its own, NAME.vN, and the public name is a copy of one of them.

Triton has one config.pbtxt for all versions of an entry, with one card; so a version of ours is another entry. Where
there is only one version, the public entry is all there is of it. Knows neither networks nor certificates' content.
"""

from __future__ import annotations

import contextlib
import glob
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.card import Card
from voxtile_build.errors import RepositoryError
from voxtile_build.repository.card import PARAMETER, get_card
from voxtile_build.repository.config import PLACEHOLDER, read_config, write_config
from voxtile_build.repository.entries import CONFIG, fold_names, version_entry, version_of
from voxtile_build.repository.past import NUMBER, Past, past_of
from voxtile_build.spec.name import LARGEST_VERSION


@dataclass(frozen=True)
class Version:
    """A version that a repository holds.

    Attributes:
        name: the public name of the model.
        number: its number.
        entry: the entry that carries its card: NAME.vN, or NAME where the repository holds no other version.
        config: the config of that entry.
        card: its card.
    """

    name: str
    number: int
    entry: str
    config: pb.ModelConfig
    card: Card

    @property
    def base(self) -> str:
        """How the names of its engines' entries begin: with NAME for the first version, and NAME.vN for any other."""
        own = version_entry(self.name, self.number)
        folds = fold_names(self.config)
        return own if all(fold == own or fold.startswith(f"{own}_") for fold in folds) else self.name


def versions_of(name: str, repository: Path) -> dict[int, Version]:
    """The versions of a public model by their numbers; none of a set or of a cascade's stage, which have no others."""
    found: dict[int, Version] = {}
    for folder in sorted(repository.glob(f"{glob.escape(name)}.v*")):
        one = _read(name, folder)
        if one is not None and folder.name == version_entry(name, one.number):
            found[one.number] = one
    public = _read(name, repository / name)
    if public is not None:
        found.setdefault(public.number, public)
    return dict(sorted(found.items()))


def find_version(name: str, number: int, found: dict[int, Version], repository: Path) -> Version:
    """The version of a number among those that were found.

    Raises:
        RepositoryError: there is none.
    """
    if number not in found:
        if (own := repository / version_entry(name, number)).exists():
            get_card(read_config(own), own)  # says what is wrong with it
        raise RepositoryError(
            f"{repository / version_entry(name, number)}: expected version {number} of {name}, found the versions "
            f"{in_words(tuple(found))}"
        )
    return found[number]


def public_version(name: str, repository: Path) -> int | None:
    """The version that a public name stands for; None where there is no such model, or one that has no versions."""
    public = _read(name, repository / name)
    return None if public is None else public.number


def model_of(config: pb.ModelConfig, folder: Path) -> str:
    """The public model that a public entry belongs to: of NAME.vN that is NAME, of any other the entry itself.

    Raises:
        RepositoryError: its card cannot be read.
    """
    name = get_card(config, folder).name
    return name if folder.name == version_entry(name, version_of(config)) else folder.name


def same_build(name: str, repository: Path) -> tuple[str, ...]:
    """The entries that carry the card of the entry `name`, itself first: a public name, and the version it stands for.

    Raises:
        RepositoryError: the entry cannot be read.
    """
    config = read_config(repository / name)
    card = get_card(config, repository / name)
    own = version_entry(card.name, version_of(config))
    others = (own,) if name == card.name else (card.name,) if name == own else ()
    return (name, *(one for one in others if _card_text(repository / one) == config.parameters[PARAMETER].string_value))


def own_entry(name: str, repository: Path) -> str:
    """The entry of the version that a public name stands for; the public name where there is no other version.

    Raises:
        RepositoryError: the entry cannot be read.
    """
    return same_build(name, repository)[-1]


@dataclass(frozen=True)
class Release:
    """A version that is about to be published beside others.

    Attributes:
        name: the public name.
        number: the version's number.
        base: how the names of its engines' entries begin.
        public: the version that the name stands for; None where it stands for none.
        others: the versions that stay as they are.
        replaced: the version that it takes the place of; None for a new one.
        past: what the name remembers.
    """

    name: str
    number: int
    base: str
    public: int | None
    others: tuple[Version, ...]
    replaced: Version | None
    past: Past

    @property
    def is_public(self) -> bool:
        """Whether the public name stands for it."""
        return self.public in (None, self.number)

    def write_public(self, staged: Path) -> tuple[str, ...]:
        """Write the public entries of the version that was built in the folder `staged`; returns their names in order.

        They are: the version's own, that of the one that had none because it was alone, and NAME where it stands for
        the version.
        """
        config, own = read_config(staged / self.base), version_entry(self.name, self.number)
        names = []
        for one in self.others:
            if one.entry == self.name:
                names.append(write_copy(one.config, version_entry(self.name, one.number), staged))
        if self.others and self.base != own:
            write_copy(config, own, staged)
        if self.others or self.base == own:
            names.append(own)
        if self.base == self.name:
            shutil.rmtree(staged / self.name)
        if self.is_public:
            names.append(write_copy(config, self.name, staged, self.past))
        return tuple(names)


def release_of(name: str, wanted: int | None, same: Callable[[Card], bool], repository: Path) -> Release | None:
    """Which version a build of `name` becomes; None where it is the only one that there will be.

    Args:
        name: the public name.
        wanted: the version's number, where somebody asks for one.
        same: whether a card is that of the very model, so that the build takes its place.
        repository: the model repository.

    Raises:
        RepositoryError: the next version would have a number that no client takes.
    """
    found = versions_of(name, repository)
    public = public_version(name, repository)
    if not found:
        return None
    number = wanted
    if number is None:
        by_use = sorted(found.values(), key=lambda one: (one.number != public, -one.number))
        number = next((one.number for one in by_use if same(one.card)), None) or _next_number(name, found, repository)
    others = tuple(one for one in found.values() if one.number != number)
    replaced = found.get(number)
    base = version_entry(name, number) if replaced is None else replaced.base
    if not others and base == name:
        return None
    past = Past() if public is None else past_of(read_config(repository / name))
    if number > LARGEST_VERSION:
        raise RepositoryError(
            f"{repository / name}: expected a version up to {LARGEST_VERSION}, found that the next one is {number}; "
            'choose a smaller one with "version" in the spec'
        )
    return Release(name, number, base, public, others, replaced, past)


def _next_number(name: str, found: Mapping[int, Version], repository: Path) -> int:
    """The number after all that were ever seen: masks name the version that made them, also of one that is gone.

    Numbers of entries that cannot be read count, and those that the public name remembers.
    """
    used = {1, *found}
    for folder in repository.glob(f"{glob.escape(name)}.v*"):
        if number := NUMBER.match(folder.name.removeprefix(f"{name}.v")):
            used.add(int(number[0]))
    with contextlib.suppress(RepositoryError):
        past = past_of(read_config(repository / name))
        used.update(past.history, past.removed)
    return max(used) + 1


def write_copy(config: pb.ModelConfig, name: str, staged: Path, past: Past | None = None) -> str:
    """Write a public config once more, under another name, as an entry in `staged`; returns the name."""
    copy = pb.ModelConfig()
    copy.CopyFrom(config)
    copy.name = name
    (past or Past()).write(copy)
    folder = staged / name / str(version_of(config))
    folder.mkdir(parents=True)
    (folder / "README").write_text(PLACEHOLDER, encoding="utf-8")
    write_config(copy, staged / name)
    return name


def in_words(versions: Sequence[int]) -> str:
    """Numbers of versions in a sentence."""
    return ", ".join(map(str, versions)) or "none"


def check_no_versions(names: Sequence[str], repository: Path) -> None:
    """Refuse to replace a model of several versions by what has none: a set, or a cascade.

    Raises:
        RepositoryError: names the first that has several.
    """
    for name in names:
        found = versions_of(name, repository)
        if len(found) > 1:
            raise RepositoryError(
                f"{repository / name}: expected a model of one version to replace, found the versions "
                f"{in_words(tuple(found))}; a set and a cascade have no versions: give another name"
            )


def dependants_of(name: str, repository: Path) -> tuple[str, ...]:
    """The public models that need the public model `name`: sets, and second stages of cascades."""
    found = []
    for file in sorted(repository.glob(f"*/{CONFIG}")):
        with contextlib.suppress(RepositoryError):
            if name in get_card(read_config(file.parent), file.parent).models_behind:
                found.append(file.parent.name)
    return tuple(found)


def _read(name: str, folder: Path) -> Version | None:
    """The version in a public entry; None where it is none of `name`."""
    with contextlib.suppress(RepositoryError):
        config = read_config(folder)
        card = get_card(config, folder)
        alone = card.parts is None and card.previous_stage is None
        if alone and (card.name == name or folder.name == name):
            return Version(name, version_of(config), folder.name, config, card)
    return None


def _card_text(folder: Path) -> str:
    with contextlib.suppress(RepositoryError):
        config = read_config(folder)
        return str(config.parameters[PARAMETER].string_value) if PARAMETER in config.parameters else ""
    return ""
