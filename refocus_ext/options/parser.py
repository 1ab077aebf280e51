"""The command line: typed-argparse's parser, its argparse tree restyled, and values filled in from the presets."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typed_argparse
from typed_argparse import SubParser, SubParserGroup

from refocus_ext.options.fields import Option, Options
from refocus_ext.options.presets import Stage, preset, presets_of

Typed = Mapping[str, object]
PROCESSES = ("--gpus", "--nproc", "--n-gpus", "--num-gpus", "--nproc-per-node", "--nproc_per_node", "--devices")
WIDTH = 110  # of help, columns
# What a value is not that its parser refuses without saying why, by the parser's name.
NOT_A = {
    "int": "a whole number",
    "float": "a number",
    "int_list": "a list of whole numbers such as 1,2,3",
    "guidance_list": "a list of numbers such as 0,1.5,4",
}
PATHS = ("DIR", "FILE", "RUN", "RUN|FILE", "DIR|off")  # metavars of options that take a path


class Parser(typed_argparse.Parser):
    """The library's parser, for commands that each have a class of options.

    Modifications: errors are one sentence with a suggestion; --help has headings, units and defaults; what is typed
    wins over the preset, and the preset over the default of the option.

    Args:
        prog: what stands before the command's name on a command line.
        commands: options class and summary by the command's name.
    """

    def __init__(self, prog: str, commands: Mapping[str, tuple[type[Options], str]]) -> None:
        group = SubParserGroup(*(SubParser(name, cls, help=summary) for name, (cls, summary) in commands.items()))
        super().__init__(group, prog=prog, allow_abbrev=False)
        self._classes = {name: cls for name, (cls, _) in commands.items()}
        (subparsers,) = (a for a in self._argparse_parser._actions if isinstance(a, argparse._SubParsersAction))
        self._command_action = subparsers
        for name, cls in self._classes.items():
            _restyle(subparsers.choices[name], cls)

    def flags_of(self, name: str) -> set[str]:
        """Every flag of a command: '--steps', ..."""
        return {flag for action in self._command(name)._actions for flag in action.option_strings}

    def parse_args(self, raw_args: list[str] = sys.argv[1:]) -> Options:
        """A command and its words -> its options.

        Raises:
            UsageError: a preset that does not exist, or has no values for this command.
            SystemExit: argparse's own, with code 2 for wrong usage and 0 after --help.
        """
        if "_ARGCOMPLETE" in os.environ:  # a shell asks how the line can go on; answers and exits
            import argcomplete

            argcomplete.autocomplete(self._argparse_parser)
        namespace, unknown = self._argparse_parser.parse_known_args(raw_args)
        words = vars(namespace)
        name: str = words[self._command_action.dest]
        cls = self._classes[name]
        if unknown:
            self._command(name).refuse(unknown, cls.why_not)
        for option, field in cls.fields().items():
            if words[option] == "" and field.default == "" and field.shown in PATHS:
                self._command(name).error(
                    f"--{option.replace('_', '-')} is an empty word, as an unset variable gives; give a path, or omit the option."
                )
        typed = {option: words[option] for option in cls.fields() if words[option] is not None}
        typed |= {option: tuple(value) for option, value in typed.items() if isinstance(value, list)}
        return cls.from_argparse(argparse.Namespace(**filled(cls, typed)))

    def _command(self, name: str) -> _CommandParser:
        command = self._command_action.choices[name]
        assert isinstance(command, _CommandParser)
        return command


def filled(cls: type[Options], typed: Typed) -> dict[str, object]:
    """A value for every option: what is typed, else the preset's, else the option's default.

    Raises:
        UsageError: a preset that does not exist, or has no values for this command.
    """
    values = {name: option.default for name, option in cls.fields().items()}
    if cls.stage:
        name = str(typed.get("preset") or cls.choose_preset(typed))
        stage = preset(name, cls.stage)
        followers = {**_followers(cls, typed, stage), **cls.begun(typed, stage)}
        values |= {"preset": name, **stage, **cls.implied(typed, name, stage), **followers}
    return values | dict(typed)


def _followers(cls: type[Options], typed: Typed, stage: Stage) -> dict[str, int]:
    """A preset's values that are laid out over its steps, in proportion to the steps that are typed."""
    leaders = {name: option.follows for name, option in cls.fields().items() if option.follows in typed}
    ratios = {name: _number(typed[leader]) / _number(stage[leader]) for name, leader in leaders.items()}
    return {name: round(_number(stage[name]) * ratio) for name, ratio in ratios.items()}


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return value


# ------------------------------------------------------------------------------------------------ the argparse tree


class _CommandParser(argparse.ArgumentParser):
    """Modifications: an error is one sentence, with a suggestion for a misspelt option or value, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """`message` is ours, or argparse's own: "argument --steps: ..."."""
        message = re.sub(r"^argument (\S+): ", r"\1: ", message)
        message = re.sub(r": expected one argument$", " needs a value", message)
        message = re.sub(r": expected (\d+) arguments$", r" needs \1 values", message)
        print(f"refocus: {self.prog.split()[-1]}: {message}", file=sys.stderr)
        print(f"  `{self.prog} --help` lists the options.", file=sys.stderr)
        raise SystemExit(2)

    def refuse(self, words: list[str], why_not: Callable[[str], str]) -> NoReturn:
        """An error about words that argparse did not know; `why_not` of the options class."""
        known = [name for action in self._actions for name in action.option_strings]
        word = words[0].split("=")[0]
        if why := why_not(word):
            self.error(f"there is no option '{word}' here: {why}.")
        if word in PROCESSES and "--device" in known:
            self.error(f"there is no option '{word}'; the number of processes is a variable: NPROC=8 bash run.sh ...")
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else "."
        if word.startswith("-"):
            self.error(f"there is no option '{word}'{hint}")
        data = f"; did you mean --data {word}?" if "--data" in known and os.path.exists(word) else "."
        self.error(f"'{word}' was not expected here{data}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            what = NOT_A.get(getattr(action.type, "__name__", ""))
            if what is None or not (error.message or "").startswith("invalid "):
                raise
            raise argparse.ArgumentError(action, f"'{arg_string}' is not {what}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        words = [str(choice) for choice in action.choices]
        close = difflib.get_close_matches(str(value), words, n=1)
        hint = f"did you mean {close[0]}? It" if close else "it"
        raise argparse.ArgumentError(action, f"there is no '{value}'; {hint} is one of {', '.join(words)}")


def _restyle(parser: argparse.ArgumentParser, cls: type[Options]) -> None:
    """Gives a parser that the library has built our errors, headings and texts, and takes its defaults away."""
    parser.__class__ = _CommandParser
    fields, presets = cls.fields(), presets_of(cls.stage)
    bare = "".join(f" [{option.shown}]" for option in fields.values() if option.positional)
    parser.usage = f"{parser.prog}{bare} [options]"
    parser.description = inspect.getdoc(cls)
    parser.formatter_class = _Formatter
    parser.allow_abbrev = False
    actions = {action.dest: action for action in parser._actions}
    parser._optionals._group_actions = [actions["help"]]
    parser._positionals._group_actions = []
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, option in fields.items():
        _restyle_action(actions[name], option, _default_text(name, option, presets))
        if option.heading not in groups:
            groups[option.heading] = parser.add_argument_group(option.heading)
        groups[option.heading]._group_actions.append(actions[name])


class _Formatter(argparse.HelpFormatter):
    """Modifications: paragraphs of a description stay apart and its indented lines as they are; as wide as the terminal, at most
    WIDTH."""

    def __init__(self, prog: str) -> None:
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        super().__init__(prog, max_help_position=32, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = [paragraph.splitlines() for paragraph in text.split("\n\n")]
        as_they_are = [any(line.startswith(" ") for line in lines) for lines in blocks]
        return "\n\n".join(
            "\n".join(lines) if fixed else textwrap.fill(" ".join(lines), width)
            for lines, fixed in zip(blocks, as_they_are, strict=True)
        )


def _restyle_action(action: argparse.Action, option: Option, default: str) -> None:
    notes = "; ".join(part for part in (option.unit, default) if part)
    action.help = (f"{option.help}" + (f" ({notes})" if notes else "")).replace("%", "%%")
    action.default, action.required = None, False
    if option.nargs is not None:
        action.nargs = option.nargs
    if action.nargs != 0 and not action.choices:  # 0: a switch
        kind = getattr(action.type, "__name__", "str").upper()
        kind = {"INT_LIST": "N,N,..", "GUIDANCE_LIST": "FLOAT,.."}.get(kind, kind)
        action.metavar = option.shown or kind


def _default_text(name: str, option: Option, presets: Mapping[str, Stage]) -> str:
    if not any(name in values for values in presets.values()):
        return "" if option.default in (None, "", (), False) else f"default: {_show(option.default)}"
    first, *others = ((preset, _show(values.get(name, option.default))) for preset, values in presets.items())
    commonest, count = Counter(value for _, value in others).most_common(1)[0] if others else ("", 0)
    if count > 1:  # said once, at the end
        others = [(preset, value) for preset, value in others if value != commonest] + [("others", commonest)]
    shown = "default: " + ", ".join(f"{preset} {value}" for preset, value in (first, *others))
    return shown + (f"; scales with --{option.follows}" if option.follows else "")


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
