"""A command's options as a typed-argparse class, and what that library lacks: headings, units, identity of a run.

    RUN = Heading("run")

    class TrainOptions(Options):
        \"\"\"What --help says the command does.\"\"\"

        steps: int = RUN(None, "optimizer steps in all", positive(int))
        out: str = RUN("runs/x", "run folder", metavar="DIR", identity=False)

Imports no torch: help must not wait for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from typed_argparse import TypedArgs
from typed_argparse.arg import Arg
from typed_argparse.type_utils import TypeAnnotation, collect_type_annotations

from refocus_ext.options.presets import Stage, preset_for, presets_of

T = TypeVar("T")
Own = TypeVar("Own", bound="Options")
C = TypeVar("C", bound=TypedArgs)
NArgs = int | Literal["+", "*"]


class Option(Arg):
    """The library's argument with what the library lacks.

    Attributes:
        heading: of its group in --help.
        unit: of its value, for --help.
        identity: whether it is part of what makes two runs the same run (resume refuses a change).
        added: whether it came after runs had been made: config.json and its identity then hold it only where it is not the
            default and the preset's, so that those runs stay the same runs.
        earlier: of an option whose default has changed: the value of runs that do not record it.
        told: whether a resumed run says that it has changed; such an option is not part of the identity.
        follows: the option in proportion to which a preset's value is scaled, where this one is not given.
        shown: what --help shows in the place of its value, or of each of its words.
    """

    heading: str
    unit: str
    identity: bool
    added: bool
    earlier: object
    told: bool
    follows: str
    shown: str | tuple[str, ...] | None


class Heading:
    """A heading of --help. Calling it declares an option below it."""

    def __init__(self, title: str) -> None:
        self.title = title

    @overload
    def __call__(
        self,
        default: None,
        text: str,
        kind: Callable[[str], T],
        *,
        unit: str = "",
        choices: Sequence[T] | None = None,
        metavar: str | tuple[str, ...] | None = None,
        identity: bool = True,
        told: bool = False,
        follows: str = "",
    ) -> T: ...

    @overload
    def __call__(
        self,
        default: T,
        text: str,
        kind: Callable[[str], object] | None = None,
        *,
        unit: str = "",
        choices: Sequence[object] | Callable[[], Sequence[object]] | None = None,
        metavar: str | tuple[str, ...] | None = None,
        nargs: NArgs | None = None,
        identity: bool = True,
        added: bool = False,
        earlier: object = None,
        told: bool = False,
        positional: bool = False,
    ) -> T: ...

    def __call__(
        self,
        default: object,
        text: str,
        kind: Callable[[str], object] | None = None,
        *,
        unit: str = "",
        choices: Sequence[object] | Callable[[], Sequence[object]] | None = None,
        metavar: str | tuple[str, ...] | None = None,
        nargs: NArgs | None = None,
        identity: bool = True,
        added: bool = False,
        earlier: object = None,
        told: bool = False,
        positional: bool = False,
        follows: str = "",
    ) -> object:
        """An option.

        Args:
            default: the value, or None where the preset decides (or where there is none).
            text: help, one clause; unit and default are appended.
            kind: parser of the text, or of each word; by default the annotated type, of words str.
            choices: the values it can have, or what returns them.
            earlier: see `Option`.
            told: it does not change the result of a run; a resumed run says that it has changed.
            nargs: how many words it takes, "+" for one or more, "*" for any number; their annotation is a tuple.
            positional: a bare word on the command line, which may be left out.
            follows: the option (such as steps) in proportion to which the preset's value is scaled.
        """
        option = Option(
            flags=(),
            positional=positional,
            default=default,
            dynamic_default=None,
            dynamic_choices=choices if callable(choices) or choices is None else lambda: choices,
            type=kind or (str if nargs else None),  # the library would take the type of one word from the tuple's
            nargs=nargs,
            help=text,
            metavar=None,
            auto_default_help=False,
        )
        option.heading, option.unit, option.follows = self.title, unit, follows
        option.identity, option.told = identity and not told, told
        option.shown, option.added, option.earlier = metavar, added, earlier
        return option


class Options(TypedArgs):
    """Base of every command's options; they do not change once they are made. The docstring is the command's --help.

    Raises:
        TypeError: a keyword that is not an option.
    """

    stage = ""  # under which the presets hold values of this command; "" for none

    if not TYPE_CHECKING:  # a type checker sees the constructor of a dataclass with these fields

        def __init__(self, **values: object) -> None:
            if unknown := sorted(values.keys() - self.fields().keys()):
                raise TypeError(f"{type(self).__name__} has no option '{unknown[0]}'")
            super().__init__(**values)

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self) or name not in self.fields():
            raise AttributeError(f"{type(self).__name__}.{name} cannot be set; `replace` makes changed options")
        super().__setattr__(name, value)

    @classmethod
    def fields(cls) -> dict[str, Option]:
        """The options by name, in the order in which they are declared."""
        declared = (value for base in reversed(cls.__mro__) for value in vars(base).items())
        return {name: value for name, value in declared if isinstance(value, Option)}

    @classmethod
    def from_argparse(cls: type[C], args: argparse.Namespace, disallow_extra_args: bool = False) -> C:
        """As the library's, whose check of types knows lists but no tuples."""
        annotations = collect_type_annotations(cls).items()
        return cls(**{name: _checked(annotation, getattr(args, name), name) for name, annotation in annotations})

    @classmethod
    def choose_preset(cls, typed: Mapping[str, object]) -> str:
        """The preset where none is given, from the options that are."""
        return preset_for(str(typed.get("data") or ""))

    @classmethod
    def begun(cls, typed: Mapping[str, object], stage: Stage) -> dict[str, object]:
        """Values of the run that this command line resumes, for options that follow another one."""
        return {}

    @classmethod
    def why_not(cls, flag: str) -> str:
        """A clause on why this command lacks an option that others have, or ''."""
        return ""

    @classmethod
    def implied(cls, typed: Mapping[str, object], name: str, stage: Stage) -> dict[str, object]:
        """Values in place of those of the preset `name` that follow from what is typed."""
        return {}

    def several_processes(self) -> bool:
        """Whether the work is worth one process per GPU."""
        return False

    def given(self, *names: str) -> list[str]:
        """Those of `names` whose value is not the default."""
        fields = self.fields()
        return [name for name in names if getattr(self, name) != fields[name].default]

    def replace(self: Own, **changes: object) -> Own:
        """The same options but for `changes`."""
        return type(self)(**(vars(self) | changes))

    def to_dict(self) -> dict[str, object]:
        """All values by name, as JSON holds them."""
        return self._values(self.fields())

    def identity(self) -> dict[str, object]:
        """Those that make two runs the same run, as JSON holds them."""
        return self._values({name: option for name, option in self.fields().items() if option.identity})

    def _values(self, options: Mapping[str, Option]) -> dict[str, object]:
        """Values by name, but for options that were added later and have their default, which is also the preset's."""
        usual = self.defaults()
        values = {name: _plain(getattr(self, name)) for name in options}
        off = {name: _plain(option.default) for name, option in options.items() if option.added}
        return {name: v for name, v in values.items() if name not in off or not v == off[name] == usual[name]}

    def told(self) -> dict[str, object]:
        """Those that do not change the result of a run, but that a resumed run names if they have changed."""
        return {name: _plain(getattr(self, name)) for name, option in self.fields().items() if option.told}

    def defaults(self) -> dict[str, object]:
        """Their values where nothing is typed but the preset."""
        stages = presets_of(self.stage)
        stage = stages.get(str(getattr(self, "preset", "")), {})
        return {name: _plain(stage.get(name, option.default)) for name, option in self.fields().items()}

    def unrecorded(self) -> dict[str, object]:
        """What they were in a run of this preset that does not record them."""
        return self.defaults() | self.earlier()

    @classmethod
    def earlier(cls) -> dict[str, object]:
        """Those whose default has changed, with the value of runs that do not record them."""
        return {name: option.earlier for name, option in cls.fields().items() if option.earlier is not None}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _checked(annotation: TypeAnnotation, value: object, name: str) -> object:
    """The value, if it is of the annotated type; TypeError if not."""
    inner = annotation.get_underlying_if_optional() or annotation
    if inner.origin is tuple and isinstance(value, tuple):
        return tuple(TypeAnnotation(inner.args[0]).validate_with_error(entry, name) for entry in value)
    return annotation.validate_with_error(value, name)
