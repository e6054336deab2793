"""How settings become flags: names from registries are shown as choices, and what is wrong is said in one line.

tyro.cli(..., registry=FLAGS)
"""

from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from tyro.constructors import (
    MISSING,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from tdsm.base.errors import UsageError
from tdsm.base.settings import Choice, Settings, wrong_entries

FLAGS = ConstructorRegistry()
UNNAMED = "__tyro-dummy-inner__"  # what tyro calls settings whose flags stand without a name before them


@FLAGS.struct_rule
def settings_flags(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Make a flag of every entry of settings; what is there already is its default."""
    model = info.type
    if not (isinstance(model, type) and issubclass(model, Settings)):
        return None
    hints = get_type_hints(model, include_extras=True)
    flags = (
        StructFieldSpec(name, with_choices(hints[name]), _default(model, name, info.default), entry.description)
        for name, entry in model.model_fields.items()
    )
    return StructConstructorSpec(_checked(model), tuple(flags))


def with_choices(annotation: Any) -> Any:
    """Show, for every `Choice` in an annotation, the names it may be.

    >>> from tdsm.features.config import MapConfig
    >>> method = get_type_hints(MapConfig, include_extras=True)["method"]
    >>> get_args(with_choices(method))[-1].metavar
    '{solo,additive,leave_one_out,attention,shapley,mixture}'
    """
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, Choice):
            return Annotated[annotation, _names(mark)]
    if get_origin(annotation) is tuple:
        return tuple[tuple(with_choices(part) for part in get_args(annotation))]
    return annotation


def _names(choice: Choice) -> PrimitiveConstructorSpec[str]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(choice.registry)}}}",
        instance_from_str=lambda words: words[0],  # the settings check it, and say more
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
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
