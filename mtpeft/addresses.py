"""The small languages of recipes, flags and optimizers: each is parsed here and nowhere else.

``READER:PATH?option=value`` names data, ``METHOD@SCOPE+METHOD`` methods, ``NAME=TYPE@READER:PATH`` a task, and
``OWNER/METHOD/SITE/TENSOR`` a parameter. Each is a value: ``parse`` reads it, ``str`` writes it as it was read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from mtpeft.errors import MtpeftError, UsageError
from mtpeft.names import brief

_READER = re.compile(r"[^\s:?/\\]+")
_QUOTED_MARK = re.compile(r"%((?:25)*3F)")
"""A quoted question mark, and one that is quoted again for each ``25``."""


@dataclass(frozen=True)
class DataAddress:
    """``READER:PATH?option=value&...``: data, and who reads it.

    The first colon ends the reader; a path may have more (``folder:C:/pets``). The first ``?`` behind it begins the
    options. Spaces, ``=``, ``@``, ``%`` and all else stand in a path as they are; a ``?`` is written ``%3F`` (and a
    ``%3F`` of the path itself ``%253F``). Options are quoted as in URLs: ``+`` for a space, ``%26`` for ``&``.

    Attributes:
        reader: an id of the registry.
        path: a file or folder, ``NAME@PATH`` for readers that know several data sets, or a URL.
        query: the options as written.
    """

    reader: str
    path: str
    query: str = ""

    @classmethod
    def parse(cls, text: str, where: str = "data") -> DataAddress:
        """
        Args:
            where: what the text is the value of, for the error.

        Raises:
            UsageError: for a text without a reader or a path.
        """
        reader, _, rest = text.partition(":")
        address = cls.without_reader(rest)
        if not _READER.fullmatch(reader) or not address.path:
            hint = "e.g. folder:data/pets; `mtpeft tasks` lists the readers"
            raise UsageError(f'{where} = "{brief(text)}" is not READER:PATH', hint=hint)
        return replace(address, reader=reader)

    @classmethod
    def without_reader(cls, text: str) -> DataAddress:
        """``PATH?option=value``, for which a reader is yet to be found."""
        path, _, query = text.partition("?")
        return cls("", _QUOTED_MARK.sub(lambda found: _outer(found[1]), path), query)

    def __str__(self) -> str:
        path = _QUOTED_MARK.sub(r"%25\1", self.path).replace("?", "%3F")
        return f"{self.reader}:{path}" + (f"?{self.query}" if self.query else "")

    @property
    def options(self) -> tuple[tuple[str, str], ...]:
        """Names and values in the order written.

        Raises:
            UsageError: for an option that is given twice.
        """
        pairs = tuple(parse_qsl(self.query, keep_blank_values=True))
        names = [name for name, _ in pairs]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UsageError(f'"{brief(str(self))}" gives {brief(twice[0])} twice', hint="give each option once")
        return pairs

    def resolved(self, base: Path) -> DataAddress:
        """With an absolute path; one that is relative is relative to ``base``. A URL stays as it is.

        Raises:
            UsageError: for what no file system takes as a path.
        """
        name, path = self._named(base)
        return self if "://" in path else replace(self, path=f"{name}{absolute(path, base)}")

    def relative_to(self, base: Path) -> DataAddress:
        """With an absolute path made relative to ``base``, with forward slashes; any other stays as it is."""
        name, path = self._named(base)
        if not Path(path).is_absolute():
            return self
        moved = replace(self, path=f"{name}{relative(path, base)}")
        return moved if bool(moved._named(base)[0]) == bool(name) else replace(moved, path=f"./{moved.path}")

    def _named(self, base: Path) -> tuple[str, str]:
        """``NAME@`` and ``PATH``; the name is empty where there is none, or where the whole is there as a path."""
        name, at, path = self.path.partition("@")
        named = at and path and name.isidentifier() and not os.path.lexists(base / self.path)
        return (f"{name}@", path) if named else ("", self.path)


def _outer(quoted: str) -> str:
    return "?" if quoted == "3F" else f"%{quoted.removeprefix('25')}"


def absolute(path: str, base: Path) -> str:
    """An absolute path without ``~`` and ``..``; one that is relative is relative to ``base``.

    Raises:
        UsageError: for what no file system takes as a path.
    """
    try:
        return str((base / Path(path).expanduser()).resolve())
    except (ValueError, OSError, RuntimeError) as error:  # a NUL byte, a loop of links, the home of nobody
        raise UsageError(f'"{brief(path)}" is no path: {error}', hint="give a file or folder") from None


def existing(path: str) -> Path | None:
    """A path without ``~``; None where there is nothing, or for what no file system takes as a path."""
    with suppress(ValueError, OSError, RuntimeError):
        place = Path(path).expanduser()
        return place if place.exists() else None
    return None


def relative(path: str, base: Path) -> str:
    """From ``base`` to an absolute path, with forward slashes."""
    return Path(os.path.relpath(path, base)).as_posix()


@dataclass(frozen=True)
class MethodTerm:
    """``METHOD`` or ``METHOD@SCOPE``; the method is an id of the registry, or its label in a recipe (``lora-2``)."""

    name: str
    scope: str = ""

    @classmethod
    def parse(cls, text: str) -> MethodTerm | None:
        """None for what is no term."""
        name, at, scope = (piece.strip() for piece in text.partition("@"))
        good = name and (scope if at else True) and "@" not in scope
        return cls(name, scope) if good else None

    def __str__(self) -> str:
        return f"{self.name}@{self.scope}" if self.scope else self.name


@dataclass(frozen=True)
class MethodAddress:
    """``METHOD@SCOPE+METHOD+...``: methods that are used together."""

    terms: tuple[MethodTerm, ...]

    @classmethod
    def parse(cls, text: str, where: str = "method") -> MethodAddress:
        """
        Args:
            where: what the text was given as, for the error.

        Raises:
            UsageError: for an empty name or scope, or two scopes of one method.
        """
        terms = [MethodTerm.parse(item) for item in text.split("+")]
        good = tuple(term for term in terms if term is not None)
        if len(good) < len(terms):
            message = f'{where} "{brief(text)}" is not METHOD or METHOD@SCOPE, joined by +'
            raise UsageError(message, hint="e.g. --method lora@shared")
        return cls(good)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(term.name for term in self.terms)

    def __str__(self) -> str:
        return "+".join(map(str, self.terms))


def free_label(name: str, taken: Iterable[str]) -> str:
    """What a method is called beside others: its name, or the first of ``name-2``, ``name-3``, ... that is free."""
    taken, label, number = set(taken), name, 1
    while label in taken:
        number += 1
        label = f"{name}-{number}"
    return label


@dataclass(frozen=True)
class TaskTerm:
    """``NAME``, ``NAME=TYPE`` or ``NAME=TYPE@READER:PATH``, as ``--tasks`` takes it, separated by commas."""

    name: str
    type: str = ""
    data: str = ""

    @classmethod
    def parse(cls, text: str) -> TaskTerm | None:
        """None for what is no term."""
        name, equals, rest = (piece.strip() for piece in text.partition("="))
        kind, at, data = (piece.strip() for piece in rest.partition("@"))
        good = name and (kind if equals else True) and (data if at else True)
        return cls(name, kind, data) if good else None

    def __str__(self) -> str:
        return self.name + (f"={self.type}" if self.type else "") + (f"@{self.data}" if self.data else "")


@dataclass(frozen=True)
class ParameterKey:
    """What a trained tensor is called: ``OWNER/METHOD/SITE/TENSOR``, ``head:NAME/TENSOR`` or ``balancer:NUMBER``.

    An owner is ``shared`` or a task, neither of which has a colon in its name.

    Attributes:
        owner: of a part; of a head its name, of a balancer's parameter its number.
        tensor: ``METHOD/SITE/TENSOR`` of a part, ``TENSOR`` of a head.
    """

    kind: Literal["part", "head", "balancer"]
    owner: str
    tensor: str = ""

    @classmethod
    def parse(cls, text: str) -> ParameterKey:
        """
        Raises:
            MtpeftError: for a kind that there is not.
        """
        first, _, tensor = text.partition("/")
        kind, colon, owner = first.partition(":")
        if not colon:
            return cls("part", first, tensor)
        if kind == "head":
            return cls("head", owner, tensor)
        if kind == "balancer":
            return cls("balancer", owner)
        raise MtpeftError(f'"{brief(text)}" names no parameter', hint="OWNER/METHOD/SITE/TENSOR or head:NAME/TENSOR")

    @property
    def holder(self) -> str:
        """Who holds it: an owner, ``head:NAME`` or ``balancer:NUMBER``."""
        return str(replace(self, tensor=""))

    @property
    def method(self) -> str:
        """The label of a part's method."""
        return self.tensor.partition("/")[0] if self.kind == "part" else ""

    def __str__(self) -> str:
        kind = "" if self.kind == "part" else f"{self.kind}:"
        return f"{kind}{self.owner}" + (f"/{self.tensor}" if self.tensor else "")
