"""From one frozen dataclass per command to its command line. Standard library only: help must not wait for torch."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def option(
    default: Any,
    text: str,
    *,
    unit: str = "",
    kind: Callable[[str], Any] | None = None,
    choices: Sequence[Any] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    nargs: int | None = None,
    group: str = "options",
    identity: bool = True,
    positional: bool = False,
    several: bool = False,
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        default: the value, or None where the preset decides (or where there is none).
        text: help, one clause; unit and default are appended.
        kind: parser of the text; by default the type of `default`.
        nargs: how many words the option takes, where that is not one.
        identity: whether the option is part of what makes two runs the same run (resume refuses a change).
        positional: a bare word on the command line, which may be left out.
        several: one or more words after the flag, as a tuple; `default` is one too.
    """
    meta = dict(
        text=text, unit=unit, kind=kind, choices=choices, metavar=metavar, nargs=nargs, group=group, identity=identity
    )
    return dataclasses.field(default=default, metadata=meta | dict(positional=positional, several=several))


def int_list(text: str) -> tuple[int, ...]:
    """'1,2,3,4' (or with '_' or '-', as VAR writes patch_nums) -> (1, 2, 3, 4)."""
    return tuple(int(part) for part in re.split(r"[,_\- ]+", text.strip()))


def positive(kind: type) -> Callable[[str], Any]:
    """A parser of numbers > 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
        return value

    parse.__name__ = kind.__name__
    return parse


def non_negative(kind: type) -> Callable[[str], Any]:
    """A parser of numbers >= 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not value >= 0:
            raise argparse.ArgumentTypeError(f"{text} is less than 0")
        return value

    parse.__name__ = kind.__name__
    return parse


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence with a suggestion and exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"refocus: {self.prog.split()[-1]}: {message}", file=sys.stderr)
        print(f"  `{self.prog} --help` lists the options.", file=sys.stderr)
        raise SystemExit(2)

    def unknown(self, words: list[str]) -> NoReturn:
        known = [name for action in self._actions for name in action.option_strings]
        word = words[0].split("=")[0]
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else "."
        self.error(f"there is no option '{word}'{hint}" if word.startswith("-") else f"'{word}' was not expected here.")


def _default_text(field: dataclasses.Field[Any], presets: Mapping[str, Mapping[str, Any]]) -> str:
    values = {name: values[field.name] for name, values in presets.items() if field.name in values}
    if values:
        first, *others = values.items()
        if len({_show(value) for _, value in others}) == 1 and len(others) > 1:
            others = [("others", others[0][1])]
        return "default: " + ", ".join(f"{name} {_show(value)}" for name, value in (first, *others))
    return "" if field.default in (None, "", (), False) else f"default: {_show(field.default)}"


def _show(value: Any) -> str:
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def build_parser(
    cls: type, prog: str, description: str, presets: Mapping[str, Mapping[str, Any]] | None = None
) -> _Parser:
    """The parser whose options are the fields of `cls`, grouped, with unit and default in the help."""
    fields = dataclasses.fields(cls)
    words = "".join(f" [{field.metadata['metavar']}]" for field in fields if field.metadata["positional"])
    parser = _Parser(
        prog=prog,
        usage=f"{prog}{words} [options]",
        description=textwrap.dedent(description).strip(),
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
    )
    groups: dict[str, Any] = {}
    for field in fields:
        meta = field.metadata
        group = groups.setdefault(meta["group"], None) or parser.add_argument_group(meta["group"])
        groups[meta["group"]] = group
        notes = "; ".join(part for part in (meta["unit"], _default_text(field, presets or {})) if part)
        text = (meta["text"] + (f" ({notes})" if notes else "")).replace("%", "%%")
        flag = "--" + field.name.replace("_", "-")
        if field.default is False:
            group.add_argument(flag, action="store_true", default=None, help=text)
            continue
        kind = meta["kind"] or (str if field.default in (None, ()) else type(field.default))
        metavar = meta["metavar"] or (None if meta["choices"] else kind.__name__.upper().replace("INT_LIST", "N,N,.."))
        if meta["positional"]:
            group.add_argument(field.name, nargs="?", type=kind, metavar=metavar, default=None, help=text)
            continue
        nargs = "+" if meta["several"] else meta["nargs"]
        group.add_argument(
            flag, nargs=nargs, type=kind, choices=meta["choices"], metavar=metavar, default=None, help=text
        )
    return parser


def parse(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    choose_preset: Callable[[dict[str, Any]], str] | None = None,
) -> T:
    """Command line -> options: what is typed wins over the preset, the preset over the field's default."""
    parser = build_parser(cls, prog, description, presets)
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        parser.unknown(unknown)
    typed: dict[str, Any] = {name: value for name, value in vars(namespace).items() if value is not None}
    typed |= {name: tuple(value) for name, value in typed.items() if isinstance(value, list)}
    values: dict[str, Any] = {}
    if presets and choose_preset:
        typed["preset"] = typed.get("preset") or choose_preset(typed)
        values.update(presets[typed["preset"]])
    return cls(**(values | typed))
