"""How settings become flags: names from registries are shown as choices, and what is wrong is said in one line.

FLAGS                    every flag
showing(model, names)    for help: these flags alone
NAMED                    for completion: names of registries as choices
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from pydantic import ValidationError
from tyro.constructors import (
    MISSING,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from tdsm.base.errors import UsageError
from tdsm.base.settings import Choice, Settings, wrong_entries

UNNAMED = "__tyro-dummy-inner__"  # what tyro calls settings whose flags stand without a name before them
_ARGUMENT: Any = type(tyro.conf.arg(name=""))
Shown = Collection[tuple[type[Settings], str]]  # entries of settings, by the class they stand in


def settings_flags(
    info: StructTypeInfo, shown: Shown | None = None, *, is_closed: bool = False
) -> StructConstructorSpec | None:
    """Make a flag of every entry of settings; what is there already is its default."""
    model = info.type
    if not (isinstance(model, type) and issubclass(model, Settings)):
        return None
    hints = get_type_hints(model, include_extras=True)
    flags = (
        StructFieldSpec(
            name, with_choices(hints[name], is_closed), _default(model, name, info.default), entry.description
        )
        for name, entry in model.model_fields.items()
        if shown is None or (model, name) in shown
    )
    return StructConstructorSpec(_checked(model), tuple(flags))


def path_flag(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Take ~ for the home folder, which shells leave alone in --run=~/x and in quotes."""
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: Path(words[0]).expanduser(),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


def showing(model: type[Settings], names: Collection[str]) -> ConstructorRegistry:
    """Return rules that make flags of these entries of a model alone, named as flags are: "train.batch-size"."""
    shown = [entry for name, *entries in flags_of(model) if name in names for entry in entries]
    return _rules(partial(settings_flags, shown=shown))


def flags_of(model: type[Settings], prefix: str = "") -> Iterator[tuple[str, *tuple[tuple[type[Settings], str], ...]]]:
    """Yield every flag of a model with the entries it stands in, outermost first.

    >>> from tdsm.training.config import TrainConfig
    >>> [name for name, *_ in flags_of(TrainConfig)][:3]
    ['accumulate', 'precision', 'compile']
    """
    for name, entry in model.model_fields.items():
        given = (mark.name for mark in entry.metadata if isinstance(mark, _ARGUMENT) and mark.name is not None)
        flag = next(given, name.replace("_", "-"))
        if isinstance(entry.annotation, type) and issubclass(entry.annotation, Settings):
            for inner, *entries in flags_of(entry.annotation, f"{prefix}{flag}." if flag else prefix):
                yield inner, (model, name), *entries
        else:
            yield f"{prefix}{flag}", (model, name)


def _rules(settings: Callable[[StructTypeInfo], StructConstructorSpec | None]) -> ConstructorRegistry:
    rules = ConstructorRegistry()
    rules.struct_rule(settings)
    rules.primitive_rule(path_flag)
    return rules


FLAGS = _rules(settings_flags)
NAMED = _rules(partial(settings_flags, is_closed=True))


def with_choices(annotation: Any, is_closed: bool = False) -> Any:
    """Show, for every `Choice` in an annotation, the names it may be; closed, no other is taken.

    >>> from tdsm.features.config import MapConfig
    >>> method = get_type_hints(MapConfig, include_extras=True)["method"]
    >>> get_args(with_choices(method))[-1].metavar
    '{solo,additive,leave_one_out,attention,shapley,mixture}'
    """
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, Choice):
            return Annotated[annotation, _names(mark, is_closed)]
    if get_origin(annotation) is tuple:
        return tuple[tuple(with_choices(part, is_closed) for part in get_args(annotation))]
    return annotation


def _names(choice: Choice, is_closed: bool) -> PrimitiveConstructorSpec[str]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(choice.registry)}}}",
        instance_from_str=lambda words: words[0],  # the settings check it, and say more
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
        choices=tuple(choice.registry) if is_closed else None,
    )


def _default(model: type[Settings], name: str, given: Any) -> Any:
    if isinstance(given, model):
        return getattr(given, name)
    entry = model.model_fields[name]
    return MISSING if entry.is_required() else entry.get_default(call_default_factory=True)


def _checked(model: type[Settings]) -> Callable[..., Settings]:
    """Return what makes the settings; what is wrong with them is one line, without the words of the checker."""

    def make(**given: Any) -> Settings:
        try:
            return model(**given)
        except ValidationError as error:
            raise UsageError(f"{wrong_entries(error, without=UNNAMED)}.") from None

    make.__name__, make.__doc__ = model.__name__, model.__doc__
    return make
