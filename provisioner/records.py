"""Frozen dataclasses that are made quickly: the program starts before a person notices.

The standard library compiles six functions for every frozen dataclass, which took 1.2 ms a class on the machine of
``scripts/results/bench.md``; a hundred of them were half of the start-up.  Here the class is a dataclass all the same
(``fields``, ``replace``, ``asdict``, ``match`` work), but its methods are shared ones that walk the fields: 0.07 ms a
class.  Making an instance takes some microseconds longer.  For a type checker the decorator is
``dataclasses.dataclass`` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses

    _REFUSED = "cannot change field {!r} of a frozen {}"

    def dataclass(cls: type | None = None, /, *, frozen: bool = False, **options: bool) -> Any:
        """Make a dataclass as the standard library's decorator does; frozen ones share their methods."""
        if cls is None:
            return lambda each: dataclass(each, frozen=frozen, **options)
        if not frozen:
            return dataclasses.dataclass(cls, **options)
        cls.__doc__ = cls.__doc__ or cls.__name__  # otherwise the signature is looked up for it
        own = set(vars(cls))
        wants_repr = options.pop("repr", True)
        cls = dataclasses.dataclass(cls, init=False, repr=False, eq=False, **options)
        is_keyword_only = options.get("kw_only", False)
        fields = dataclasses.fields(cls)
        cls._positional = () if is_keyword_only else tuple(field.name for field in fields)
        cls._required = tuple(field.name for field in fields if not _has_default(field))
        cls._defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
        cls._factories = {
            field.name: field.default_factory for field in fields if field.default_factory is not dataclasses.MISSING
        }
        cls._names = tuple(field.name for field in fields)
        cls._compared = tuple(field.name for field in fields if field.compare)
        cls._shown = tuple(field.name for field in fields if field.repr)
        methods = {
            "__init__": _init,
            "__eq__": _eq,
            "__hash__": _hash,
            "__setattr__": _refuse,
            "__delattr__": _refuse,
            "__getstate__": _get_state,
            "__setstate__": _set_state,
        }
        if wants_repr:
            methods["__repr__"] = _repr
        for name, method in methods.items():
            if name not in own:
                setattr(cls, name, method)
        return cls

    def _has_default(field: dataclasses.Field[Any]) -> bool:
        return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING

    def _init(self: Any, /, *args: Any, **given: Any) -> None:
        cls = type(self)
        if args:
            if len(args) > len(cls._positional):
                raise TypeError(f"{cls.__name__}() takes {len(cls._positional)} positional arguments, not {len(args)}")
            for name, value in zip(cls._positional, args, strict=False):
                if name in given:
                    raise TypeError(f"{cls.__name__}() got two values for {name!r}")
                given[name] = value
        values = {**cls._defaults, **given}
        for name, factory in cls._factories.items():
            if name not in values:
                values[name] = factory()
        if len(values) != len(cls._names):
            raise TypeError(_mismatch(cls, values))
        put = object.__setattr__
        try:
            for name in cls._names:
                put(self, name, values[name])
        except KeyError:
            raise TypeError(_mismatch(cls, values)) from None
        after = getattr(self, "__post_init__", None)
        if after is not None:
            after()

    def _mismatch(cls: Any, values: dict[str, Any]) -> str:
        missing = [name for name in cls._required if name not in values]
        unknown = [name for name in values if name not in cls._names]
        told = [f"needs {', '.join(missing)}"] * bool(missing) + [f"has no {', '.join(unknown)}"] * bool(unknown)
        return f"{cls.__name__}() {' and '.join(told)}"

    def _values(self: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in names)

    def _eq(self: Any, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = type(self)._compared
        return _values(self, names) == _values(other, names)

    def _hash(self: Any) -> int:
        return hash(_values(self, type(self)._compared))

    def _repr(self: Any) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in type(self)._shown)
        return f"{type(self).__qualname__}({shown})"

    def _refuse(self: Any, name: str, *_: object) -> None:
        raise dataclasses.FrozenInstanceError(_REFUSED.format(name, type(self).__name__))

    def _get_state(self: Any) -> tuple[Any, ...]:
        return _values(self, type(self)._names)

    def _set_state(self: Any, state: tuple[Any, ...]) -> None:
        for name, value in zip(type(self)._names, state, strict=True):
            object.__setattr__(self, name, value)
