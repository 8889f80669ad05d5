"""Dataclasses that are made quickly: the program starts before a person notices.

The standard library imports ``inspect`` and compiles six functions for every frozen dataclass, 1.2 ms a class on the
machine of ``scripts/results/bench.md``; a hundred of them were half of the start-up.  Here a class shares methods that
walk its fields: some hundredths of a millisecond.  Making an instance takes some microseconds longer.

For a type checker every name here *is* the one of ``dataclasses``.  At run time the standard library's functions
(``fields``, ``asdict``, ``is_dataclass``) work on these classes as well; what they need is made when they first ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import asdict as asdict
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:
    _MISSING = object()
    _REFUSED = "cannot change field {!r} of a frozen {}"

    class _Field:
        """One field as its class states it; its name and type are told when the class is made."""

        __slots__ = ("annotation", "compare", "default", "default_factory", "init", "name", "repr")

        def __init__(self, default: Any, default_factory: Any, *, init: bool, repr: bool, compare: bool) -> None:  # noqa: A002
            self.default = default
            self.default_factory = default_factory
            self.init = init
            self.repr = repr
            self.compare = compare

    class _Shape:
        """What the shared methods need to know of a class."""

        __slots__ = ("accepted", "compared", "defaults", "factories", "fields", "names", "positional", "shown")

        def __init__(self, known: dict[str, _Field], *, is_keyword_only: bool) -> None:
            fields = tuple(known.values())
            self.fields = known
            self.names = tuple(known)
            self.accepted = {each.name: None for each in fields if each.init}  # in their order
            self.positional = () if is_keyword_only else tuple(self.accepted)
            self.defaults = {each.name: each.default for each in fields if each.default is not _MISSING}
            self.factories = {
                each.name: each.default_factory for each in fields if each.default_factory is not _MISSING
            }
            self.compared = tuple(each.name for each in fields if each.compare)
            self.shown = tuple(each.name for each in fields if each.repr)

    def field(
        *,
        default: Any = _MISSING,
        default_factory: Any = _MISSING,
        init: bool = True,
        repr: bool = True,  # noqa: A002 - the standard library's word
        compare: bool = True,
    ) -> Any:
        """Say more of one field than its default, as ``dataclasses.field`` does."""
        return _Field(default, default_factory, init=init, repr=repr, compare=compare)

    def dataclass(
        cls: type | None = None,
        /,
        *,
        frozen: bool = False,
        slots: bool = False,
        kw_only: bool = False,
        repr: bool = True,  # noqa: A002 - the standard library's word
    ) -> Any:
        """Make a dataclass as the standard library's decorator does; only frozen ones can be hashed."""
        if cls is None:
            return lambda each: dataclass(each, frozen=frozen, slots=slots, kw_only=kw_only, repr=repr)
        known = _known_fields(cls)
        if slots:
            cls = _with_slots(cls)
        own = vars(cls)
        cls.__record__ = shape = _Shape(known, is_keyword_only=kw_only)
        cls.__dataclass_fields__ = _StandardFields()
        methods = {"__init__": _init, "__eq__": _eq, "__match_args__": shape.positional, **(_FROZEN if frozen else {})}
        if repr:
            methods["__repr__"] = _repr
        for name, method in methods.items():
            if name not in own:
                setattr(cls, name, method)
        if not frozen and "__hash__" not in own:
            cls.__hash__ = None
        return cls

    def _known_fields(cls: type) -> dict[str, _Field]:
        """Return the fields of a class by name, those of its bases first; the class keeps no default of its own."""
        known: dict[str, _Field] = {}
        for base in reversed(cls.__mro__[1:]):
            if "__record__" in vars(base):
                known.update(base.__record__.fields)
        for name, annotation in cls.__annotations__.items():
            if str(annotation).startswith(("ClassVar", "typing.ClassVar")):
                continue
            stated = vars(cls).get(name, _MISSING)
            one = stated if isinstance(stated, _Field) else _Field(stated, _MISSING, init=True, repr=True, compare=True)
            one.name, one.annotation = name, annotation
            known[name] = one
            if isinstance(stated, _Field):
                if stated.default is _MISSING:
                    delattr(cls, name)
                else:
                    setattr(cls, name, stated.default)
        return known

    def _with_slots(cls: type) -> type:
        """Return the class again, with a slot for each field of its own instead of a ``__dict__``."""
        names = tuple(name for name in cls.__annotations__ if not str(cls.__annotations__[name]).startswith("ClassVar"))
        content = {name: value for name, value in vars(cls).items() if name not in {*names, "__dict__", "__weakref__"}}
        made = type(cls)(cls.__name__, cls.__bases__, {**content, "__slots__": names})
        made.__qualname__ = cls.__qualname__
        return made

    class _StandardFields:
        """What ``dataclasses.fields`` looks for in a class, made when it first looks."""

        def __get__(self, instance: object, owner: Any) -> dict[str, Any]:
            import dataclasses

            missing = dataclasses.MISSING
            stated = [
                (
                    each.name,
                    each.annotation,
                    dataclasses.field(
                        default=missing if each.default is _MISSING else each.default,
                        default_factory=missing if each.default_factory is _MISSING else each.default_factory,
                        init=each.init,
                        repr=each.repr,
                        compare=each.compare,
                    ),
                )
                for each in owner.__record__.fields.values()
            ]
            twin = dataclasses.make_dataclass(owner.__name__, stated, init=False, eq=False, namespace={"__doc__": "-"})
            made = twin.__dataclass_fields__
            owner.__dataclass_fields__ = made
            return made

    def replace(value: Any, /, **changes: Any) -> Any:
        """Return the same value with other fields; init=False fields are made anew."""
        kept = {name: getattr(value, name) for name in type(value).__record__.accepted if name not in changes}
        return type(value)(**kept, **changes)

    def asdict(value: Any) -> dict[str, Any]:
        """Return the fields by name, dataclasses within as dicts too."""
        import dataclasses

        return dataclasses.asdict(value)

    # --- the methods that every class shares ---------------------------------------------------------------

    def _init(self: Any, /, *args: Any, **given: Any) -> None:
        cls = type(self)
        shape = cls.__record__
        if args:
            if len(args) > len(shape.positional):
                raise TypeError(f"{cls.__name__}() takes {len(shape.positional)} positional arguments, not {len(args)}")
            for name, value in zip(shape.positional, args, strict=False):
                if name in given:
                    raise TypeError(f"{cls.__name__}() got two values for {name!r}")
                given[name] = value
        values = {**shape.defaults, **given}
        for name, factory in shape.factories.items():
            if name not in values:
                values[name] = factory()
        if not given.keys() <= shape.accepted.keys() <= values.keys():
            raise TypeError(_mismatch(cls.__name__, shape, given))
        put = object.__setattr__
        for name in shape.names:
            if name in values:  # a field with init=False and no default waits for __post_init__
                put(self, name, values[name])
        after = getattr(self, "__post_init__", None)
        if after is not None:
            after()

    def _mismatch(name: str, shape: _Shape, given: dict[str, Any]) -> str:
        known = {**given, **shape.defaults, **shape.factories}
        missing = [each for each in shape.accepted if each not in known]
        unknown = [each for each in given if each not in shape.accepted]
        told = [f"needs {', '.join(missing)}"] * bool(missing) + [f"has no {', '.join(unknown)}"] * bool(unknown)
        return f"{name}() {' and '.join(told)}"

    def _values(self: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in names)

    def _eq(self: Any, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = type(self).__record__.compared
        return _values(self, names) == _values(other, names)

    def _hash(self: Any) -> int:
        return hash(_values(self, type(self).__record__.compared))

    def _repr(self: Any) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in type(self).__record__.shown)
        return f"{type(self).__qualname__}({shown})"

    def _refuse(self: Any, name: str, *_: object) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(_REFUSED.format(name, type(self).__name__))

    def _get_state(self: Any) -> tuple[Any, ...]:
        return _values(self, type(self).__record__.names)

    def _set_state(self: Any, state: tuple[Any, ...]) -> None:
        for name, value in zip(type(self).__record__.names, state, strict=True):
            object.__setattr__(self, name, value)

    _FROZEN = {
        "__hash__": _hash,
        "__setattr__": _refuse,
        "__delattr__": _refuse,
        "__getstate__": _get_state,
        "__setstate__": _set_state,
    }


def field_values(value: object) -> list[tuple[str, object]] | None:
    """Return the names and values of a dataclass made here, in their order; None for anything else."""
    shape: Any = getattr(type(value), "__record__", None)
    return None if shape is None else [(name, getattr(value, name)) for name in shape.names]
